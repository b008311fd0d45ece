"""The same refusal everywhere: reference, torch and JAX, one class and one sentence for each mistake; neighbours pass.

JAX is only traced here: what a shape or a dtype tells is told inside a compiled program too.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from parity.proof import adapters
from parity.proof.problems.cases import perturbed_parameters
from spec.config import TrainingConfig
from spec.data import Batch
from spec.inputs import IGNORED_LABEL
from spec.mixers import families
from spec.mixers.base import Masks
from spec.mixers.liquidnet import gated_states
from spec.reference.convolution import short_convolution
from spec.reference.model import cross_entropy, loss_and_gradients
from spec.reference.scan import mask, scan

SHAPE = B, T = 2, 3
EVERY = [
    pytest.param(name, marks=pytest.mark.skipif(name != "reference" and bool(adapters.missing(name)), reason=name))
    for name in ("reference", "torch", "jax")
]


def ints(*shape, dtype=np.int32):
    return np.zeros(shape, dtype)


def floats(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def bools(*shape):
    return np.zeros(shape, bool)


TOKENS = "tokens must have shape [b, t] with b, t >= 1, got "
MASK = "{name} [b, t] must have shape (2, 3), got "
# What is changed of a good call, and the whole message; L and N are the sizes of the model's states.
BAD_CALLS = [
    ("tokens", lambda L, N: ints(3), TOKENS + "(3,)"),
    ("tokens", lambda L, N: ints(2, 3, 1), TOKENS + "(2, 3, 1)"),
    ("tokens", lambda L, N: ints(0, 3), TOKENS + "(0, 3)"),
    ("tokens", lambda L, N: ints(2, 0), TOKENS + "(2, 0)"),
    ("tokens", lambda L, N: bools(2, 3), "tokens must have an integer dtype, got bool"),
    ("tokens", lambda L, N: floats(2, 3), "tokens must have an integer dtype, got float32"),
    ("labels", lambda L, N: ints(3, 2), "labels [b, t] must have shape (2, 3), got (3, 2); it is [t, b], transpose it"),
    ("labels", lambda L, N: ints(6), "labels [b, t] must have shape (2, 3), got (6,)"),
    ("labels", lambda L, N: ints(1, 3), "labels [b, t] must have shape (2, 3), got (1, 3)"),
    ("labels", lambda L, N: ints(2, 3, 1), "labels [b, t] must have shape (2, 3), got (2, 3, 1)"),
    ("labels", lambda L, N: floats(2, 3), "labels must have an integer dtype, got float32"),
    ("labels", lambda L, N: bools(2, 3), "labels must have an integer dtype, got bool"),
    ("states", lambda L, N: floats(L, 1, N), "states [l, b, n] must have shape ({L}, 2, {N}), got ({L}, 1, {N})"),
    ("states", lambda L, N: floats(L + 1, 2, N), "states [l, b, n] must have shape ({L}, 2, {N}), got ({M}, 2, {N})"),
    ("states", lambda L, N: floats(L, 2, 1), "states [l, b, n] must have shape ({L}, 2, {N}), got ({L}, 2, 1)"),
    ("states", lambda L, N: floats(2, N), "states [l, b, n] must have shape ({L}, 2, {N}), got (2, {N})"),
    ("states", lambda L, N: ints(L, 2, N), "states must have a floating dtype, got int32"),
    ("states", lambda L, N: bools(L, 2, N), "states must have a floating dtype, got bool"),
    ("resets", lambda L, N: bools(1, 3), MASK + "(1, 3)"),
    ("resets", lambda L, N: bools(3), MASK + "(3,)"),
    ("resets", lambda L, N: bools(3, 2), MASK + "(3, 2); it is [t, b], transpose it"),
    ("resets", lambda L, N: ints(2, 3), "resets must have dtype bool, got int32"),
    ("padding", lambda L, N: bools(2, 4), MASK + "(2, 4)"),
    ("padding", lambda L, N: bools(2, 1), MASK + "(2, 1)"),
    ("padding", lambda L, N: floats(2, 3), "padding must have dtype bool, got float32"),
]
GOOD_CALLS = [
    *(("tokens", lambda L, N, d=d: ints(2, 3, dtype=d)) for d in (np.uint8, np.int16, np.uint16, np.uint32, np.int64)),
    *(("labels", lambda L, N, d=d: ints(2, 3, dtype=d)) for d in (np.uint16, np.int64)),
    ("states", lambda L, N: floats(L, 2, N, dtype=np.float64)),
    ("states", lambda L, N: floats(L, 2, N, dtype=np.float16)),
    ("resets", lambda L, N: bools(2, 3)),
    ("padding", lambda L, N: bools(2, 3)),
]


@cache
def small(name):
    own = families()[name]
    return own, own.small_config(), perturbed_parameters(own.small_config(), 0)


@cache
def model(name, backend, loss_method="auto"):
    return adapters.load_module(backend, "model").build(small(name)[1], loss_method=loss_method)


def tensors(arrays):
    return {name: adapters.load("torch")._tensors(array)[0] for name, array in arrays.items()}


def call(name, backend, arrays):
    """The loss of a call; JAX is traced, not run."""
    _, config, params = small(name)
    arrays = {"tokens": ints(*SHAPE), "labels": ints(*SHAPE), **arrays}
    if backend == "reference":
        return loss_and_gradients(params, config, **arrays)[0]
    if backend == "torch":
        return model(name, backend).loss(**tensors(arrays))[0].item()
    import jax

    return jax.eval_shape(lambda arrays: model(name, backend).loss(**arrays)[0], arrays)


def refusal(function, *arguments):
    with pytest.raises(ValueError) as raised:
        function(*arguments)
    assert type(raised.value) is ValueError
    return str(raised.value)


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("name", families())
def test_a_call_that_does_not_fit(name, backend):
    own, config, _ = small(name)
    sizes = {"L": config.n_layers, "M": config.n_layers + 1, "N": own.state_size(config)}
    for which, make, message in BAD_CALLS:
        array = make(sizes["L"], sizes["N"])
        assert refusal(call, name, backend, {which: array}) == message.format(name=which, **sizes)
    for one in own.side_inputs(config):
        shape = own.side_shapes(config, SHAPE)[one.name]
        letters = f"{one.name} [{', '.join(one.axes)}] must have shape {shape}, got "
        for wrong in (shape[1:], (*shape[:-1], 1)):
            assert refusal(call, name, backend, {one.name: floats(*wrong)}) == f"{letters}{wrong}"
        assert refusal(call, name, backend, {one.name: bools(*shape)}) == f"{one.name} must have a real dtype, got bool"
        call(name, backend, {one.name: floats(*shape)})
        call(name, backend, {one.name: ints(*shape)})
    for which, make in GOOD_CALLS:
        call(name, backend, {which: make(sizes["L"], sizes["N"])})


@pytest.mark.skipif(bool(adapters.missing("torch")), reason="torch")
@pytest.mark.parametrize("loss_method", ["auto", "full", "chunked", "fused_linear"])
def test_torch_says_it_by_every_method(loss_method):
    """A label outside is one message whichever method of the loss meets it; a state is taken in the model's dtype."""
    import torch

    net = model("liquidnet", "torch", loss_method)
    labels = torch.tensor([[0, 1, 2], [3, -1, 5]])
    message = "labels must be -100 or in [0, 13), got -1 in row 1, position 1; write -100 where a label does not count"
    assert refusal(net.loss, torch.zeros_like(labels), labels) == message
    states = 0.5 * torch.ones(net.config.n_layers, B, net.config.d_model)
    wanted = net.loss(labels.clamp(min=0), labels.clamp(min=0), states)
    for dtype in (torch.float64, torch.float16):
        found = net.loss(labels.clamp(min=0), labels.clamp(min=0), states.to(dtype))
        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
    assert found[1].dtype == torch.float32


