"""Sampling: the filters against brute force, frequencies against probabilities, one seed one text in both backends."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parity.proof import adapters
from parity.proof.problems.cases import CONFIG, perturbed_parameters
from spec.data import document_resets
from spec.sampling import (
    Sampling,
    adjusted,
    check_tokens,
    complete,
    generate,
    logprobs,
    piece_starts,
    reference,
    sample,
    uniforms,
)
from torch_impl.ops import sampling as torch_sampling
from torch_impl.ops.devices import HAS_NUMBA

PROMPT = np.array([[1, 2, 3], [4, 5, 6]])


@pytest.fixture(params=["numpy", "numba"])
def drawn(request, monkeypatch):
    """What draws a token a row: NumPy, and the kernel at any size of a vocabulary."""
    if request.param == "numpy":
        return sample
    if not HAS_NUMBA:
        pytest.skip("Numba is not installed")
    monkeypatch.setattr(torch_sampling, "_SMALL", 1)
    monkeypatch.setattr(torch_sampling, "sample_in_numpy", None)
    return torch_sampling.sample


def probabilities(logits, temperature, top_k, top_p):
    """What `sample` draws from, one row, by sorted lists and sums of Python's own."""
    weights = {token: math.exp((x - max(logits)) / temperature) for token, x in enumerate(logits)}
    # Equal weights: the lower token id first.
    ranked = sorted(weights, key=lambda token: (-weights[token], token))[: top_k or None]
    total, kept, mass = math.fsum(weights[token] for token in ranked), [], 0.0
    for token in ranked:
        kept.append(token)
        mass += weights[token]
        if mass >= top_p * total:
            break
    total = math.fsum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(logits))]


def drawn_counts(rows, sampling, size):
    """How often each token is drawn by so many evenly spaced uniforms a row, [rows, v]."""
    grid = (np.arange(size) + 0.5) / size
    drawn = sample(np.repeat(rows, size, axis=0), sampling, np.tile(grid, len(rows))).reshape(len(rows), size)
    return (drawn[:, :, None] == np.arange(rows.shape[1])).sum(axis=1)


# No sum of weights comes near such a share of the whole by accident; of equal weights the halves do, exactly.
SHARES = (1.0, 0.9137, 0.75, 0.5171, 0.5, 0.25, 0.1317, 1e-9)


@pytest.mark.parametrize("v", range(1, 7))
def test_filters_against_brute_force(v):
    """Every vocabulary of up to six words of three heights, every k with every p: each token as often as it should be.

    To one draw. Ties are most of them, and so is a k that takes weight from what p is a share of.
    """
    heights = (0.0, 1.0, 2.5) if v < 5 else (0.0, 1.0)
    rows = np.array(list(itertools.product(heights, repeat=v)), np.float32)
    size, alike = 211, {}
    for k, p in itertools.product(range(v + 2), SHARES):
        counts = drawn_counts(rows, Sampling(1.0, k, p), size)
        expected = np.array([probabilities(row, 1.0, k, p) for row in rows.tolist()])
        assert np.abs(counts - size * expected).max() <= 1.0 + 1e-6, (k, p)
        assert not counts[expected == 0.0].any(), (k, p)
        alike[k, p] = (counts > 0).tobytes()
    # Each filter bites where the other has: with both, fewer are left than with either alone.
    assert v < 3 or len({alike[2, 0.5], alike[2, 1.0], alike[0, 0.5]}) == 3


