"""Mixer families in PyTorch."""