@pytest.mark.parametrize("backend", EVERY)
def test_what_is_no_array(backend):
    known = {"reference": "numpy.ndarray", "torch": "torch.Tensor", "jax": "numpy.ndarray or jax.Array"}[backend]
    _, config, params = small("liquidnet")
    good = {"tokens": ints(*SHAPE), "labels": ints(*SHAPE)}
    good = tensors(good) if backend == "torch" else good
    for which in ("tokens", "labels", "resets"):
        arrays = {**good, which: [[0, 0, 0], [0, 0, 0]]}
        run = model("liquidnet", backend).loss if backend != "reference" else loss_and_gradients
        arrays |= {"params": params, "config": config} if backend == "reference" else {}
        message = f"{which} must be a {known}, got list; make an array of it first"
        assert refusal(lambda arrays=arrays, run=run: run(**arrays)) == message


BAD_VALUES = [
    ("liquidnet", "tokens", (1, 2), 13, "token ids must be in [0, 13), got 13 in row 1, position 2"),
    ("liquidnet", "tokens", (0, 1), -1, "token ids must be in [0, 13), got -1 in row 0, position 1"),
    ("liquidnet", "tokens", (0, 1), 2**32, "token ids must be in [0, 13), got 4294967296 in row 0, position 1"),
    *(
        (
            "liquidnet",
            "labels",
            (1, 0),
            value,
            f"labels must be -100 or in [0, 13), got {value} in row 1, position 0; "
            "write -100 where a label does not count",
        )
        for value in (-1, -99, 13, 2**32 + 3, 2**32 - 100)
    ),
    ("liquid_ssm", "gaps", (0, 2), -1.0, "dt_scale must be at least 0, got -1.0 in row 0, position 2"),
    ("liquid_ssm", "dt_scale", (0, 2), np.nan, "dt_scale must be at least 0, got nan in row 0, position 2"),
]


