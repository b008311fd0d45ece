"""`liquidnet serve`."""
