"""The guest's first file system. Imports `kernels`."""
