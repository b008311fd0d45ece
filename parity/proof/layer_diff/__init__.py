"""Layer by layer: where two models differ."""