def test_the_share_is_of_what_the_best_have_left():
    """Six equal words: the best three, of which two hold 0.5171; of all six, four would."""
    for k, p, left in (
        (3, 0.5171, 2),
        (0, 0.5171, 4),
        (3, 1.0, 3),
        (3, 0.34, 2),
        (3, 0.33, 1),
        (6, 0.5, 3),
        (1, 0.9, 1),
    ):
        counts = drawn_counts(np.zeros((1, 6), np.float32), Sampling(1.0, k, p), 240)
        assert counts[0].tolist() == [240 // left] * left + [0] * (6 - left), (k, p)


@given(
    logits=st.lists(st.integers(-6, 6), min_size=7, max_size=12),
    temperature=st.sampled_from([0.25, 3.0]),
    top_k=st.integers(0, 14),
    top_p=st.sampled_from([0.9137, 0.5171, 0.1317]),
)
def test_filters_of_longer_rows_at_other_temperatures(logits, temperature, top_k, top_p):
    counts = drawn_counts(np.array([logits], np.float32), Sampling(temperature, top_k, top_p), 1001)[0]
    expected = np.array(probabilities(logits, temperature, top_k, top_p))
    assert np.abs(counts - 1001 * expected).max() <= 1.0 + 1e-6
    assert not counts[expected == 0.0].any()


#: Every filter alone and with others, at three temperatures.
MODES = [
    {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    for temperature in (0.8, 1.0, 3.0)
    for top_k, top_p, min_p in ((0, 1.0, 0.0), (0, 0.95, 0.0), (50, 1.0, 0.0), (2000, 0.5, 0.0), (0, 0.9, 0.05))
]


@pytest.mark.parametrize("v", [5, 257, 1025, 5000])
def test_selecting_draws_what_sorting_does(v, drawn):
    """10,000 draws: peaked and flat logits, and such with ties; rows alone and together."""
    rng, draws = np.random.default_rng(v), 0
    for mode, scale in itertools.product(MODES, (0.01, 1.0, 8.0)):
        for rows in (1, 6):
            sampling = Sampling(**mode)
            logits = (scale * rng.standard_normal((rows, v))).astype(np.float32)
            logits = np.round(logits, 1) if rng.random() < 0.3 else logits
            for uniforms_b in rng.random((9, rows)):
                tokens_b = drawn(logits, sampling, uniforms_b)
                np.testing.assert_array_equal(tokens_b, reference.sample(logits, sampling, uniforms_b))
                draws += rows
    assert draws >= 2500


def test_no_row_draws_no_token(drawn):
    for v, mode in itertools.product((3, 2000), ({}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5})):
        assert drawn(np.zeros((0, v), np.float32), Sampling(**mode), np.zeros(0)).shape == (0,)


@pytest.mark.parametrize("v", [1, 3, 4096])
def test_of_equal_tokens_the_first_are_kept(v, drawn):
    """Whatever of them is needed: the border lies within them in any order that they are looked at."""
    logits, grid = np.zeros((1, v), np.float32), np.linspace(0.0, 1.0, 65, endpoint=False)
    for count in {1, v // 2 or 1, v - 1 or 1}:
        for sampling in (Sampling(top_k=count), Sampling(top_p=(count - 0.5) / v)):
            tokens = [int(drawn(logits, sampling, np.array([u]))[0]) for u in grid]
            assert tokens == [int(u * count) for u in grid]


def test_what_a_sum_is_rounded_by_keeps_no_more(drawn):
    """A share that the first half of the weights holds but for the last bit: one token more, and not all of them."""
    rng = np.random.default_rng(1)
    for _ in range(300):
        logits = rng.standard_normal((1, 2050))
        weights = np.exp(logits - logits.max())
        mass = float(np.partition(weights, 1025, axis=-1)[0, 1025:].sum())
        share = Sampling(top_p=float(np.nextafter(mass, np.inf) / weights.sum()))
        ranked = np.argsort(-weights[0], kind="stable")
        last = drawn(logits, share, np.array([1.0 - 2.0**-53]))[0]
        kept = np.flatnonzero(ranked == last)[0]
        # The last id that is kept may have any rank, but none after the border's.
        assert kept <= 1026


#: Rows whose limit lies where weights are hardly apart, or so far that most are nothing.
EDGES = {
    "one token": lambda rng: np.where(np.arange(3000) == 2999, 0.0, -2000.0),
    "two heights": lambda rng: rng.integers(2, size=3000) * 40.0,
    "a long tail": lambda rng: -np.arange(3000.0) / 3.0,
    "one ulp apart": lambda rng: 1.0 + rng.permutation(3000) * 2.0**-23,
    "below 2^-32, all but one": lambda rng: np.where(np.arange(3000) == 7, 0.0, -30.0 - rng.random(3000)),
    "nothing but the largest": lambda rng: np.where(np.arange(3000) < 4, 3e38, -3e38),
}


@pytest.mark.parametrize("edge", EDGES)
def test_weights_at_the_edges_are_selected_as_sorted(edge, drawn):
    rng = np.random.default_rng(5)
    uniforms_b = np.array([0.0, 2.0**-53, 0.25, 0.5, 0.999, 1.0 - 1e-9])
    for dtype, top_k, top_p, min_p, temperature in itertools.product(
        (np.float32, np.float64), (0, 1, 5, 2999), (1.0, 1.0 - 1e-9, 0.5, 1e-300), (0.0, 1.0), (1.0, 1e-6, 1e3)
    ):
        logits = np.repeat(EDGES[edge](rng).astype(dtype)[None], len(uniforms_b), axis=0)
        sampling = Sampling(temperature, top_k, top_p, min_p=min_p)
        found, wanted = drawn(logits, sampling, uniforms_b), reference.sample(logits, sampling, uniforms_b)
        np.testing.assert_array_equal(found, wanted, str(sampling))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_refused(broken, drawn):
    for place in (0, 777, 4999):
        logits = np.zeros((2, 5000), np.float32)
        logits[1, place] = broken
        for sampling in (Sampling(), Sampling(top_k=3, top_p=0.5)):
            with pytest.raises(ValueError, match="a logit that is not finite; its weights are broken"):
                drawn(logits, sampling, np.array([0.5, 0.5]))


@pytest.mark.skipif(not HAS_NUMBA, reason="Numba is not installed")
def test_the_number_of_threads_changes_no_bit_of_a_weight():
    logits, before, kept = np.random.default_rng(2).standard_normal((1, 9001)), torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            token = torch_sampling.sample(logits, Sampling(top_k=4000, top_p=0.9), np.array([0.7]))
            kept.append([token, *(array.copy() for array in torch_sampling._memory_of(9001)[:3])])
    finally:
        torch.set_num_threads(before)
    token, weight_v, _, segment_s = kept[0]
    assert np.count_nonzero(weight_v) > 1000 and segment_s.sum() > 0.0
    assert all(np.array_equal(*pair) for index in (0, 1, 3) for pair in [(kept[0][index], kept[1][index])])


def test_min_p_keeps_what_is_likely_enough():
    logits = np.log(np.array([[0.1, 0.4, 0.2, 0.3]], np.float32))
    for least, left in ((0.0, [0, 1, 2, 3]), (0.26, [1, 2, 3]), (0.51, [1, 3]), (1.0, [1])):
        counts = drawn_counts(logits, Sampling(min_p=least), 400)[0]
        assert np.flatnonzero(counts).tolist() == left
    # Of what top-k has left, and at a temperature: 0.3 / 0.4 becomes its square.
    counts = drawn_counts(logits, Sampling(temperature=0.5, top_k=3, min_p=0.57), 400)[0]
    assert np.flatnonzero(counts).tolist() == [1]
    counts = drawn_counts(logits, Sampling(temperature=0.5, top_k=3, min_p=0.56), 400)[0]
    assert np.flatnonzero(counts).tolist() == [1, 3]


def test_biases_and_penalties_are_of_the_logits():
    logits = np.array([0.5, -1.0, 2.0, 0.0], np.float32)
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=-0.25, logit_bias=((0, 100.0), (3, -7.5)))
    expected = [100.5, -1.0 - 0.5 + 3 * 0.25, 2.0, -7.5 - 0.5 + 0.25]
    np.testing.assert_array_equal(adjusted(logits, sampling, {1: 3, 3: 1}), expected)
    np.testing.assert_array_equal(adjusted(logits, Sampling(logit_bias=((2, 1.0),)), {2: 9}), [0.5, -1.0, 3.0, 0.0])
    assert adjusted(logits, Sampling(), {1: 3}) is logits
    np.testing.assert_array_equal(logits, np.array([0.5, -1.0, 2.0, 0.0], np.float32))
    with pytest.raises(ValueError, match="names token 4; the vocabulary has 4"):
        adjusted(logits, Sampling(logit_bias=((4, 1.0),)), {})


def test_penalties_count_what_was_drawn():
    """Of a model that always says the same: each row its own count, the prompt's tokens not among them."""

    def step(tokens_bt, states):
        return np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 0.0]]), None

    greedy = Sampling(temperature=0.0, frequency_penalty=0.75)
    text = complete(step, np.array([[0, 0], [1, 1]]), 8, greedy)
    assert text[:, 2:].tolist() == [[0, 0, 1, 0, 1, 2], [1, 1, 0, 1, 0, 2]]
    once = complete(step, np.array([[0], [0]]), 6, Sampling(temperature=0.0, presence_penalty=1.5))
    assert once[:, 1:].tolist() == [[0, 1, 0, 0, 0], [1, 0, 1, 1, 1]]


