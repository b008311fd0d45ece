"""The compiled step of a processor: it reads parameters where they lie, and keeps nothing that it was given."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest

from parity.proof import adapters
from parity.proof.operations.liquid_ssm import DENSE
from parity.proof.problems.cases import CONFIG, ModelCase
from spec import LiquidNetConfig
from spec.checkpoint.quantization import WEIGHTS, rounded

torch = pytest.importorskip("torch")
pytest.importorskip("numba")

numba_decode, decoding, models, checkpoints, decode = (
    adapters.load_module("torch", name)
    for name in ("ops.decode.numba", "ops.decode", "model", "checkpoint.native", "kernels.numba.decode")
)
METHODS = [method for method in decoding.METHODS if method.startswith("numba")]
MOST = numba_decode.MOST_ROWS
# Large enough for products that threads divide between them, and of a width that no vector register divides.
WIDE = LiquidNetConfig(vocab_size=1031, d_model=201, d_ff=330, n_layers=2, max_seq_len=16)


def net(config=CONFIG, weights="float32", **options):
    parameters = ModelCase(3, "none", "none", "none", True, 5, config=config).parameters
    model = models.build(config, **options)
    checkpoints.load_parameters(model, rounded(parameters, weights))
    return model


def draw(rows, config=CONFIG, length=1, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, size=(rows, length))


def states_of(rows, config=CONFIG, seed=1):
    return np.random.default_rng(seed).standard_normal((config.n_layers, rows, config.d_state)).astype(np.float32)


def assert_near(found, model, tokens, states):
    """Off float64 by at most four times what PyTorch's operators are, and half an ulp."""
    wide = models.build(model.config, compute_dtype="float64")
    checkpoints.load_parameters(wide, checkpoints.dump_parameters(model))
    truth = decoding.make_step(wide, "eager")(tokens, np.asarray(states, np.float64))
    plain = decoding.make_step(model, "eager")(tokens, states)
    for ours, theirs, exact in zip(found, plain, truth, strict=True):
        ours, theirs, exact = (np.asarray(x, np.float64) for x in (ours, theirs, exact))
        most = 4.0 * np.abs(theirs - exact).max() + 2.0**-24 * np.abs(exact).max()
        assert np.abs(ours - exact).max() <= most


def assert_same(one, other):
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1].numpy(), other[1].numpy())


@pytest.fixture
def threads():
    """Sets how many threads PyTorch has; as many as before afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, MOST, MOST + 1, MOST + 7])
def test_any_number_of_rows(rows):
    """Up to MOST_ROWS compiled, beyond that eagerly; each row is a stream of its own."""
    model = net()
    numba = decoding.make_step(model, "numba")
    tokens, states = draw(rows), states_of(rows)
    assert_near(numba(tokens, states), model, tokens, states)
    assert_near(numba(tokens[-1:], states[:, -1:]), model, tokens[-1:], states[:, -1:])


def test_the_limit_is_kept(monkeypatch):
    seen = []
    step = decode.step
    monkeypatch.setattr(decode, "step", lambda *given: (seen.append(len(given[1])), step(*given)))
    numba = decoding.make_step(net(), "numba")
    for rows in (MOST, MOST + 1, 1):
        numba(draw(rows), states_of(rows))
    numba(draw(2, length=3), None)
    numba(draw(2), None)
    assert seen == [MOST, 1, 2]


@pytest.mark.parametrize("method", METHODS)
def test_any_number_of_threads_gives_the_same_bits(method, monkeypatch):
    """Each row of each product is one thread's; also where none of the products counts as small."""
    monkeypatch.setattr("numba.set_num_threads", lambda count: None)  # of which there may be fewer
    step = decoding.make_step(net(WIDE), method)
    for rows in (1, MOST):
        tokens, states, results = draw(rows, WIDE), states_of(rows, WIDE), []
        for count in (1, 2, 3):
            monkeypatch.setattr(numba_decode, "threads", partial(int, count))
            results.append(step(tokens, states))
        for result in results[1:]:
            assert_same(result, results[0])
    assert_near(results[0], net(WIDE, weights_of(method)), tokens, states)


def weights_of(method):
    return next(weights for weights in reversed(WEIGHTS) if method.endswith(weights) or weights == "float32")


def test_parameters_are_read_where_they_lie():
    model = net()
    numba = decoding.make_step(model, "numba")
    tokens, states = draw(2), states_of(2)
    before = numba(tokens, states)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    after = numba(tokens, states)
    assert_near(after, model, tokens, states)
    assert np.abs(after[0] - before[0]).max() > 1e-3
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.1  # moved: the old place is no longer read
    assert_near(numba(tokens, states), model, tokens, states)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_what_is_packed_is_read_once(weights):
    """A model that is not rounded stays as it is, and its prompts go through one that is."""
    model, fit = net(), net(weights=weights)
    step, eager = decoding.make_step(model, f"numba_{weights}"), decoding.make_step(fit, "eager")
    plain = decoding.make_step(model, "eager")(draw(2, length=4), None)
    with torch.no_grad():
        before = [parameter.clone() for parameter in model.parameters()]
    one, other = step(draw(2, length=4), None), eager(draw(2, length=4), None)
    assert_same(one, other)
    assert np.abs(one[0] - plain[0]).max() > 1e-4
    assert_near(step(draw(2), one[1]), fit, draw(2), one[1])
    for parameter, copy in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, copy)


