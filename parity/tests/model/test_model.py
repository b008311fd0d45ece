"""Whole models after noise on every parameter: logits, loss, every gradient and the states against the reference."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.proof import adapters, operations
from parity.proof.bounds import assert_within, double_bound, select
from parity.proof.operations import OPERATIONS, expected
from parity.proof.problems.cases import BATCH, CONFIG, LENGTHS, ModelCase, perturbed_parameters
from parity.proof.problems.strategies import model_cases, seeds
from spec import LiquidNetConfig
from spec.reference import forward

few = settings(max_examples=max(1, settings().max_examples // 10))
some = settings(max_examples=max(1, settings().max_examples // 4))
pytestmark = pytest.mark.usefixtures("native_methods")
SHORT = (1, 2, 3, 31)
ROW = CONFIG.vocab_size


def check(adapter, case, method="auto", dtype="float64", **options):
    """Everything that a model gives, within its bounds; `options` go to the loss."""
    operations.check("model", adapter.NAME, method, dtype, case, **options)


def check_outputs(case, logits, last, dtype, label):
    """Logits and last states alone."""
    truth, bounds = expected("model", case, dtype)
    found = {"logits": logits, "last": last}
    assert_within(found, *select(found, truth, bounds), f"{label}, {dtype}")


def run(adapter, case, **options):
    """(logits, last states) of the case."""
    arrays = case.arrays()
    inputs = arrays.tokens, arrays.states, arrays.resets, arrays.padding
    return adapter.model(case.parameters, case.config, *inputs, **options)


@pytest.mark.parametrize("length", LENGTHS)
@few
@given(data=st.data())
def test_everything_in_float64(adapter, method, length, data):
    check(adapter, data.draw(model_cases(lengths=(length,)), label="case"), method, "float64")


@pytest.mark.parametrize("length", LENGTHS)
@few
@given(data=st.data())
def test_everything_in_float32(adapter, length, data):
    """Each length with one method in turn, all being equal in float64: a compilation takes seconds."""
    methods = adapter.METHODS["scan"]
    method = methods[LENGTHS.index(length) % len(methods)]
    check(adapter, data.draw(model_cases(lengths=(length,)), label="case"), method, "float32")


@pytest.mark.long
@pytest.mark.parametrize("length", LENGTHS)
@few
@given(data=st.data())
def test_everything_in_float32_with_every_method(adapter, method, length, data):
    check(adapter, data.draw(model_cases(lengths=(length,)), label="case"), method, "float32")


@pytest.mark.parametrize(
    "config",
    [
        LiquidNetConfig(vocab_size=2, d_model=2, d_ff=1, n_layers=1),
        LiquidNetConfig(vocab_size=5, d_model=7, d_ff=3, n_layers=3, delta_min=0.0, norm_eps=1e-2),
    ],
)
def test_other_configurations(adapter, config):
    for seed in range(3):
        check(adapter, ModelCase(3, "some", "none", "some", False, seed, config=config))


@pytest.mark.parametrize(
    "options",
    [
        {"remat": True},
        {"loss_method": "full"},
        {"loss_method": "chunked", "chunk": 7 * ROW},
        {"loss_method": "chunked", "chunk": 1, "remat": True},
    ],
    ids=lambda options: ", ".join(f"{name} {value}" for name, value in options.items()),
)
def test_remat_and_loss_chunks_change_nothing(adapter, options):
    """Chunks of 7 rows do not divide the 62 labels; a chunk of one logit still takes one whole row."""
    for seed in range(3):
        check(adapter, ModelCase(31, "some", "left", "some", False, seed), **options)


def test_no_chunk_holds_more_rows_than_it_may(adapter, monkeypatch):
    losses = adapters.load_module(adapter.NAME, "ops.cross_entropy")
    rows, usual = [], losses.full

    def count(hidden, *rest):
        rows.append(hidden.shape[0])
        return usual(hidden, *rest)

    monkeypatch.setattr(losses, "full", count)
    case = ModelCase(31, "none", "none", "some", True, 1)
    check(adapter, case, "auto", "float32", remat=True, chunk=5 * ROW, loss_method="chunked")
    assert max(rows) == 5


@pytest.mark.parametrize("compute_dtype", ["float64", "float32"])
@few
@given(case=model_cases(lengths=(31,)))
def test_decoding_token_by_token_equals_one_pass(adapter, method, compute_dtype, case):
    arrays, states, logits = case.arrays(), case.arrays().states, []
    for t in range(case.length):
        tokens, resets, padding = (x[:, t : t + 1] for x in (arrays.tokens, arrays.resets, arrays.padding))
        options = {"method": method, "compute_dtype": compute_dtype}
        one, states = adapter.model(case.parameters, case.config, tokens, states, resets, padding, **options)
        logits.append(one)
    check_outputs(case, np.concatenate(logits, axis=1), states, compute_dtype, "decoding")


@some
@given(data=st.data())
def test_split_anywhere_equals_whole(adapter, method, data):
    parts = data.draw(st.lists(st.sampled_from(SHORT), min_size=2, max_size=4), label="parts")
    case = data.draw(model_cases(lengths=(sum(parts),)), label="case")
    arrays, states, logits, start = case.arrays(), case.arrays().states, [], 0
    for length in parts:
        inputs = (x[:, start : start + length] for x in (arrays.tokens, arrays.resets, arrays.padding))
        tokens, resets, padding = inputs
        options = {"method": method, "compute_dtype": "float64"}
        some_logits, states = adapter.model(case.parameters, case.config, tokens, states, resets, padding, **options)
        logits.append(some_logits)
        start += length
    check_outputs(case, np.concatenate(logits, axis=1), states, "float64", "split")


@some
@given(seed=seeds, other=seeds, at=st.integers(1, 30))
def test_a_reset_starts_a_fresh_document(adapter, method, seed, other, at):
    """Equal to the document alone; and no bit of what stands before it, the initial state included, gets through."""
    case = ModelCase(31, "none", "none", "none", False, seed)
    arrays, before = case.arrays(), ModelCase(31, "some", "some", "none", False, other).arrays()
    resets = np.arange(31)[None, :] == at
    early = np.arange(31) < at
    tokens = np.where(early, before.tokens, arrays.tokens)
    changed = (tokens, before.states, np.where(early, before.resets, resets), early & before.padding)
    original = (arrays.tokens, arrays.states, np.broadcast_to(resets, (BATCH, 31)), arrays.padding)
    (one, last), (two, last_too) = (
        adapter.model(case.parameters, CONFIG, *x, method=method) for x in (original, changed)
    )
    np.testing.assert_array_equal(one[:, at:], two[:, at:])
    np.testing.assert_array_equal(last, last_too)
    logits, states = adapter.model(case.parameters, CONFIG, *changed, method=method, compute_dtype="float64")
    expected = dict(zip(("logits", "last"), forward(case.parameters, CONFIG, arrays.tokens[:, at:]), strict=True))
    limits = {name: double_bound(x) for name, x in expected.items()}
    assert_within({"logits": logits[:, at:], "last": states}, expected, limits, "fresh document, float64")


@some
@given(seed=seeds, other=seeds, real=st.tuples(st.integers(1, 31), st.integers(1, 31)))
def test_left_padding_changes_no_logit(adapter, method, seed, other, real):
    """Each row equals its tokens alone, whatever its padding holds and however much there is of it."""
    case = ModelCase(31, "none", "none", "none", False, seed)
    arrays, filling = case.arrays(), ModelCase(31, "some", "none", "none", False, other).arrays()
    padding = np.arange(31) < 31 - np.array(real)[:, None]
    tokens = np.where(padding, filling.tokens, arrays.tokens)
    resets = padding & filling.resets
    inputs = [(x, arrays.states, y, padding) for x, y in ((tokens, resets), (arrays.tokens, arrays.resets))]
    (one, last), (two, last_too) = (adapter.model(case.parameters, CONFIG, *x, method=method) for x in inputs)
    np.testing.assert_array_equal(one[~padding], two[~padding])
    np.testing.assert_array_equal(last, last_too)
    logits, states = adapter.model(case.parameters, CONFIG, *inputs[0], method=method, compute_dtype="float64")
    for row, count in enumerate(real):
        alone = forward(case.parameters, CONFIG, tokens[row : row + 1, -count:], arrays.states[:, row : row + 1])
        expected = dict(zip(("logits", "last"), alone, strict=True))
        limits = {name: double_bound(x) for name, x in expected.items()}
        actual = {"logits": logits[row : row + 1, -count:], "last": states[:, row : row + 1]}
        assert_within(actual, expected, limits, "left padding, float64")


@some
@given(case=model_cases(lengths=(31,)), other=seeds, at=st.integers(1, 30))
def test_the_future_changes_no_bit(adapter, method, case, other, at):
    arrays, after = case.arrays(), ModelCase(31, "some", "some", "none", False, other).arrays()
    late = np.arange(31) >= at
    tokens, resets, padding = (
        np.where(late, getattr(after, name), getattr(arrays, name)) for name in ("tokens", "resets", "padding")
    )
    logits, _ = run(adapter, case, method=method)
    changed, _ = adapter.model(case.parameters, CONFIG, tokens, arrays.states, resets, padding, method=method)
    np.testing.assert_array_equal(changed[:, :at], logits[:, :at])


@some
@given(case=model_cases(lengths=(31,)), other=seeds)
def test_rows_do_not_mix(adapter, method, case, other):
    """Rows in another order give the same rows in that order; a changed row changes no bit of the other."""
    arrays = case.arrays()
    tokens, resets, padding = (x[::-1].copy() for x in (arrays.tokens, arrays.resets, arrays.padding))
    states = arrays.states[:, ::-1].copy()
    inputs = case.parameters, CONFIG, tokens, states, resets, padding
    logits, last = adapter.model(*inputs, method=method, compute_dtype="float64")
    check_outputs(case, logits[::-1], last[:, ::-1], "float64", "rows permuted")
    tokens = arrays.tokens.copy()
    tokens[1] = ModelCase(31, "none", "none", "none", True, other).arrays().tokens[1]
    logits, _ = run(adapter, case, method=method)
    changed, _ = adapter.model(
        case.parameters, CONFIG, tokens, arrays.states, arrays.resets, arrays.padding, method=method
    )
    np.testing.assert_array_equal(changed[0], logits[0])


def test_bfloat16_is_as_good_in_one_backend_as_in_the_other():
    """Errors against float64 as root mean squares over three models: within a factor 2, and of bfloat16's size."""
    reasons = [reason for reason in map(adapters.missing, adapters.FRAMEWORKS) if reason]
    if reasons:
        pytest.skip(reasons[0])
    config = LiquidNetConfig(vocab_size=64, d_model=32, d_ff=48, n_layers=2, max_seq_len=63)
    errors = {}
    for name in adapters.FRAMEWORKS:
        squares: dict[str, float] = {}
        for seed in range(3):
            case = ModelCase(63, "some", "left", "some", False, seed, config=config)
            results = OPERATIONS["model"].run(adapters.load(name), case, "auto", "bfloat16")
            assert results["logits"].dtype == results["last"].dtype == np.float32
            for tensor, truth in expected("model", case, "float64")[0].items():
                found = results[tensor]
                shard = ((found - truth) ** 2).mean() / (truth**2).mean()
                squares[tensor] = squares.get(tensor, 0.0) + shard / 3
        errors[name] = {tensor: square**0.5 for tensor, square in squares.items()}
    for tensor, one in errors["torch"].items():
        other = errors["jax"][tensor]
        assert 0.5 <= one / other <= 2.0, f"{tensor}: {one:.2e} in torch, {other:.2e} in JAX"
        # A rounding of bfloat16 is 2^-9; float32 compute would leave 2^-24.
        assert min(one, other) > 2.0**-14 and max(one, other) < 2.0**-3, f"{tensor}: {one:.2e}, {other:.2e}"


