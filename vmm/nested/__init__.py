"""L2 as data: what the host writes so that a stub of an L1 enters it; imports floor 1's values."""
