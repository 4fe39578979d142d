"""Emulated machines, and one boot of one. Imports `kernels` and `initramfs`."""
