"""The language: words, scripts, traces and cases, and their JSON. Imports values and `contract`."""