def test_logprobs_are_the_log_softmax():
    logits = np.array([1.0, -2.0, 3.0, 1.0, -300.0], np.float32)
    total = math.log(sum(math.exp(x) for x in logits.tolist()))
    for token, count in itertools.product(range(5), (0, 1, 3, 9)):
        own, likely = logprobs(logits, token, count)
        assert own == pytest.approx(float(logits[token]) - total, abs=1e-14)
        assert [index for index, _ in likely] == [2, 0, 3, 1, 4][:count]
        assert [value for _, value in likely] == [logprobs(logits, index, 0)[0] for index, _ in likely]


def test_pieces_of_a_prompt_are_those_of_what_it_begins_with():
    assert piece_starts(1, 4) == piece_starts(4, 4) == [0]
    assert piece_starts(5, 4) == [0, 4]
    assert piece_starts(8, 4) == [0, 4, 7]
    assert piece_starts(10, 4) == [0, 4, 8, 9]
    for length in range(5, 40):  # read from where a piece begins, the pieces are the same
        whole = piece_starts(length, 4)
        assert [start for start in whole if start % 4 == 0] == [*range(0, length, 4)] and length - 1 in whole


def test_frequencies_follow_probabilities():
    """Chi-square of 20000 draws with the stream in use.

    Laurent and Massart 2000, lemma 1: a chi-square of k degrees exceeds k + 2 sqrt(k x) + 2 x with probability below
    exp(-x); x = ln 10^6.
    """
    logits, count = np.array([2.0, 1.0, 0.0, 0.5, -1.0, 1.5], np.float32), 20_000
    draw = uniforms(7, 3, count)
    drawn = sample(np.broadcast_to(logits, (count, 6)), Sampling(temperature=0.8), draw)
    expected = count * np.array(probabilities(logits.tolist(), 0.8, 0, 1.0))
    chi_square = ((np.bincount(drawn, minlength=6) - expected) ** 2 / expected).sum()
    x, k = math.log(1e6), 5
    assert chi_square < k + 2 * math.sqrt(k * x) + 2 * x