@pytest.mark.parametrize(
    "name, which, where, value, message", BAD_VALUES, ids=[f"{which}-{value}" for _, which, _, value, _ in BAD_VALUES]
)
def test_a_value_outside(name, which, where, value, message):
    """Refused where the host has it; JAX makes the loss and every gradient NaN, eagerly too."""
    whole = which in ("tokens", "labels")
    array = ints(*SHAPE, dtype=np.int64) if whole else floats(*SHAPE, dtype=np.float64)
    array[where] = value
    for backend in ("reference", "torch"):
        if backend == "reference" or not adapters.missing(backend):
            assert refusal(call, name, backend, {which: array}) == message
    if not adapters.missing("jax"):
        assert np.isnan(eager_jax(name, **{which: array}))


def eager_jax(name, **arrays):
    good = {"tokens": ints(*SHAPE), "labels": ints(*SHAPE)}
    return float(model(name, "jax").loss(**{**good, **arrays})[0])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
@pytest.mark.parametrize("backend", adapters.FRAMEWORKS)
def test_an_id_of_any_dtype_stays_itself_or_outside(backend, dtype):
    """No wrapping: the lower 32 bits of 2^32 - 100 are those of a label that is ignored."""
    if adapters.missing(backend):
        pytest.skip(str(adapters.missing(backend)))
    most, span = np.iinfo(dtype).max, range(np.iinfo(dtype).min, np.iinfo(dtype).max + 1)
    near = (0, 12, IGNORED_LABEL, -1, 2**31, 2**32, 2**32 + 3, 2**32 - 100, 2**64 - 100, most, most - 99)
    near += (-(2**31) - 100, 3 - 2**32, 3 - 2**33, np.iinfo(dtype).min)
    ids = np.array([value for value in near if value in span], dtype)
    make = adapters.load_module(backend, "ops.token_ids").as_ids
    (given,) = adapters.load("torch")._tensors(ids) if backend == "torch" else (ids,)
    for value, found in zip(ids.tolist(), np.asarray(make(given)).tolist(), strict=True):
        outside = found != IGNORED_LABEL and found not in range(2**31 - 1)
        assert found == value or (abs(value) >= 2**31 and outside), (value, found)


@pytest.mark.parametrize("backend", ["reference", *adapters.FRAMEWORKS])
def test_a_side_input_that_is_none_hides_no_other(backend):
    if backend != "reference" and adapters.missing(backend):
        pytest.skip(str(adapters.missing(backend)))
    gaps = np.full(SHAPE, 0.25, np.float32)
    assert call("liquid_ssm", backend, {"noise": None, "gaps": gaps}) == call("liquid_ssm", backend, {"gaps": gaps})
    message = "takes no side input 'weather'"
    assert message in refusal(call, "liquid_ssm", backend, {"noise": None, "weather": gaps})


