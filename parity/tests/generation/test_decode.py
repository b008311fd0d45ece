"""One token at a time: every decode method is the model, and the buffers that a CUDA graph is recorded on are right."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import numpy as np
import pytest

from parity.proof import adapters
from parity.proof.bounds import assert_within
from parity.proof.operations import expected
from parity.proof.operations.liquid_ssm import DENSE, DIAGONAL
from parity.proof.problems.cases import CONFIG, ModelCase
from spec.checkpoint.quantization import WEIGHTS, rounded

LENGTH = 7
HERE = [name for name in adapters.FRAMEWORKS if not adapters.missing(name)]
DECODERS = [(name, method) for name in HERE for method in ("auto", *adapters.load(name).METHODS["decode"])]


@dataclass(frozen=True)
class RoundedCase(ModelCase):
    """The model whose matrices are rounded."""

    weights: str = "float32"

    @property
    def parameters(self):
        return rounded(super().parameters, self.weights)


def weights_of(method):
    """What a method stores the matrices in: its name says so."""
    return next((weights for weights in WEIGHTS if method.endswith(weights)), "float32")


@pytest.mark.parametrize("prompt", [1, 3, 4])
@pytest.mark.parametrize("name, method", DECODERS)
def test_one_token_at_a_time_is_the_whole_text(name, method, prompt):
    """Rows are independent streams; logits and final states within the bound of the model over the whole text."""
    case = ModelCase(LENGTH, "none", "none", "none", True, 5)
    truth, bound = expected("model", RoundedCase(**vars(case), weights=weights_of(method)), "float32")
    tokens = case.arrays().tokens
    try:
        step = adapters.load(name).make_step(case.parameters, case.config, method)
    except NotImplementedError as error:
        pytest.skip(str(error))
    logits, states = step(tokens[:, :prompt], None)
    found = [logits]
    for position in range(prompt, LENGTH):
        logits, states = step(tokens[:, position : position + 1], states)
        assert logits.dtype == np.float32
        found.append(logits)
    results = {"logits": np.stack(found, axis=1), "last": np.asarray(states.cpu() if name == "torch" else states)}
    wanted = {"logits": truth["logits"][:, prompt - 1 :], "last": truth["last"]}
    bounds = {"logits": bound["logits"][:, prompt - 1 :], "last": bound["last"]}
    assert_within(results, wanted, bounds, f"decode, float32, {name} {method}")


@pytest.mark.parametrize("name", HERE)
def test_an_unknown_method_gets_the_nearest_one(name):
    case = ModelCase(LENGTH, "none", "none", "none", True, 5)
    known = adapters.load(name).METHODS["decode"][0]
    with pytest.raises(ValueError, match=f"unknown decode method '{known}x'; .*did you mean '{known}'"):
        adapters.load(name).make_step(case.parameters, case.config, known + "x")


@pytest.mark.skipif("jax" not in HERE, reason="torch compiles nothing here")
@pytest.mark.parametrize("config", [CONFIG, DENSE, DIAGONAL], ids=["liquidnet", "dense", "diagonal"])
def test_prompts_of_any_length_need_few_programs(config):
    """One for a token and one for each power of two, in the middle of a text as at its start."""
    case = ModelCase(LENGTH, "none", "none", "none", True, 5, config=config)
    step = adapters.load("jax").make_step(case.parameters, config)
    advance = adapters.load_module("jax", "ops.decode.jit")._advance
    before, states = advance._cache_size(), None
    for length in range(1, 18):
        _, states = step(np.ones((1, length), int), states)
    step(np.ones((1, 9), int), None)
    assert advance._cache_size() - before == 6


def test_the_twins_take_the_same_arguments():
    if len(HERE) < 2:
        pytest.skip("compares both backends")
    for function, module in (("make_step", "ops.decode"), ("choose_method", "ops.decode"), ("generate", "generation")):
        one, other = (
            inspect.signature(getattr(adapters.load_module(name, module), function), eval_str=False) for name in HERE
        )
        assert [(p.name, p.default) for p in one.parameters.values()] == [
            (p.name, p.default) for p in other.parameters.values()
        ]


torch_only = pytest.mark.skipif("torch" not in HERE, reason="the buffers are torch's")


@pytest.fixture(params=[CONFIG, DENSE, DIAGONAL], ids=["liquidnet", "dense", "diagonal"])
def model(request):
    """On the CPU, whatever else is here: what is recorded is then simply run again."""
    case = ModelCase(LENGTH, "none", "none", "none", True, 5, config=request.param)
    net = adapters.load_module("torch", "model").build(case.config)
    adapters.load_module("torch", "checkpoint.native").load_parameters(net, case.parameters)
    return net


@pytest.fixture
def decode():
    return adapters.load_module("torch", "ops.decode")


@pytest.fixture
def pair(model, decode):
    """The step on fixed buffers, the plain one, and the numbers of rows that were recorded."""
    rows = []

    def record(run):
        rows.append(len(run.tokens_bt))
        for _ in range(3):  # as the warm-up does: buffers hold anything afterwards
            run()
        return run

    return decode.graph.buffered_step(model, record), decode.make_step(model, "eager"), rows


def draw(rows, length=1, seed=0):
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, size=(rows, length))


def assert_same(one, other):
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1].numpy(), other[1].numpy())


@torch_only
def test_the_graph_needs_a_gpu(model, decode):
    assert decode.choose_method(model) != "graph"
    with pytest.raises(NotImplementedError, match="decode method 'graph' records a CUDA graph, the model is on cpu"):
        decode.make_step(model, "graph")


@torch_only
def test_buffers_hold_what_the_plain_step_returns(pair):
    buffered, eager, rows = pair
    one, other = buffered(draw(2, 5), None), eager(draw(2, 5), None)
    assert_same(one, other)
    for seed in range(4):
        tokens = draw(2, seed=seed)
        one, other = buffered(tokens, one[1]), eager(tokens, other[1])
        assert_same(one, other)
    one, other = buffered(draw(2, 3), one[1]), eager(draw(2, 3), other[1])  # more text in between
    assert_same(one, other)
    assert_same(buffered(draw(2), one[1]), eager(draw(2), other[1]))
    assert rows == [2]


@torch_only
def test_any_earlier_states_can_be_gone_on_from(pair):
    buffered, eager, _ = pair
    start = eager(draw(2, 5), None)[1]
    first = buffered(draw(2, seed=1), start)[1]
    kept = first.clone()
    second = buffered(draw(2, seed=2), first)[1]
    np.testing.assert_array_equal(first.numpy(), kept.numpy())
    for states in (first, start, second, kept):
        assert_same(buffered(draw(2, seed=3), states), eager(draw(2, seed=3), states))


@torch_only
def test_the_newest_states_are_not_copied_in_again(pair):
    """They lie in the buffer: what becomes of the copy that was handed out makes no difference."""
    torch = pytest.importorskip("torch")
    buffered, eager, _ = pair
    states = buffered(draw(2), eager(draw(2, 5), None)[1])[1]
    expected_next = eager(draw(2, seed=1), states)
    with torch.inference_mode():
        states.zero_()
    assert_same(buffered(draw(2, seed=1), states), expected_next)


@torch_only
def test_another_number_of_rows_is_recorded_anew(pair):
    buffered, eager, rows = pair
    for count in (2, 3, 1, 3):
        states = eager(draw(count, 5), None)[1]
        assert_same(buffered(draw(count, seed=1), states), eager(draw(count, seed=1), states))
    assert rows == [2, 3, 1, 3]
    with pytest.raises(ValueError, match=r"states \[l, b, n\] must have shape \(2, 2, [48]\), got \(2, 3, [48]\)"):
        buffered(draw(2), states)
    with pytest.raises(ValueError, match=r"token ids must be in \[0, 13\)"):
        buffered(draw(3) + 13, states)


@torch_only
def test_training_in_place_is_seen(pair, model):
    """Sampling happens during training; what is recorded reads the parameters where they lie."""
    torch = pytest.importorskip("torch")
    buffered, eager, rows = pair
    states = eager(draw(2, 5), None)[1]
    before = buffered(draw(2), states)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    after = buffered(draw(2), states)
    assert_same(after, eager(draw(2), states))
    assert not np.array_equal(before[0], after[0]) and rows == [2]
    with torch.no_grad():
        model.final_norm.weight.data = model.final_norm.weight * 2.0  # moved: the old place is no longer read
    assert_same(buffered(draw(2), after[1]), eager(draw(2), after[1]))
    assert rows == [2, 2]


@torch_only
def test_a_step_that_fails_leaves_no_states_to_go_on_from(model, decode):
    fail = []

    def record(run):
        def replay():
            run()
            if fail:
                raise RuntimeError(fail.pop())

        return replay

    buffered, eager = decode.graph.buffered_step(model, record), decode.make_step(model, "eager")
    states = buffered(draw(2), eager(draw(2, 5), None)[1])[1]
    fail.append("the device was lost")
    with pytest.raises(RuntimeError, match="the device was lost"):
        buffered(draw(2, seed=1), states)
    assert_same(buffered(draw(2, seed=1), states), eager(draw(2, seed=1), states))