def test_temperature_zero_takes_the_most_likely():
    logits = np.array([[0.0, 3.0, 3.0, -1.0], [5.0, -2.0, 0.0, 4.9]], np.float32)
    for draw in (0.0, 0.999):
        np.testing.assert_array_equal(sample(logits, Sampling(temperature=0.0), np.full(2, draw)), [1, 0])
    cold = sample(logits[1:], Sampling(temperature=1e-3), np.array([0.999]))
    assert cold == [0]


def test_top_k_one_and_the_ends_of_the_interval():
    logits = np.array([[-np.float32(1e30), 1.0, 2.0, 0.0]], np.float32)
    for draw in (0.0, 0.5, np.nextafter(1.0, 0.0)):
        assert sample(logits, Sampling(top_k=1), np.array([draw])) == [2]
        assert sample(logits, Sampling(top_p=1e-12), np.array([draw])) == [2]
        # A token of probability 0 is never drawn, not even at the ends.
        assert sample(logits, Sampling(), np.array([draw]))[0] in (1, 2, 3)


def test_uniforms_are_pure_functions():
    """Of seed, position and row; more rows do not change those before."""
    first = uniforms(5, 9, 4)
    uniforms(5, 10, 4)
    np.testing.assert_array_equal(uniforms(5, 9, 4), first)
    np.testing.assert_array_equal(uniforms(5, 9, 2), first[:2])
    assert ((first >= 0) & (first < 1)).all()
    others = [uniforms(6, 9, 4), uniforms(5, 10, 4)]
    assert not any(np.isin(first, other).any() for other in others)


