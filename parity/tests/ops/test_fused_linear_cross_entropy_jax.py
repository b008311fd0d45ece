"""Cross-entropy with its gradients in one pass, in JAX: tiles, what the program holds, half precision."""

from collections import Counter
from functools import partial

import numpy as np
import pytest

from parity.proof.operations import check
from parity.proof.problems.cases import LayerCase
from spec.inputs import IGNORED_LABEL

jax = pytest.importorskip("jax")

import jax.numpy as jnp

from jax_impl.ops import cross_entropy as losses
from jax_impl.ops.cross_entropy import fused_linear

# More than a block of words, which is a multiple of 128: 300 takes three, the last with 84 columns that are none.
V = 300
BLOCK = 128


def draw(n, v=V, d=16, ignored=0.2, size=0.3):
    random = np.random.default_rng(1000 * n + v)
    labels = random.integers(0, v, n)
    labels[random.random(n) < ignored] = IGNORED_LABEL
    hidden, embedding = random.standard_normal((n, d)), size * random.standard_normal((v, d))
    return jnp.asarray(hidden, jnp.float32), jnp.asarray(embedding, jnp.float32), jnp.asarray(labels)


def tiled(rows, block=None, compute=jnp.float32, narrow=False, v=V):
    """`fused_linear` with so many rows and words a tile."""
    return partial(
        fused_linear.fused_linear_cross_entropy,
        compute=compute,
        chunk_logits=rows * (block or v),
        block_words=block,
        narrow_logits=narrow,
    )


def with_gradients(method, hidden, embedding, labels, factor=1.0):
    def scaled(hidden, embedding):
        nats = method(hidden, embedding, labels)
        return factor * nats, nats

    (_, nats), gradients = jax.jit(jax.value_and_grad(scaled, (0, 1), has_aux=True))(hidden, embedding)
    return [np.asarray(x, np.float64) for x in (nats, *gradients)]


