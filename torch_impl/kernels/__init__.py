"""Kernel sources alone, called from ops/."""
