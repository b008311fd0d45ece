"""`liquidnet compare`."""
