"""Compiled XLA programs: hlo parses their text; count, with flops, loops and traffic, adds up what they cost."""
