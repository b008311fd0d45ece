"""Whole training runs, compared."""