def test_both_backends_write_one_text():
    """From one seed, in every mode; a uniform would have to fall within 1e-6 of a boundary to tell them apart."""
    reasons = [reason for reason in map(adapters.missing, adapters.FRAMEWORKS) if reason]
    if reasons:
        pytest.skip(reasons[0])
    steps = [adapters.load(name).make_step(perturbed_parameters(CONFIG, 4), CONFIG) for name in adapters.FRAMEWORKS]
    texts = []
    for mode in ({}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.8, "seed": 3}, {"temperature": 0.0}):
        one, other = (complete(step, PROMPT, 40, Sampling(**mode)) for step in steps)
        np.testing.assert_array_equal(one, other)
        assert one.shape == (2, 40) and (one[:, :3] == PROMPT).all()
        texts.append(one.tobytes())
    assert len(set(texts)) == len(texts)


def test_generation_is_the_sampled_model(adapter):
    """`generate` against the model's own logits over the whole text, in one pass."""
    params = perturbed_parameters(CONFIG, 4)
    text = adapter.generate(params, CONFIG, PROMPT, 31, seed=2)
    logits, _ = adapter.model(params, CONFIG, text)
    for position in range(3, 31):
        expected = sample(logits[:, position - 1], Sampling(seed=2), uniforms(2, position, 2))
        np.testing.assert_array_equal(text[:, position], expected)


DOCUMENTS = np.array([[1, 3, 4, 3], [5, 6, 3, 2]])
"""Two prompts that hold ends of text, id 3."""


@pytest.mark.parametrize("drawn_too", [False, True], ids=["resets of the prompt", "every end of text"])
def test_a_document_begins_anew_after_an_end_of_text(adapter, drawn_too):
    """As training has it: the state is cleared before the token after each, differently in each row."""
    params, count = perturbed_parameters(CONFIG, 4), DOCUMENTS.shape[1]
    of_prompt = document_resets(DOCUMENTS, 3)
    named = {"end_of_text_id": 3} if drawn_too else {"resets_bt": of_prompt}
    step = adapter.make_step(params, CONFIG)
    text = complete(step, DOCUMENTS, 40, Sampling(seed=2), **named)
    resets = document_resets(text, 3)
    assert resets[:, count + 1 :].any(axis=1).all(), "an end of text must be drawn in either row"
    if not drawn_too:
        resets[:, count:] = False
    logits, _ = adapter.model(params, CONFIG, text, resets=resets)
    for position in range(count, 40):
        expected = sample(logits[:, position - 1], Sampling(seed=2), uniforms(2, position, 2))
        np.testing.assert_array_equal(text[:, position], expected)
    assert not np.array_equal(text, complete(step, DOCUMENTS, 40, Sampling(seed=2)))
    if drawn_too:
        np.testing.assert_array_equal(adapter.generate(params, CONFIG, DOCUMENTS, 40, seed=2, **named), text)


