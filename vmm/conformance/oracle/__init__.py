"""The Model: predicts traces from the contract alone. Imports `language`, never a kernel."""
