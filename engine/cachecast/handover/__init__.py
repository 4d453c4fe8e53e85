"""What one process of a node gives to the next: the form of the state, and the line it goes by."""