def test_the_state_has_one_size(adapter):
    """Memory does not grow with the text."""
    step = adapter.make_step(perturbed_parameters(CONFIG, 4), CONFIG)
    logits, states = step(PROMPT, None)
    for _ in range(3):
        assert tuple(logits.shape) == (2, CONFIG.vocab_size)
        assert tuple(states.shape) == (CONFIG.n_layers, 2, CONFIG.d_model)
        logits, states = step(PROMPT[:, :1], states)


def test_generation_refuses_bad_input(adapter):
    params = perturbed_parameters(CONFIG, 4)
    for prompt, length, message in [
        (np.zeros((1, 0), int), 5, "at least one token"),
        (np.array([[1, 2, 3]]), 2, "max_length 2 counts the prompt, which alone has 3"),
        (np.array([[1, 13]]), 5, r"\[0, 13\), got 13 in row 0, position 1"),
        (np.array([[1.5]], np.float32), 5, "tokens must have an integer dtype, got float32"),
        (np.array([[True]]), 5, "tokens must have an integer dtype, got bool"),
        (np.array([1, 2]), 5, r"at least one token, got shape \(2,\)"),
        (np.zeros((0, 2), int), 5, r"at least one token, got shape \(0, 2\)"),
        (np.array([[1, 2]]), -1, "max_length -1 counts the prompt"),
        (np.array([[1, 2]]), 5.5, "max_length must be an integer, got 5.5"),
        (np.array([[-1, 2]]), 5, r"\[0, 13\), got -1 in row 0, position 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            adapter.generate(params, CONFIG, prompt, length)
    with pytest.raises(ValueError, match=r"end_of_text_id must be in \[0, 13\), got 13"):
        adapter.generate(params, CONFIG, PROMPT, 5, end_of_text_id=13)
    for odd in (3.0, True, "3"):
        with pytest.raises(ValueError, match="end_of_text_id must be an integer, got"):
            adapter.generate(params, CONFIG, PROMPT, 5, end_of_text_id=odd)
    for resets, message in [
        (np.zeros((2, 2), bool), r"resets \[b, t\] must have shape \(2, 3\), got \(2, 2\)"),
        (np.zeros((2, 3), np.int64), "resets must have dtype bool, got int64"),
    ]:
        with pytest.raises(ValueError, match=message):
            complete(adapter.make_step(params, CONFIG), PROMPT, 5, Sampling(), resets)
    np.testing.assert_array_equal(adapter.generate(params, CONFIG, PROMPT, 3), PROMPT)


@pytest.mark.parametrize(
    "name, value",
    [("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("top_k", -1), ("top_p", 0.0),
     ("top_p", 1.1), ("top_p", math.nan), ("seed", -1), ("seed", 2**64),
     ("seed", 1.5), ("temperature", "hot"), ("top_p", None), ("top_k", 2.5), ("top_k", True)],
)  # fmt: skip
def test_bad_values_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        Sampling(**{name: value})


def test_an_array_of_one_number_is_that_number():
    assert Sampling(np.array(0.5), np.int64(3), np.float32(0.25), np.array(7)) == Sampling(0.5, 3, 0.25, 7)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_model_is_reported(value):
    with pytest.raises(ValueError, match="not finite"):
        sample(np.array([[0.0, value]]), Sampling(), np.array([0.5]))


def test_a_step_sees_each_token_once():
    """`generate` with a model that counts: the prompt whole, then one token at a time, its own state back."""
    seen = []

    def step(tokens, states):
        seen.append((tokens.shape, states))
        return np.eye(4)[[len(seen) % 4]] * 50.0, len(seen)

    text = complete(step, np.array([[0, 1]]), 5, Sampling())
    np.testing.assert_array_equal(text, [[0, 1, 1, 2, 3]])
    assert seen[:2] == [((1, 2), None), ((1, 1), 1)]
    with pytest.raises(ValueError, match=r"at least one token, got shape \(1, 0\)"):
        next(generate(step, np.zeros((1, 0), int), Sampling()))


def test_check_tokens():
    check_tokens(np.array([[0, 12]]), 13)
    check_tokens(np.zeros((1, 0), int), 13)
