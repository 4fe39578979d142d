"""Random scripts, races and bulk runs, and shrinking. Imports `oracle`, `kernel` and below."""
