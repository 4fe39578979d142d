"""Wrong kernels that the suite must kill. Imports `machines` and below."""
