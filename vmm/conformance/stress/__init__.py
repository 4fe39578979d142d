"""Stress: filters swapped under running vCPUs. Imports `oracle`, `host` and below."""
