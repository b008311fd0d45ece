"""One token a row from logits, as NumPy does it. Twin: torch_impl. Truth: spec/sampling/reference.py."""

from __future__ import annotations

from spec.sampling import sample

__all__ = ["sample"]
