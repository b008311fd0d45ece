"""`liquidnet train` and `liquidnet evaluate`."""
