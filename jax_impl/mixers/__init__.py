"""Mixer families in JAX."""
