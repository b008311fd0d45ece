"""What a train step of JAX costs on a CPU, in counts that are the same on every machine: products, bytes, compiles."""

import re
from functools import cache

import numpy as np
import pytest

pytest.importorskip("jax", reason="the counts are of JAX's programs")

import jax
import jax.numpy as jnp
from flax import nnx

from jax_impl.model import build
from jax_impl.ops import cross_entropy as losses
from jax_impl.ops.scan import scan
from jax_impl.training.distributed import ParallelContext
from jax_impl.training.engine import Engine
from jax_impl.training.step import abstract_step
from spec import LiquidNetConfig
from spec.config import TrainingConfig
from spec.data import Batch
from spec.mixers import families

LAYERS, D, F, V = 2, 32, 64, 1000
CONFIG = LiquidNetConfig(vocab_size=V, d_model=D, d_ff=F, n_layers=LAYERS)
LINEARS = 4 * LAYERS
# Of forward, gradient of the operand and gradient of the weight.
PRODUCTS = 3 * LINEARS + 3


def compiled(b, t):
    update, arguments = abstract_step(CONFIG, TrainingConfig(batch_size=b, seq_len=t), ParallelContext())
    return update.lower(*arguments).compile()


@cache
def usual(b, t):
    return compiled(b, t)


def products(program):
    return len(re.findall(r"= \S+ dot\(", program.as_text()))


def temporaries(tokens):
    return usual(2, tokens // 2).memory_analysis().temp_size_in_bytes


def batch(b, t):
    tokens = np.random.default_rng(t).integers(0, V, (b, t + 1)).astype(np.int32)
    return Batch(tokens[:, :-1], tokens[:, 1:], np.zeros((b, t), bool))


def test_three_products_a_weight_and_none_again():
    assert products(usual(2, 64)) == PRODUCTS


def test_a_loss_in_chunks_makes_its_logits_once(monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_LOGITS", 16 * V // losses.CHUNK_FACTOR)
    program = compiled(2, 64)
    assert products(program) == PRODUCTS
    assert re.search(rf"f32\[16,{V}\]", program.as_text()) and not re.search(rf"f32\[128,{V}\]", program.as_text())


def test_temporaries_grow_with_tokens_by_what_is_kept_of_each(report):
    """Of a block: the residual stream, two norms' outputs and their gradients, gates and states; of the loss: logits.

    A token has at most 18 vectors of d and 6 of f in a block at a time (of f: pre-activations, two, silu's two factors
    and the gradients of two), logits and their gradient, and a few vectors outside.
    """
    each = (temporaries(2048) - temporaries(1024)) / 1024
    most = 4 * (LAYERS * (18 * D + 6 * F) + 2 * V + 8 * D)
    report(f"{each:.0f} bytes of temporaries a token, of {most}")
    assert each <= most


def test_temporaries_of_a_long_sequence_do_not_depend_on_its_cut():
    """One row as long as two take what two take: the scan keeps states, not steps."""
    assert usual(1, 2048).memory_analysis().temp_size_in_bytes <= 1.05 * temporaries(2048)


def test_a_step_compiles_once_for_each_shape():
    engine = Engine(CONFIG, TrainingConfig(batch_size=2, seq_len=16))
    for _ in range(3):
        engine.train_step(batch(2, 16), 1e-3)
    assert engine._programs.update._cache_size() == 1
    engine.train_step(batch(2, 8), 1e-3)
    engine.train_step(batch(2, 16), 3e-4)
    assert engine._programs.update._cache_size() == 2


def test_no_embedding_is_turned_round_and_no_gradient_summed_over_one_device():
    text = usual(2, 64).as_text()
    assert f"f32[{V},{D}]" in text and f"f32[{D},{V}]" not in text
    summed = [line.split(" all-reduce(")[0] for line in text.splitlines() if " all-reduce(" in line]
    assert not re.search(r"\w\[\d", " ".join(summed))


def test_parameters_and_moments_are_updated_where_they_lie():
    memory = usual(2, 64).memory_analysis()
    states = 4 * 3 * (V * D + LAYERS * (3 * D * D + D * D + 2 * F * D + D * F))
    assert memory.alias_size_in_bytes >= states


@pytest.mark.parametrize("gradient", [False, True])
def test_the_scan_takes_its_arrays_as_they_lie(gradient):
    """On a CPU no array [b, t, d] is transposed, turned round or gathered; one loop in each direction."""

    def states(*arrays):
        return scan(*arrays)[0].sum()

    shape = jax.ShapeDtypeStruct((3, 70, 8), jnp.float32)
    run = jax.grad(states, (0, 1)) if gradient else states
    text = jax.jit(run).trace(shape, shape).lower(lowering_platforms=("cpu",)).as_text()
    assert not re.search(r"stablehlo\.(transpose|reverse|gather|pad)", text)
    assert text.count("stablehlo.while") == (2 if gradient else 1)


MOVES = {
    "broadcast_in_dim", "concatenate", "convert_element_type", "optimization_barrier", "pad", "reshape", "slice",
    "split", "squeeze", "transpose",
}  # fmt: skip
"""What computes nothing."""


def equations(jaxpr):
    """Those of a program, and of the programs inside it."""
    for equation in jaxpr.eqns:
        inner = [x for x in jax.tree.leaves([*equation.params.values()]) if hasattr(x, "eqns") or hasattr(x, "jaxpr")]
        for one in inner:
            yield from equations(getattr(one, "jaxpr", one))
        if not inner:
            yield equation


@pytest.mark.parametrize("name", families())
def test_in_bfloat16_nothing_is_computed_but_products(name):
    """Gates, norms, recurrence, softmax and sums are wide, forward and in every gradient."""
    model = build(families()[name].small_config(), compute_dtype="bfloat16")
    graph, parameters = nnx.split(model, nnx.Param)[:2]
    tokens = np.zeros((2, 5), np.int32)
    program = jax.make_jaxpr(jax.grad(lambda x: nnx.merge(graph, x).loss(tokens, tokens)[0]))(parameters)
    narrow = {
        equation.primitive.name
        for equation in equations(program.jaxpr)
        if any(x.aval.dtype == jnp.bfloat16 for x in equation.invars)
    }
    assert "dot_general" in narrow and narrow <= {"dot_general", *MOVES}
