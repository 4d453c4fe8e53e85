"""A run as a whole: its course, its health, its figures, its result."""
