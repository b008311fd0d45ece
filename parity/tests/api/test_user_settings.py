"""What a user's own program has set for all of PyTorch or of JAX: the same numbers, or a refusal, never others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from parity.proof import adapters
from parity.proof.problems.cases import perturbed_parameters
from spec.config import TrainingConfig
from spec.data import Batch
from spec.mixers import families, state_shape

TOKENS = np.random.default_rng(0).integers(0, 13, (2, 9)).astype(np.int32)
BATCH = Batch(TOKENS, np.roll(TOKENS, -1, 1), TOKENS == 3)


@pytest.fixture
def torch() -> Iterator[Any]:
    torch = pytest.importorskip("torch", reason="its defaults")
    yield torch
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def torch_numbers(name: str, method: str) -> Iterator[Any]:
    """A text, a loss and gradients, two steps of training that are taken up again, of a model of the family."""
    models, native = (adapters.load_module("torch", module) for module in ("model", "checkpoint.native"))
    config = families()[name].small_config()
    model = models.build(config, method=method)
    native.load_parameters(model, perturbed_parameters(config, 3))
    prompt, labels = native.from_numpy(TOKENS[:, :4].astype(np.int64)), native.from_numpy(BATCH.labels)
    yield from model.generate(prompt, 16, end_of_text_id=3).tolist()
    loss, last = model.loss(native.from_numpy(TOKENS), labels, resets=native.from_numpy(BATCH.resets))
    (loss + last.sum()).backward()
    yield loss.item()
    for tensor in (last, *(parameter.grad for parameter in model.parameters())):
        yield str(tensor.dtype), native.to_numpy(tensor).tobytes()
    training = TrainingConfig(batch_size=2, seq_len=9)
    engine, other = (adapters.load_module("torch", "training.engine").Engine(config, training) for _ in range(2))
    yield engine.train_step(BATCH, 1e-2)
    other.load(*engine.dump(), 1)
    for one in (engine, other):
        yield one.train_step(BATCH, 1e-2)
        yield {path: (array.dtype, array.tobytes()) for path, array in one.dump()[0].items()}


@pytest.mark.parametrize("name", families())
def test_the_default_dtype_of_torch_changes_no_bit(torch, name):
    method = "auto" if name != "mingru" else "chunked"
    truth = list(torch_numbers(name, method))
    for dtype in (torch.bfloat16, torch.float64):
        torch.set_default_dtype(dtype)
        assert list(torch_numbers(name, method)) == truth, dtype


@pytest.mark.parametrize("name", ["liquidnet", "liquid_ssm", "hybrid"])
def test_a_model_stays_on_its_device_whatever_the_default_one(torch, name):
    """`meta` has no numbers: what was made there by mistake could not be read."""
    model = adapters.load_module("torch", "model").build(families()[name].small_config())
    prompt, rows = (
        torch.from_numpy(TOKENS[:, :4].astype(np.int64)),
        [torch.from_numpy(x) for x in (TOKENS, BATCH.labels)],
    )
    text, loss = model.generate(prompt, 16, end_of_text_id=3), model.loss(*rows)[0].item()
    torch.set_default_device("meta")
    assert torch.equal(model.generate(prompt, 16, end_of_text_id=3), text)
    assert model.loss(*rows)[0].item() == loss


@pytest.fixture
def jax() -> Any:
    return pytest.importorskip("jax", reason="its settings")


def jax_loss(name: str, **options: Any) -> tuple[Any, tuple[Any, ...]]:
    """Loss and last states of (parameters, states, tokens, masks), and these."""
    import jax.numpy as jnp
    from flax import nnx

    config = families()[name].small_config()
    model = adapters.load_module("jax", "model").build(config, **options)
    graph, parameters = nnx.split(model, nnx.Param)

    def loss(parameters, states, tokens, labels, resets):
        nats, last = nnx.merge(graph, parameters).loss(tokens, labels, states, resets, resets)
        return nats + last.sum()

    # More than the few tokens that are taken one after another.
    tokens = jnp.asarray(np.tile(TOKENS, 2))
    return loss, (parameters, jnp.zeros(state_shape(config, 2)), tokens, tokens, tokens == 3)


def jax_methods() -> list[tuple[str, dict[str, str]]]:
    if adapters.missing("jax"):
        return []
    own = [(name, {}) for name in families()]
    scans = [("mingru", {"method": method}) for method in adapters.load("jax").METHODS["scan"]]
    more = [("liquid_ssm", {"method": "parallel"}), ("liquidnet", {"method": "pallas"})]
    return own + scans + more + [("liquidnet", {"loss_method": loss}) for loss in ("full", "chunked", "fused_linear")]


@pytest.mark.parametrize("name, options", jax_methods(), ids=str)
def test_strict_promotion(jax, name, options):
    """Every type is said: loss and gradients are traced, nothing is compiled; labels are int64 for each loss (x64)."""
    wide = "loss_method" in options
    loss, inputs = jax_loss(name, **options)
    dtypes = [x.dtype for x in jax.tree.leaves(inputs[:2])]
    with jax.numpy_dtype_promotion("strict"), jax.enable_x64(wide):
        kind = jax.numpy.int64 if wide else jax.numpy.int32
        tokens = [jax.ShapeDtypeStruct(inputs[2].shape, kind)] * 2
        found = jax.eval_shape(jax.grad(loss, (0, 1)), *inputs[:2], *tokens, inputs[4])
    assert [x.dtype for x in jax.tree.leaves(found)] == dtypes


def test_what_jax_cannot_differentiate_is_refused_by_name(jax):
    """Forward mode in JAX's own words; twice through a kernel in ours, which names the way: it is there."""
    scan, draw = adapters.load_module("jax", "ops.scan").scan, np.random.default_rng(2)
    inputs = [jax.numpy.asarray(draw.random(shape), jax.numpy.float32) for shape in ((1, 3, 1), (1, 3, 1), (1, 1))]
    with pytest.raises(TypeError, match=r"forward-mode .* custom_vjp function"):
        jax.jvp(lambda *x: scan(*x)[0], inputs, inputs)
    for name, options, refused in (
        ("mingru", {}, True),
        ("liquidnet", {}, True),
        ("liquidnet", {"method": "pallas"}, True),
        ("liquidnet", {"method": "sequential"}, False),
    ):
        loss, (parameters, states, *rows) = jax_loss(name, **options)

        def slope(states, parameters=parameters, rows=rows, loss=loss):
            return jax.grad(loss, 1)(parameters, states, *rows).sum()

        if refused:
            with pytest.raises(NotImplementedError, match="no second derivative; name another method, such as 'seq"):
                jax.eval_shape(jax.grad(slope), states)
        else:
            jax.eval_shape(jax.grad(slope), states)


