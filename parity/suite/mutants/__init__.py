"""Planted faults: `python -m parity.suite.mutants` counts how many of them the tests notice."""

from parity.mutants.of_cpu import CPU
from parity.mutants.of_decode import DECODE
from parity.mutants.of_gpu import GPU
from parity.mutants.of_jax import JAX
from parity.mutants.of_jax_cpu import JAX_CPU
from parity.mutants.of_meshes import MESHES
from parity.mutants.of_people import PEOPLE
from parity.mutants.of_sessions import SESSIONS
from parity.mutants.of_shards import SHARDS
from parity.mutants.of_spec import SPEC
from parity.mutants.of_ssm import LIQUID_SSM
from parity.mutants.of_streams import STREAMS
from parity.mutants.of_tools import TOOLS
from parity.mutants.of_torch import TORCH
from parity.mutants.of_worlds import WORLDS
from parity.suite.mutants.mutant import Mutant
from parity.suite.mutants.record import load_score, sources_digest

MUTANTS = (
    *SPEC, *TORCH, *CPU, *DECODE, *STREAMS, *JAX, *JAX_CPU, *MESHES, *GPU, *TOOLS, *SHARDS, *WORLDS, *LIQUID_SSM,
    *SESSIONS, *PEOPLE,
)  # fmt: skip

__all__ = ["MUTANTS", "Mutant", "load_score", "sources_digest"]
