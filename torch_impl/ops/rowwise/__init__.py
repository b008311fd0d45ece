"""RMSNorm and SwiGLU's product, row by row."""