def exact(hidden, embedding, labels):
    """In float64 without JAX, whose process computes in float32."""
    h, e, labels = (np.asarray(x, np.float64) for x in (hidden, embedding, labels))
    counted, label = labels != IGNORED_LABEL, np.where(labels == IGNORED_LABEL, 0, labels).astype(int)
    z = h @ e.T
    z -= z.max(axis=1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    of_z = np.exp(log_p) - np.eye(len(e))[label]
    of_z *= counted[:, None]
    return -(log_p[np.arange(len(h)), label] * counted).sum(), of_z @ e, of_z.T @ h


def assert_near(found, wanted, tolerance=1e-5):
    for one, other in zip(found, wanted, strict=True):
        assert np.shape(one) == np.shape(other)
        assert (abs(one - other) <= tolerance * max(1.0, abs(other).max(initial=0.0))).all()


def equations(jaxpr):
    """Every equation of a program and of the programs inside it, once each."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            yield from equations(getattr(inner, "jaxpr", inner)) if hasattr(inner, "jaxpr") else ()


def program(method, arrays, gradients=True):
    def nats(hidden, embedding):
        return method(hidden, embedding, arrays[2])

    return list(equations(jax.make_jaxpr(jax.value_and_grad(nats, (0, 1)) if gradients else nats)(*arrays[:2]).jaxpr))


@pytest.mark.parametrize("values", ["normal", "small", "wide", "absorbed"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_in_chunks_are_within_the_bound(values, dtype):
    for seed in range(2):
        check("cross_entropy", "jax", "fused_linear", dtype, LayerCase((2, 31), values, seed))


@pytest.mark.parametrize("block", [None, BLOCK])
@pytest.mark.parametrize("n, rows", [(1, 4), (9, 4), (5, 1), (0, 4)])
def test_any_tiles_give_the_values_and_gradients_of_the_reference(n, rows, block):
    arrays = draw(n)
    assert_near(with_gradients(tiled(rows, block), *arrays), exact(*arrays))


@pytest.mark.parametrize("v", [1, 128, 129, 256, 257])
def test_any_vocabulary(v):
    """Whole blocks and single ones, and one word, whose nats are 0."""
    arrays = draw(5, v)
    assert_near(with_gradients(tiled(3, BLOCK, v=v), *arrays), exact(*arrays))


@pytest.mark.parametrize("block", [None, BLOCK])
@pytest.mark.parametrize("shift", [-200.0, 200.0])
def test_logits_far_from_zero(block, shift):
    """exp(200) is infinite in float32, and exp(0 + 200) is what a column without a word would give."""
    hidden, embedding, labels = draw(6)
    hidden, embedding = hidden.at[:, 0].set(shift), embedding.at[:, 0].set(1.0)
    assert_near(with_gradients(tiled(4, block), hidden, embedding, labels), exact(hidden, embedding, labels), 1e-4)


@pytest.mark.parametrize("size", [120.0, -120.0])
def test_any_word_of_any_tile_may_stand_far_from_the_rest(size):
    """The first and the last word of each block; as the label and not."""
    words = np.array([0, BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK, V - 1])
    hidden, embedding = size * jnp.eye(V)[np.repeat(words, 2)], jnp.eye(V)
    labels = jnp.asarray(np.stack([words, (words + 1) % V], axis=1).reshape(-1))
    arrays = hidden, embedding, labels
    assert_near(with_gradients(tiled(4, BLOCK), *arrays), exact(*arrays))


@pytest.mark.parametrize("block", [None, BLOCK])
def test_ignored_rows_give_nothing(block):
    hidden, embedding, labels = draw(9)
    ignored = np.asarray(labels) == IGNORED_LABEL
    _, of_hidden, of_embedding = with_gradients(tiled(4, block), hidden, embedding, labels)
    assert ignored.any() and (of_hidden[ignored] == 0).all() and (of_hidden[~ignored] != 0).any(axis=1).all()
    fewer = with_gradients(tiled(4, block), hidden[~ignored], embedding, labels[~ignored])
    assert_near([of_embedding], fewer[2:])
    nothing = with_gradients(tiled(4, block), hidden, embedding, jnp.full_like(labels, IGNORED_LABEL))
    assert all((x == 0).all() for x in nothing)


@pytest.mark.parametrize("block", [None, BLOCK])
@pytest.mark.parametrize("label", [V, -1])
def test_a_label_outside_the_vocabulary_does_not_pass(block, label):
    hidden, embedding, labels = draw(9)
    assert np.isnan(tiled(4, block)(hidden, embedding, labels.at[3].set(label)))


@pytest.mark.parametrize("factor", [0.37, -1e-6, 65536.0])
def test_gradients_are_scaled_by_what_reaches_the_nats(factor):
    arrays = draw(9)
    nats, *gradients = with_gradients(tiled(4), *arrays)
    scaled_nats, *scaled = with_gradients(tiled(4), *arrays, factor)
    assert nats == scaled_nats
    assert_near([x / factor for x in scaled], gradients)


@pytest.mark.parametrize("rows, block", [(4, None), (4, BLOCK), (1, BLOCK)])
def test_no_more_logits_than_a_tile_in_the_program(rows, block):
    """Nor any array that has the rows of several chunks and the words of several blocks side by side."""
    arrays = draw(23)
    found = program(tiled(rows, block), arrays)
    largest = max(np.prod(x.aval.shape) for e in found for x in e.outvars if not {16} & set(x.aval.shape))
    assert largest == rows * (block or V)
    assert (
        max(
            np.prod(x.aval.shape) for e in program(partial(losses.full, compute=jnp.float32), arrays) for x in e.outvars
        )
        == 23 * V
    )


def test_without_gradients_there_is_one_product_a_tile():
    for block, with_them in ((None, 3), (BLOCK, 4)):
        counts = [
            Counter(e.primitive.name for e in program(tiled(4, block), draw(9), gradients))["dot_general"]
            for gradients in (False, True)
        ]
        assert counts == [1, with_them]


def test_the_program_is_the_same_size_whatever_the_number_of_tiles():
    sizes = {len(program(tiled(rows, BLOCK), draw(n))) for n, rows in ((8, 4), (32, 4), (32, 1))}
    assert len(sizes) == 1


def test_products_have_operands_of_the_compute_dtype_and_float32_sums():
    for compute in (jnp.float32, jnp.bfloat16):
        found = program(tiled(4, BLOCK, compute), draw(9))
        products = [e for e in found if e.primitive.name == "dot_general"]
        assert {x.aval.dtype for e in products for x in e.invars} == {jnp.dtype(compute)}
        assert {x.aval.dtype for e in products for x in e.outvars} == {jnp.dtype("float32")}
        assert all(e.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2 for e in products)
        assert {x.aval.dtype for e in found if e.primitive.name in ("exp", "log") for x in e.outvars} == {
            jnp.dtype("float32")
        }


def learnt(hidden, embedding, labels):
    """Hidden states that point at their labels, as those of a model that has learnt."""
    of_label = embedding[jnp.where(labels == IGNORED_LABEL, 0, labels)]
    return 0.5 * hidden + 0.6 * hidden.shape[1] ** 0.5 * of_label / jnp.linalg.norm(of_label, axis=1, keepdims=True)


@pytest.mark.parametrize(
    "narrow, guess, v, block, size",
    [
        (False, False, 1003, BLOCK, 0.3),
        (False, False, 5003, None, 1.0),
        (True, False, 1003, BLOCK, 0.3),
        (True, True, 1003, None, 0.3),
        (True, True, 1003, None, 1.0),
    ],
)
def test_bfloat16_is_as_good_as_the_plain_formulation(report, narrow, guess, v, block, size):
    """Against float64, at most twice the error of `full`: rounded operands, all else float32.

    Narrow logits are where labels are likely. Where they cost 14 nats each, at size 1.0 unlearnt, it is 2.3 times.
    """
    hidden, embedding, labels = draw(65, v, size=size)
    arrays = learnt(hidden, embedding, labels) if guess else hidden, embedding, labels
    truth = exact(*arrays)
    ours = with_gradients(tiled(16, block, jnp.bfloat16, narrow, v), *arrays)
    its = with_gradients(partial(losses.full, compute=jnp.bfloat16), *arrays)
    for name, mine, other, right in zip(("hidden", "embedding"), ours[1:], its[1:], truth[1:], strict=True):
        errors = [np.linalg.norm(x - right) / np.linalg.norm(right) for x in (mine, other)]
        report(f"{name}, v = {v}, size {size}, narrow {narrow}: {errors[0]:.1e}, plain {errors[1]:.1e}")
        assert errors[0] <= 2 * errors[1]
    off = [abs(x[0] - truth[0]) / truth[0] for x in (ours, its)]
    report(f"nats {truth[0] / 65:.1f} a token, off by {off[0]:.1e}, plain {off[1]:.1e}")
    assert off[0] <= 2 * off[1] + 1e-4


@pytest.mark.parametrize("method", ["auto", "fused_linear"])
def test_the_platform_of_the_program_decides(method):
    """A program that is lowered here for a TPU has the TPU's tiles and no others."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 8192, 16), (50257, 16))]
    labels = jax.ShapeDtypeStruct((1, 8192), jnp.int32)

    def nats(hidden, embedding, labels):
        return losses.cross_entropy(hidden, embedding, labels, jnp.bfloat16, method)[0]

    traced = jax.jit(jax.grad(nats, (0, 1))).trace(*shapes, labels)
    on_tpu, on_cpu = (traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("tpu", "cpu"))
    tile = f"{fused_linear.TPU_ROWS}x{fused_linear.TPU_WORDS}xf32"
    assert tile in on_tpu and tile not in on_cpu
    assert "x50257xf32" in on_cpu and "x50257xf32" not in on_tpu