def jax_operations() -> list[tuple[str, Any, Any]]:
    """(name, function, shapes of its inputs), of those that have a gradient of their own."""
    if adapters.missing("jax"):
        return []
    import jax.numpy as jnp

    scan = adapters.load_module("jax", "ops.scan").scan
    losses = adapters.load_module("jax", "ops.cross_entropy").METHODS
    labels = jnp.asarray([1, -100, 3])
    shapes = [(1, 3, 1), (1, 3, 1), (1, 1)]
    found = [
        (f"scan {method}", lambda *x, method=method: scan(*x, method)[0], shapes)
        for method in ("sequential", "chunked", "associative")
    ]
    return [*found, ("loss", lambda h, e: losses["fused_linear"](h, e, labels, jnp.float64), [(3, 2), (4, 2)])]


@pytest.mark.long
@pytest.mark.parametrize("name, function, shapes", [pytest.param(*row, id=row[0]) for row in jax_operations()])
def test_second_derivatives_in_jax(jax, name, function, shapes):
    from jax.test_util import check_grads

    draw = np.random.default_rng(1)
    with jax.enable_x64(True):
        inputs = [jax.numpy.asarray(draw.uniform(0.1, 0.9, shape)) for shape in shapes]
        check_grads(jax.jit(function), inputs, order=2, modes=["rev"])
