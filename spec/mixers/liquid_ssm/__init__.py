"""The Liquid SSM in NumPy."""
