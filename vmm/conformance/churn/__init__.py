"""Churn: VMs that end in every order, and what installs leave. Imports `host` and floor 1."""