def test_zero_gaps_and_ignored_labels_are_good():
    for backend in ("reference", "torch"):
        if backend == "reference" or not adapters.missing(backend):
            assert np.isfinite(call("liquid_ssm", backend, {"gaps": np.zeros(SHAPE)}))
            labels = np.array([[IGNORED_LABEL, 1, 12], [0, IGNORED_LABEL, 2]])
            assert np.isfinite(call("liquidnet", backend, {"labels": labels}))


@pytest.mark.skipif(bool(adapters.missing("jax")), reason="jax")
def test_a_label_outside_is_nan_in_every_method_of_jax(monkeypatch):
    """Of one chunk and of several, in tiles as a TPU has them, in a program: the sum and both gradients."""
    import jax
    import jax.numpy as jnp

    ops = adapters.load_module("jax", "ops.cross_entropy")
    random = np.random.default_rng(0)
    hidden, embedding = (jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in ((2, 4, 8), (13, 8)))
    good = np.array([[1, IGNORED_LABEL, 12, 0], [3, 4, IGNORED_LABEL, 5]], np.int32)
    monkeypatch.setattr(ops, "CHUNK_LOGITS", 3 * 13)
    monkeypatch.setitem(ops.METHODS, "tiles", lambda *given: ops.fused_linear_cross_entropy(*given, 4 * 8, 8))
    for method in ("auto", *ops.METHODS):

        def nats(hidden, embedding, labels, method=method):
            return ops.cross_entropy(hidden, embedding, labels, jnp.float32, method)[0]

        run = jax.jit(jax.value_and_grad(nats, (0, 1)))
        value, gradients = run(hidden, embedding, good)
        assert np.isfinite(value) and all(np.isfinite(one).all() for one in gradients), method
        for label in (-1, 13, 2**31 - 1, -(2**31)):
            labels = good.copy()
            labels[1, 3] = label
            value, gradients = run(hidden, embedding, labels)
            assert np.isnan(value), (method, label)
            assert np.isnan(gradients[0][good != IGNORED_LABEL]).all() and np.isnan(gradients[1]).all(), (method, label)


WRONG_SCANS = "decay and drive need one shape [b, t, d] with t >= 1, got "
WRONG_GATES = "pre-activations and bias need shapes [b, t, 3d] and [d] with t >= 1, got "
WRONG_TAPS = "x, weight and bias need shapes [b, t, d], [k, d] and [d] with t >= 1, got "
GOOD_OPERATIONS = {
    "scan": {"decay": floats(2, 3, 4), "drive": floats(2, 3, 4), "state": floats(2, 4), "resets": bools(2, 3)},
    "gated_scan": {"pre": floats(2, 3, 12), "bias": floats(4), "state": floats(2, 4), "padding": bools(2, 3)},
    "convolution": {"x": floats(2, 3, 4), "weight": floats(3, 4), "bias": floats(4), "history": floats(2, 8)},
    "loss": {"hidden": floats(2, 3, 4), "embedding": floats(5, 4), "labels": ints(2, 3)},
}
BAD_OPERATIONS = [
    ("scan", "decay", floats(2, 3, 1), WRONG_SCANS + "(2, 3, 1) and (2, 3, 4)"),
    ("scan", "drive", floats(2, 1, 4), WRONG_SCANS + "(2, 3, 4) and (2, 1, 4)"),
    ("scan", "decay", floats(3, 4), WRONG_SCANS + "(3, 4) and (2, 3, 4)"),
    ("scan", "drive", ints(2, 3, 4), "drive must have a floating dtype, got int32"),
    ("scan", "decay", bools(2, 3, 4), "decay must have a floating dtype, got bool"),
    ("scan", "drive", floats(2, 3, 4, dtype=np.float16), "decay and drive need one dtype, got float32 and float16"),
    ("scan", "state", floats(1, 4), "the state [b, d] must have shape (2, 4), got (1, 4)"),
    ("scan", "state", floats(4), "the state [b, d] must have shape (2, 4), got (4,)"),
    ("scan", "state", ints(2, 4), "the state must have a floating dtype, got int32"),
    ("scan", "resets", bools(1, 3), "resets [b, t] must have shape (2, 3), got (1, 3)"),
    ("scan", "padding", ints(2, 3), "padding must have dtype bool, got int32"),
    ("gated_scan", "pre", floats(2, 3, 3), WRONG_GATES + "(2, 3, 3) and (4,)"),
    ("gated_scan", "bias", floats(1), WRONG_GATES + "(2, 3, 12) and (1,)"),
    ("gated_scan", "state", floats(2, 1), "the state [b, d] must have shape (2, 4), got (2, 1)"),
    ("gated_scan", "padding", bools(2, 1), "padding [b, t] must have shape (2, 3), got (2, 1)"),
    ("gated_scan", "resets", floats(2, 3), "resets must have dtype bool, got float32"),
    ("convolution", "weight", floats(3, 1), WRONG_TAPS + "(2, 3, 4), (3, 1) and (4,)"),
    ("convolution", "bias", floats(1), WRONG_TAPS + "(2, 3, 4), (3, 4) and (1,)"),
    ("convolution", "history", floats(1, 8), "the history [b, d] must have shape (2, 8), got (1, 8)"),
    ("convolution", "resets", bools(1, 3), "resets [b, t] must have shape (2, 3), got (1, 3)"),
    ("loss", "labels", ints(3, 2), "labels [b, t] must have shape (2, 3), got (3, 2); it is [t, b], transpose it"),
    ("loss", "labels", floats(2, 3), "labels must have an integer dtype, got float32"),
]


