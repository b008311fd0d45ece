"""`liquidnet plot`."""
