"""The contract in numbers: requirements and the history of bugs. Imports nothing of ours."""
