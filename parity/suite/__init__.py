"""Whole runs, crashes, damaged files, compiled kernels, planted faults and the report."""
