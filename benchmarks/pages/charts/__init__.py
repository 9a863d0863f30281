"""Charts as lists of shapes."""
