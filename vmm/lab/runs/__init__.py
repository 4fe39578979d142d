"""The suite in the lab: one kernel, or a matrix. Imports `machines` and below."""
