"""`liquidnet bench`."""
