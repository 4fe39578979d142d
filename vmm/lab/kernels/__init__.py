"""Kernels to boot: packaged or built, and their modules. Imports cache and apt."""
