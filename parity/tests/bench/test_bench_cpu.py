"""`liquidnet bench` on a processor: every section at tiny sizes, ratios by hand, the peer that it is held to."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from spec import LiquidNetConfig
from spec.parameters import num_parameters
from spec.presets import PRESETS
from tools.bench import decode as bench_decode
from tools.bench import machine, measure, results, sizes
from tools.bench.limits import targets
from tools.bench.machine import chunk_sizes, layer_shapes
from tools.bench.sizes import Decoding, Sizes, train_step
from tools.bench.timer import Timer
from tools.cli import backends

MODEL = LiquidNetConfig(vocab_size=61, d_model=16, d_ff=24, n_layers=2, max_seq_len=8)
TINY = Sizes(
    large=2**12,
    square=32,
    shapes=((2, 32, 16),),
    training=(train_step("30M, 2 x 512", MODEL, 2, 8),),
    decoding=(Decoding("small", MODEL, (3, 7), (3, 5), (1, 2), 2), Decoding("nano", MODEL, (3, 7), tokens=2)),
    scaling=MODEL,
    lengths=(4, 16),
    tokens=16,
    scaling_backends=("torch", "jax"),
)


@pytest.fixture(scope="module")
def result():
    """Every section, measured."""
    if not backends.installed():
        pytest.skip("times a backend")
    return measure.measured("cpu", 1, TINY)


def test_every_section_measures_every_method_of_every_backend(result):
    sections = result["sections"]
    assert not result["errors"], result["errors"]
    assert list(sections) == measure.sections_of("cpu") and set(measure.SECTIONS) == set(results.COLUMNS)
    for backend in backends.installed():
        for section, module in (("scan", "ops.scan"), ("mixer", "ops.gated_scan"), ("decode", "ops.decode")):
            methods = {f"{backend} {name}" for name in backends.load(backend, module).METHODS if name != "auto"}
            assert methods <= {row["name"] for row in sections[section]}
        assert {row["length"] for row in sections["growth"] if row["backend"] == backend} == {4, 16}
    json.dumps(result, allow_nan=False)
    for row in (row for rows in sections.values() for row in rows):
        assert ("milliseconds" in row) != ("not_run" in row), row


def test_what_a_machine_does_is_counted_by_hand(result):
    """A pass reads two arrays and writes one, of which each is a quarter of the bytes in float32."""
    work = {
        machine.PASS: ("bytes", 3 * 2**12),
        machine.READING: ("bytes", 2**12),
        machine.PRODUCT: ("flops", 2 * 32**3),
    }
    for name, (key, amount) in work.items():
        rows = [row for row in result["sections"]["machine"] if row["name"] == name]
        assert rows and all(row[key] == amount for row in rows), name


def test_ratios_are_of_the_bytes_that_must_move(result):
    for section, forward, both in (("scan", 12, 32), ("mixer", 16, 44)):
        passes = [row for row in result["sections"][section] if row["name"].startswith("memory pass")]
        fastest = min(row["milliseconds"] for row in passes)
        assert passes[0]["bytes"] == 12 * 2 * 32 * 16
        rows = [row for row in result["sections"][section] if "backend" in row and "milliseconds" in row]
        assert {row["bytes"] // (2 * 32 * 16) for row in rows} == {forward, both}
        for row in rows:
            assert row["passes"] == pytest.approx(row["milliseconds"] * 12 / fastest / (row["bytes"] / (2 * 32 * 16)))
    decode = [row for row in result["sections"]["decode"] if row["what"] == "small"]
    reading = max(row["gb_per_s"] for row in decode if row["name"].startswith("reading"))
    timed = [row for row in decode if "tokens_per_second" in row]
    assert {row["batch"] for row in timed} == {1, 2}
    for row in timed:
        steps = row["tokens_per_second"] / row["batch"]
        assert steps == pytest.approx(2e3 / row["milliseconds"])
        assert row["of_reading"] == pytest.approx(steps * row["bytes"] / 1e9 / reading)
    assert {row["batch"] for row in decode if "context" in row} == {1, 2}
    drawn = {row["name"].removesuffix(bench_decode.DRAWN) for row in timed if bench_decode.DRAWN in row["name"]}
    assert drawn == {row["name"] for row in timed if row.get("backend") and row["batch"] == 1} - {"torch eager"} - {
        row["name"] for row in timed if bench_decode.DRAWN in row["name"]
    }


def test_targets_are_taken_from_the_rows():
    def train(name, milliseconds):
        return {"what": "30M, 2 x 512", "name": name, "milliseconds": milliseconds}

    def decoded(name, context, speed, **more):
        return {"what": "small", "name": name, "context": context, "batch": 1, "tokens_per_second": speed,
                "milliseconds": 1.0, "backend": "torch", "auto": name == "torch numba", **more}  # fmt: skip

    def grown(length, times, kept):
        return {"name": "", "backend": "torch", "length": length, "milliseconds": 1.0, "times_first": times,
                "bytes_a_token": kept}  # fmt: skip

    sections = {
        "scan": [{"name": "torch a", "pass": "forward", "auto": True, "passes": 2.5, "milliseconds": 1.0},
                 {"name": "torch b", "pass": "forward", "auto": False, "passes": 9.0, "milliseconds": 1.0}],
        "train": [train("torch eager", 120.0), train("GPT-2, torch eager", 150.0), train("jax", 240.0),
                  train(machine.TORCH_PRODUCTS, 100.0)],
        "decode": [decoded("torch numba", 32, 400.0, of_reading=0.8), decoded("torch numba", 9, 440.0, of_reading=0.7),
                   decoded("torch numba_int8", 9, 1320.0), decoded("GPT-2, KV cache", 4096, 90.0, peer=True),
                   decoded("GPT-2, KV cache", 32, 100.0, peer=True), decoded("torch numba, tokens drawn", 9, 396.0),
                   decoded("torch numba_int8, tokens drawn", 9, 924.0)],
        "growth": [grown(512, 1.0, 100.0), grown(65536, 1.25, 100.0)],
    }  # fmt: skip
    found = {one["name"]: (round(one["measured"], 3), one["limit"], one["holds"]) for one in targets(sections)}
    assert found == {
        "scan torch a, forward: passes": (2.5, 3.0, True),
        "train 30M, 2 x 512, torch eager: x GPT-2": (1.25, 1.15, True),
        "train 30M, 2 x 512, torch eager: time / products'": (1.2, 1.25, True),
        "train 30M, 2 x 512, jax: time / torch's": (2.0, 1.5, False),
        "decode small, torch numba, 32: of reading": (0.8, 0.75, True),
        "decode small, torch numba, 9: of reading": (0.7, 0.75, False),
        "decode small, torch: time at 32 / 9": (1.1, 1.1, True),
        "decode small, torch: x GPT-2 at 4,096": (4.444, 4.0, True),
        "decode small, torch numba_int8: x float32": (3.0, 2.5, True),
        "decode small, torch numba, tokens drawn: x steps": (0.9, 0.9, True),
        "decode small, torch numba_int8, tokens drawn: x steps": (0.7, 0.75, False),
        "growth torch, T 65,536 / 512: time a token": (1.25, 1.2, False),
        "growth torch, T 65,536 / 512: memory a token": (1.0, 1.1, True),
    }
    assert targets({"scan": [{"name": "torch a", "error": "broken"}]}) == []


def test_a_timer_that_is_scripted_gives_medians_in_turn(monkeypatch):
    timer = Timer("cpu", 5)
    script = iter([0.0, 0.0] * 2 + [3.0, 8.0, 1.0, 8.0, 2.0, 8.0, 9.0, 9.0])
    monkeypatch.setattr(timer, "_wall", lambda call: next(script) / 10)
    one, other = {}, {}
    timer.steps([(one, lambda: None), (other, lambda: None)])
    # The second has had enough after three rounds, the first after five.
    assert other["milliseconds"] == 800.0 and other["rounds"] == 3
    assert one["milliseconds"] == 300.0 and one["rounds"] == 5


def test_weights_are_counted_as_they_are_stored():
    vectors = sum(16 + 16 + 16 for _ in range(2)) + 16
    matrices, rows = num_parameters(MODEL) - vectors, 61 + 2 * (48 + 16 + 48 + 16)
    assert bench_decode.weight_bytes(MODEL, "numba") == 4 * num_parameters(MODEL)
    assert bench_decode.weight_bytes(MODEL, "numba_bfloat16") == 2 * matrices + 4 * vectors
    assert bench_decode.weight_bytes(MODEL, "numba_int8") == matrices + 4 * rows + 4 * vectors


def test_the_states_of_a_context_are_those_of_its_tokens_in_one_go(monkeypatch):
    torch = pytest.importorskip("torch", reason="decodes with torch")
    generate, model = backends.load("torch", "ops.decode"), backends.load("torch", "model").build(MODEL)
    monkeypatch.setattr(bench_decode, "PIECE", 3)
    found = bench_decode.states_after(generate.make_step(model, "eager"), (8, 3))
    random = np.random.default_rng(0)
    tokens = np.concatenate([random.integers(16, size=(1, piece)) for piece in (3, 3, 2)], axis=1)
    with torch.no_grad():
        _, states = model.hidden(torch.from_numpy(tokens))
    np.testing.assert_allclose(found[8], states.numpy(), rtol=1e-5, atol=1e-7)
    assert not np.allclose(found[3], found[8])


def test_products_have_the_shapes_and_results_of_the_model(monkeypatch):
    pytest.importorskip("torch", reason="multiplies with torch")
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    class Counter(TorchDispatchMode):
        flops = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            out = operation(*args, **(kwargs or {}))
            if operation._overloadpacket in flop_registry:
                self.flops += flop_registry[operation._overloadpacket](*args, **(kwargs or {}), out_val=out)
            return out

    weights = sum(i * o for i, o in layer_shapes(MODEL)) + 61 * 16
    assert weights == sum(p.numel() for p in backends.load("torch", "model").build(MODEL).parameters() if p.ndim == 2)
    assert chunk_sizes(10, 4) == [4, 4, 2] and chunk_sizes(3, 9) == [3]
    monkeypatch.setattr(machine, "BLOCK_LOGITS", 40 * 20)
    flops = {}
    for name, make in machine.step_products(train_step("", MODEL, 2, 20)).items():
        call = make()
        if name == machine.JAX_PRODUCTS:
            call()
            continue
        with Counter() as counted:
            call()
        flops[name] = counted.flops
    # Three products of each weight with 40 tokens.
    assert flops == dict.fromkeys((machine.TORCH_PRODUCTS, machine.MM_PRODUCTS), 6 * 40 * weights)


def test_peak_memory_is_what_is_held_at_once():
    torch = pytest.importorskip("torch", reason="asks torch's allocator")
    from tools.bench.train_step import peak_bytes

    def call():
        first = torch.ones(1000)
        second = first + 1
        del first
        return second * 2

    assert 8000 <= peak_bytes(call) < 8600


@pytest.fixture
def gpt2():
    pytest.importorskip("torch", reason="the peer is in torch")
    from tools.bench import peers

    return peers


def test_the_peer_is_gpt_2_by_a_plain_formula(gpt2):
    import torch

    shape = gpt2.GPT2Shape(17, 8, 2, 2, 6)
    model = gpt2.GPT2(shape, seed=3).double()
    random = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=random)
    p = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    tokens = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])

    def norm(x, weight):
        centred = x - x.mean(-1, keepdims=True)
        return weight * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)

    x = p["embedding.weight"][tokens] + p["position.weight"][:5]
    for i in range(2):
        of = {name.removeprefix(f"blocks.{i}."): array for name, array in p.items()}
        q, k, v = np.split(norm(x, of["norm_1.weight"]) @ of["qkv.weight"].T, 3, -1)
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            scores = q[..., head] @ k[..., head].swapaxes(1, 2) / 2.0 + np.triu(np.full((5, 5), -np.inf), 1)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[..., head])
        x = x + np.concatenate(heads, -1) @ of["out.weight"].T
        up = norm(x, of["norm_2.weight"]) @ of["up.weight"].T
        x = x + up * 0.5 * (1.0 + np.vectorize(math.erf)(up / math.sqrt(2.0))) @ of["down.weight"].T
    logits = norm(x, p["norm.weight"]) @ p["embedding.weight"].T
    np.testing.assert_allclose(model(torch.from_numpy(tokens)).detach().numpy(), logits, rtol=1e-10, atol=1e-10)


def test_the_peer_has_as_many_parameters_as_ours_and_learns(gpt2):
    import torch

    for config in (sizes.NANO, PRESETS["small"]):
        with torch.device("meta"):
            shape = gpt2.equal_to(config, 64)
        d, layers = shape.d_model, shape.n_layers
        counted = layers * (12 * d * d + 2 * d) + d + shape.vocab_size * d
        assert abs(counted / num_parameters(config) - 1.0) < 0.02
    model = gpt2.GPT2(gpt2.GPT2Shape(17, 16, 2, 2, 8))
    assert model.num_parameters() == 2 * (12 * 256 + 32) + 16 + 17 * 16
    step = gpt2.train_step(model, np.arange(18).reshape(2, 9) % 17)
    losses = [step() for _ in range(30)]
    assert abs(losses[0] - math.log(17)) < 0.2 and losses[-1] < 0.9 * losses[0]


def test_the_peers_cache_changes_nothing(gpt2):
    import torch

    model = gpt2.GPT2(gpt2.GPT2Shape(17, 16, 2, 2, 9)).eval()
    for parameter in model.parameters():
        parameter.data *= 3.0
    text = np.random.default_rng(0).integers(17, size=(2, 9))
    with torch.no_grad():
        every = model(torch.from_numpy(text)).numpy()
    decoder = gpt2.Decoder(model, 2)
    np.testing.assert_allclose(decoder(text[:, :4]), every[:, 3], rtol=1e-4, atol=1e-5)
    assert decoder.bytes_a_step() == 4 * (model.num_parameters() + 16 + 2 * 2 * 2 * 16 * 4)
    for t in range(4, 9):
        np.testing.assert_allclose(decoder(text[:, t : t + 1]), every[:, t], rtol=1e-4, atol=1e-5)
    decoder.length = 4
    gpt2.decoding(decoder, 5)()
    assert decoder.length == 9
