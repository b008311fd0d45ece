"""Kernels and steps compiled ahead of time, against budgets."""
