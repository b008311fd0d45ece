"""Compiled XLA programs: parsed and counted."""
