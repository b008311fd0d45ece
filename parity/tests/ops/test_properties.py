"""What holds for any weights: contraction, half-lives, and a sentence that goes on where it was put down."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.proof import adapters
from parity.proof.bounds import assert_within
from parity.proof.operations import OPERATIONS, expected
from parity.proof.problems.cases import CONFIG, LayerCase, ModelCase, perturbed_parameters
from parity.proof.problems.strategies import model_cases, seeds
from spec.checkpoint.format import pack, unpack
from spec.mixers.liquidnet import LONGEST_HALF_LIFE, half_life_bias
from spec.sampling import Sampling, generate

some = settings(max_examples=max(1, settings().max_examples // 4))


@some
@given(seed=seeds, values=st.sampled_from(["normal", "wide", "mixture", "small"]))
def test_the_state_contracts_for_any_weights(adapter, method, seed, values):
    """|h| <= 1 where |h_{-1}| <= 1, since |v| <= 1, whatever the pre-activations."""
    case = LayerCase((2, 31), values, seed)
    pre, bias, state, *gradients = OPERATIONS["mixer"].arrays(case)
    state, gradients = np.clip(state, -1, 1), [np.zeros_like(x) for x in gradients]
    options = {"delta_min": case.config.delta_min, "method": method}
    found = adapter.vjp("mixer", (pre, bias, state), case.masks(), gradients, **options)
    # decay + (1 - decay) is 1 within 17 u (see gates_bounds), and each of 31 steps rounds twice.
    assert np.abs(found["last"]).max() <= 1.0 + 31 * 20 * 2.0**-24
    assert np.abs(found["gated"]).max() <= 1.0 + 31 * 20 * 2.0**-24


@pytest.mark.parametrize("delta_min", [1e-6, 1e-3])
def test_half_lives_at_zero_input(adapter, method, delta_min):
    """ln 2 / (ln 2 / tau + delta_min): what is left of a state of 1 after t tokens of zeros is 2^(-t / half-life)."""
    d, t = 8, 256
    pre, bias = np.zeros((1, t, 3 * d), np.float32), half_life_bias(d)
    zeros = [np.zeros((1, t, d), np.float32), np.zeros((1, d), np.float32)]
    # The output gate is open half: sigmoid(0) = 1/2.
    inputs = pre, bias, np.ones((1, d), np.float32)
    left = 2.0 * adapter.vjp("mixer", inputs, (None, None), zeros, delta_min=delta_min, method=method)["gated"]
    tau = LONGEST_HALF_LIFE ** (np.arange(d) / (d - 1))
    half_life = math.log(2.0) / (math.log(2.0) / tau + delta_min)
    tokens = np.arange(1, t + 1)[:, None]
    truth = 2.0 ** (-tokens / half_life)
    # The bias is rounded to float32, half an ulp of 8.8 at most, which moves the rate by 2^-21 of itself; the decay
    # is within 8 u and rounds once more a step. What falls below the smallest normal number may be flushed.
    bound = truth * (tokens * (math.log(2.0) / half_life * 2.0**-21 + 9 * 2.0**-24) + 2.0**-22)
    assert_within(
        {"left": left[0]},
        {"left": truth},
        {"left": bound + 4 * np.finfo(np.float32).tiny},
        f"half-life, {adapter.NAME}",
    )


# After one token, in a chunk, before the last one: each length is a compilation.
@some
@given(case=model_cases(lengths=(31,), padding=("none",)), at=st.sampled_from((1, 10, 30)))
def test_a_state_on_disk_is_the_state(adapter, method, case, at):
    """Saved in mid-sentence as safetensors and read again, it goes on to the same bits."""
    arrays, whole = case.arrays(), {"method": method}
    parts = [(x[:, :at], x[:, at:]) for x in (arrays.tokens, arrays.resets, arrays.padding)]
    (first, *masks), (rest, *other_masks) = zip(*parts, strict=True)
    _, states = adapter.model(case.parameters, CONFIG, first, arrays.states, *masks, **whole)
    kept = unpack(pack({"states": states}))["states"]
    assert kept.dtype == states.dtype == np.float32
    one, other = (adapter.model(case.parameters, CONFIG, rest, x, *other_masks, **whole) for x in (states, kept))
    for before, after in zip(one, other, strict=True):
        np.testing.assert_array_equal(before, after)
    truth, bounds = expected("model", case, "float32")
    limits = {"logits": bounds["logits"][:, at:], "last": bounds["last"]}
    exact = {"logits": truth["logits"][:, at:], "last": truth["last"]}
    assert_within(dict(zip(exact, one, strict=True)), exact, limits, f"continued, float32, {adapter.NAME}")


def test_a_sentence_goes_on_in_the_other_backend():
    """Ten tokens in one backend, its state through a file, ten in the other: the text of either alone."""
    for name in adapters.FRAMEWORKS:
        pytest.importorskip(name, reason="hands a state over between both backends")
    params, prompt, sampling = perturbed_parameters(CONFIG, 5), np.array([[1, 2, 3]]), Sampling(seed=3)

    def text(*order: str) -> list[int]:
        """Twenty tokens, the backend and the file changing after each tenth call."""
        calls = iter(range(100))

        def step(tokens, states):
            adapter = adapters.load(order[next(calls) // 10 % len(order)])
            states = None if states is None else unpack(pack({"states": states}))["states"]
            logits, states = adapter.model(params, CONFIG, tokens.astype(np.int32), states)
            return logits[:, -1], states

        return [int(tokens[0]) for tokens in itertools.islice(generate(step, prompt, sampling), 20)]

    alone = text("torch")
    assert len(set(alone)) > 3
    assert text("jax") == text("torch", "jax") == text("jax", "torch") == alone


def test_a_model_case_is_not_trivial():
    """The contraction above would hold for a state that is always zero."""
    case = ModelCase(31, "none", "none", "none", True, 1)
    assert np.abs(expected("model", case, "float64")[0]["last"]).max() > 0.1
