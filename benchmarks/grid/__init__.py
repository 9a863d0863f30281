"""What a grid is: its file, the cells that it expands to, their settings and splits."""
