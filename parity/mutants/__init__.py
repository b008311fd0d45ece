"""Planted faults: what the tests are worth is how many of these they notice. `python -m parity.mutants` counts."""

from parity.mutants.catalogue import read_catalogue
from parity.mutants.mutant import Mutant
from parity.mutants.record import load_score, sources_digest

MUTANTS = read_catalogue()

__all__ = ["MUTANTS", "Mutant", "load_score", "sources_digest"]
