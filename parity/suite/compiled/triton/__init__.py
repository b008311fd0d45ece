"""The Triton kernels against a checked-in budget: what they compile to, and the bytes that they move."""
