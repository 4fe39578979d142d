"""Reports: one module for each format, all made from the same records."""
