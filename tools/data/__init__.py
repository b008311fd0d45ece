"""`liquidnet prepare`: text in, token files out."""
