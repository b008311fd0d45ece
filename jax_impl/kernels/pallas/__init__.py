"""Kernels for TPUs, compiled by Pallas. No twin: Pallas is JAX's."""
