"""Kernels for GPUs, compiled by Triton. No twin: JAX compiles its own for a GPU."""