@pytest.mark.parametrize("method", METHODS)
def test_states_are_copies(method):
    """Any earlier ones can be gone on from, as an array or as the framework's own; none is written to."""
    step = decoding.make_step(net(), method)
    start = states_of(2)
    kept = start.copy()
    first = step(draw(2, seed=1), start)
    second = step(draw(2, seed=2), first[1])
    np.testing.assert_array_equal(start, kept)
    assert_same(step(draw(2, seed=1), start), first)
    assert_same(step(draw(2, seed=1), torch.tensor(start)), first)
    assert_same(step(draw(2, seed=2), first[1].numpy()), second)
    assert_same(step(draw(2, seed=1), None), step(draw(2, seed=1), np.zeros_like(start)))
    strided = np.asfortranarray(start)
    assert_same(step(draw(2, seed=1), strided), first)


def test_threads_may_share_a_step(threads):
    threads(2)
    step = decoding.make_step(net(WIDE), "numba")
    cases = [(draw(rows, WIDE, seed=seed), states_of(rows, WIDE, seed)) for seed in range(4) for rows in (1, 3)]
    wanted, wrong = [step(*case) for case in cases], []

    def work(offset):
        for i in range(40):
            at = (i + offset) % len(cases)
            logits, states = step(*cases[at])
            if not (np.array_equal(logits, wanted[at][0]) and torch.equal(states, wanted[at][1])):
                wrong.append(at)

    workers = [threading.Thread(target=work, args=(offset,)) for offset in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


FORKS = """
import os, sys
import numpy as np, torch
from spec import LiquidNetConfig
from torch_impl.ops.decode import make_step
from torch_impl import LiquidNet
torch.set_num_threads(1)
step = make_step(LiquidNet(LiquidNetConfig(vocab_size=1031, d_model=200, d_ff=330, n_layers=2)), "numba")
token = np.asarray([[3]])
wanted, states = step(token, None)
if (child := os.fork()) == 0:
    os._exit(0 if np.array_equal(step(token, None)[0], wanted) else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a process")
def test_one_thread_survives_a_fork():
    """Where it has begun no pool of threads, the process that is forked misses none."""
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("path", ["embedding.weight", "blocks.1.mixer.input.weight", "blocks.0.mixer.decay_bias",
                                  "blocks.0.mlp.input.weight", "blocks.1.mlp_norm.weight"])  # fmt: skip
def test_what_is_not_a_number_is_not_hidden(path):
    """Broken weights reach the logits, where sampling refuses them."""
    model = net()
    with torch.no_grad():
        dict(model.named_parameters())[path].view(-1)[:] = float("nan")
    assert not np.isfinite(decoding.make_step(model, "numba")(draw(1), states_of(1))[0]).all()


def test_a_saturated_gate_keeps_or_forgets():
    """Far out on either side: alpha is c, or 0, and 1 - alpha is as accurate as alpha."""
    model = net()
    numba = decoding.make_step(model, "numba")
    for bias in (-1e4, -80.0, -16.0, 16.0, 80.0, 1e4):
        with torch.no_grad():
            for block in model.blocks:
                block.mixer.decay_bias.fill_(bias)
        assert_near(numba(draw(2), states_of(2)), model, draw(2), states_of(2))


def test_what_cannot_be_is_refused():
    step = decoding.make_step(net(), "numba")
    with pytest.raises(ValueError, match=r"states \[l, b, n\] must have shape \(2, 2, 8\), got \(2, 3, 8\)"):
        step(draw(2), states_of(3))
    with pytest.raises(ValueError, match=r"token ids must be in \[0, 13\)"):
        step(draw(2) + 13, states_of(2))
    with pytest.raises(ValueError, match="tokens must have shape"):
        step(np.zeros((0, 1), int), None)
    for method in METHODS:
        with pytest.raises(NotImplementedError, match="steps a LiquidNet, the model is a Liquid SSM"):
            decoding.make_step(net(DENSE), method)
        for dtype in ("float64", "bfloat16"):
            with pytest.raises(NotImplementedError, match=f"computes in float32, the model in {dtype}"):
                decoding.make_step(net(compute_dtype=dtype), method)
        with pytest.raises(NotImplementedError, match="runs on processors, the model is on meta"):
            decoding.make_step(net().to("meta"), method)
    model = net()
    step = decoding.make_step(model, "numba")
    model.double()
    with pytest.raises(NotImplementedError, match=r"reads contiguous float32 .*; embedding\.weight is not"):
        step(draw(2), states_of(2))
    broken = net()
    with torch.no_grad():
        broken.embedding.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match="a weight is not finite, so it has no int8"):
        decoding.make_step(broken, "numba_int8")


@pytest.mark.parametrize("weights", WEIGHTS)
def test_auto_takes_what_the_weights_are_rounded_to(weights):
    model = net(weights=weights)
    chosen = "numba" if weights == "float32" else f"numba_{weights}"
    assert decoding.choose_method(model, weights) == chosen
    assert_same(
        decoding.make_step(model, weights=weights)(draw(2), states_of(2)),
        decoding.make_step(model, chosen)(draw(2), states_of(2)),
    )
    for other in (net(DENSE), net(compute_dtype="float64"), net(compute_dtype="bfloat16")):
        assert decoding.choose_method(other, weights) == "eager"
    for name in adapters.FRAMEWORKS:
        if adapters.missing(name) is None:
            with pytest.raises(ValueError, match=r"unknown weights 'int9'; .*did you mean 'int8'"):
                adapters.load_module(name, "ops.decode").make_step(model, weights="int9")
