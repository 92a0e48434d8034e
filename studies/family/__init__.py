"""Other implementations of Titans: what runs, what is found, what imports."""
