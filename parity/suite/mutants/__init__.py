"""Planted faults: `python -m parity.suite.mutants` counts how many of them the tests notice."""

from parity.suite.mutants.catalogue import read_catalogue
from parity.suite.mutants.mutant import Mutant
from parity.suite.mutants.record import load_generic_score, load_score, sources_digest

MUTANTS = read_catalogue()

__all__ = ["MUTANTS", "Mutant", "load_generic_score", "load_score", "sources_digest"]