def operation(backend, name, arrays):
    masks = Masks(arrays.get("resets"), arrays.get("padding"))
    # By name: JAX hands a dict on in the order of its keys.
    first, second = (arrays[key] for key in list(GOOD_OPERATIONS[name])[:2])
    state = arrays.get("state")
    if backend == "reference":
        if name == "scan":
            return scan(*mask(first, second, *masks), state)
        if name == "gated_scan":
            return gated_states(first, second, 1e-6, state, *masks)
        if name == "convolution":
            return short_convolution(first, second, arrays["bias"], arrays["history"], masks)
        return cross_entropy(first @ second.T, arrays["labels"])
    module = adapters.load_module(backend, f"ops.{MODULES.get(name, name)}")
    if name == "scan":
        return module.scan(first, second, state, "auto", *masks)
    if name == "gated_scan":
        return module.gated_scan(first, second, 1e-6, state, *masks)
    if name == "convolution":
        return module.short_convolution(first, second, arrays["bias"], arrays["history"], masks)
    return module.cross_entropy(first, second, arrays["labels"], first.dtype)


MODULES = {"convolution": "short_convolution", "loss": "cross_entropy"}


@pytest.mark.parametrize("backend", EVERY)
def test_an_operation_that_does_not_fit(backend):
    """Nothing is spread over rows, tokens or channels that it was not given for."""

    def run(name, arrays):
        if backend == "reference":
            return operation(backend, name, arrays)
        if backend == "torch":
            return operation(backend, name, tensors(arrays))
        import jax

        return jax.eval_shape(lambda arrays: operation(backend, name, arrays), arrays)

    for name, arrays in GOOD_OPERATIONS.items():
        run(name, arrays)
    for name, which, array, message in BAD_OPERATIONS:
        assert refusal(run, name, {**GOOD_OPERATIONS[name], which: array}) == message


@pytest.mark.parametrize("backend", [case for case in EVERY if case.values != ("reference",)])
def test_a_trainer_names_row_and_position(backend):
    """Before anything is computed, in both backends in the same words."""
    training = TrainingConfig(steps=2, batch_size=2, seq_len=3, warmup_steps=0)
    engine = adapters.load_module(backend, "training.engine").Engine(small("liquidnet")[1], training)
    good = Batch(ints(*SHAPE), ints(*SHAPE), bools(*SHAPE))
    for changed, message in [
        (
            {"tokens": np.array([[0, 1, 2], [3, 70000, 5]])},
            "token ids must be in [0, 13), got 70000 in row 1, position 1",
        ),
        (
            {"labels": np.array([[0, 1, -1], [3, 4, 5]])},
            "labels must be -100 or in [0, 13), got -1 in row 0, position 2; write -100 where a label does not count",
        ),
        ({"labels": ints(3, 2)}, "labels [b, t] must have shape (2, 3), got (3, 2); it is [t, b], transpose it"),
        ({"resets": ints(*SHAPE)}, "resets must have dtype bool, got int32"),
    ]:
        assert refusal(engine.train_step, replace(good, **changed), 1e-3) == message
        assert refusal(engine.evaluate, replace(good, **changed)) == message