def test_no_state_is_a_zero_state(adapter):
    case = ModelCase(3, "none", "none", "none", True, 5)
    arrays = case.arrays()
    plain, masked = adapter.model(case.parameters, CONFIG, arrays.tokens), run(adapter, case)
    for one, other in zip(plain, masked, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("token", [-1, 13])
def test_a_token_outside_the_vocabulary_is_no_other_token(adapter, token):
    """PyTorch raises; compiled JAX cannot, and marks every number that depends on it."""
    tokens = np.array([[1, 2, token, 3]], np.int32)
    try:
        logits, states = adapter.model(perturbed_parameters(CONFIG, 0), CONFIG, tokens)
    except (ValueError, IndexError):
        return
    assert np.isfinite(logits[:, :2]).all() and np.isnan(logits[:, 2:]).all() and np.isnan(states).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "chunkde"}, "unknown mixer method 'chunkde'.*did you mean 'chunked'"),
        ({"compute_dtype": "bfloat61"}, "unknown compute dtype 'bfloat61'.*did you mean 'bfloat16'"),
    ],
)
def test_unknown_names_raise(adapter, options, message):
    with pytest.raises(ValueError, match=message):
        adapter.model(perturbed_parameters(CONFIG, 0), CONFIG, np.zeros((1, 2), np.int32), **options)


