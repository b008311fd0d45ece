"""Parameters and optimizer state, to and from files."""