def test_an_unknown_loss_method_raises(adapter):
    case = ModelCase(2, "none", "none", "none", True, 0)
    with pytest.raises(ValueError, match=r"unknown loss method 'fulll'.*did you mean 'full'"):
        adapter.loss_and_gradients(case.parameters, CONFIG, *case.arrays(), loss_method="fulll")


def test_both_operands_of_the_logits_are_rounded(adapter):
    """To the compute dtype, whatever multiplies them: what they were before they were rounded cannot show."""
    head = adapters.load_module(adapter.NAME, "ops.cross_entropy").lm_head
    random = np.random.default_rng(0)
    wide = [random.standard_normal(shape).astype(np.float32) for shape in ((3, 32), (64, 32))]
    narrow = [x.astype(ml_dtypes.bfloat16).astype(np.float32) for x in wide]
    if adapter.NAME == "torch":
        compute, own = adapters.load_module("torch", "layers").torch.bfloat16, adapter._tensors
    else:
        compute, own = ml_dtypes.bfloat16, lambda *arrays: arrays
    truth = np.asarray(head(*own(*narrow), compute))
    for hidden in (wide[0], narrow[0]):
        for embedding in (wide[1], narrow[1]):
            np.testing.assert_array_equal(np.asarray(head(*own(hidden, embedding), compute)), truth)


def test_logits_of_a_bfloat16_model_are_not_rounded_to_bfloat16(adapter):
    """Products in bfloat16, sums in float32: hardly a logit is a number of bfloat16."""
    random = np.random.default_rng(0)
    config = LiquidNetConfig(vocab_size=64, d_model=32, d_ff=48, n_layers=1)
    tokens = random.integers(0, 64, size=(2, 7)).astype(np.int32)
    logits, _ = adapter.model(perturbed_parameters(config, 1), config, tokens, compute_dtype="bfloat16")
    assert logits.dtype == np.float32
    assert (logits == logits.astype(ml_dtypes.bfloat16).astype(np.float32)).mean() < 0.1
