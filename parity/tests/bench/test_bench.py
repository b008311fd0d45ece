"""`liquidnet bench` and `make gpu-check`: everything that a GPU runs, at tiny sizes on the CPU."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from spec import LiquidNetConfig
from spec.config import TrainingConfig
from tools.bench import gpu_check, measure, results, train_step
from tools.bench import sizes as bench_sizes
from tools.bench.sizes import Decoding, Sizes, TrainStep
from tools.bench.timer import NotRun, Row, Timer, bandwidth, guarded
from tools.cli import backends
from tools.cli.main import main

MODEL = LiquidNetConfig(vocab_size=61, d_model=16, d_ff=24, n_layers=2, max_seq_len=8)
TINY = Sizes(
    gpu=True,
    large=2**12,
    square=16,
    shapes=((2, 8, 16), (1, 32, 16)),
    training=(TrainStep("", MODEL, TrainingConfig(batch_size=2, seq_len=8, compute_dtype="bfloat16")),),
    decoding=tuple(Decoding("", MODEL, batches=(n,), tokens=2, compute_dtype="bfloat16") for n in (1, 3)),
    peers=True,
)


def test_flags_that_mean_nothing_are_refused(refused):
    assert "unknown --device 'cdua'; choose cpu or cuda" in refused("bench", "--device", "cdua")
    assert "--preset, --batch-size and --seq-len go with" in refused("bench", "--preset", "tiny")
    for flag in ("--roofline", "--model"):
        assert "leave out --device" in refused("bench", flag, "--device", "cuda")
    assert "did you mean 'small'?" in refused("bench", "--model", "--preset", "smal")
    assert "batch_size must be an integer of at least 1, got 0" in refused("bench", "--model", "--batch-size", "0")
    assert "--rounds must be at least 1" in refused("bench", "--rounds", "0")


def test_without_a_gpu_one_line_says_what_to_do(refused):
    torch = pytest.importorskip("torch", reason="says what torch finds")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "torch finds no GPU here; install a CUDA or ROCm build" in refused("bench", "--device", "cuda")
    assert "torch finds no GPU here" in refused("--json", "never", command=gpu_check.main)


@pytest.fixture(scope="module")
def measured():
    """Every section at tiny sizes on the CPU."""
    pytest.importorskip("torch", reason="times torch")
    return measure.measured("cpu", 2, TINY)


def test_every_section_measures_every_method(measured):
    sections = measured["sections"]
    assert not measured["errors"] and list(sections) == measure.sections_of("gpu")
    for section, module in (("scan", "ops.scan"), ("mixer", "ops.gated_scan"), ("loss", "ops.cross_entropy")):
        methods = {name for name in backends.load("torch", module).METHODS if name != "auto"}
        assert methods <= {row["name"] for row in sections[section]}
    for section in ("scan", "mixer"):
        timed = [row for row in sections[section] if "milliseconds" in row]
        assert {"sequential", "chunked"} <= {row["name"] for row in timed}
        for row in timed:
            assert row["gb_per_s"] > 0 and row["of_copy"] > 0, row
    (chunked,) = [row for row in sections["mixer"]
                  if (row["name"], row["pass"], row["shape"]) == ("chunked", "forward", (2, 8, 16))]  # fmt: skip
    assert chunked["bytes"] == 8 * 2 * 8 * 16
    (step,) = [row for row in sections["train"] if row["name"] == "liquidnet, eager"]
    assert step["tokens_per_second"] == pytest.approx(16e3 / step["milliseconds"]) and step["mfu_of_measured"] > 0
    assert {row["batch"] for row in sections["decode"] if "tokens_per_second" in row} == {1, 3}
    json.dumps(measured, allow_nan=False)


def test_what_does_not_run_here_says_why(measured):
    rows = [row for rows in measured["sections"].values() for row in rows]
    peers = [row for row in rows if row["name"].startswith(("fla", "mamba", "accelerated", "transformers"))]
    assert len(peers) > 8
    for row in peers:
        assert "milliseconds" in row or len(row["not_run"]) > 10, row


def test_what_was_measured_is_printed(measured, capsys):
    results.show(measured)
    shown = capsys.readouterr().out
    assert "mixer, 2 x 8 x 16" in shown and "chunked" in shown and "tokens/s" in shown


def test_a_section_or_a_method_that_fails_leaves_the_others_alone(monkeypatch, tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="times torch")
    from tools.bench import peers

    scans = backends.load("torch", "ops.scan").METHODS

    def fail(*_):
        raise RuntimeError("a fault of the\ndevice")

    monkeypatch.setitem(scans, "chunked", fail)
    monkeypatch.setitem(peers.SCANS, "a peer", fail)
    sections = {name: measure.SECTIONS[name] for name in ("peak", "scan", "decode")}
    monkeypatch.setattr(measure, "SECTIONS", {**sections, "train": measure.Section(fail)})
    monkeypatch.setattr(measure, "require_device", lambda _: None)
    monkeypatch.setattr(bench_sizes, "on_gpu", lambda *_: TINY)
    real = measure.measured
    monkeypatch.setattr(measure, "measured", lambda _, *rest: real("cpu", *rest))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--device", "cuda", "--rounds", "1", "--json", str(tmp_path / "gpu.json")])
    assert stop.value.code == 1
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["sections"]["train"] == [{"name": "train", "error": "RuntimeError: a fault of the device"}]
    sequential = [row for row in result["sections"]["scan"] if row["name"] == "sequential"]
    assert sequential and all("milliseconds" in row for row in sequential)
    assert any("tokens_per_second" in row for row in result["sections"]["decode"])
    assert any(error.startswith("scan: chunked: RuntimeError") for error in result["errors"])
    assert any(row["name"] == "a peer" and "error" in row for row in result["sections"]["scan"])
    assert not any("a peer" in error for error in result["errors"])
    assert "a fault of the device" in capsys.readouterr().out


@pytest.mark.parametrize("fails", [(), (True,), (True, False)])
def test_a_section_that_fails_is_measured_again_without_peers(fails, monkeypatch):
    """Each time in a process of its own; what the first one said stays."""
    asked = []

    class Process:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def submit(self, measure_rows, name, device, rounds, sizes):
            asked.append(sizes)
            with_peers = sizes.peers
            fault = {"name": "a", "error": f"fault, {with_peers}"} if with_peers in fails else {"name": "a"}
            return SimpleNamespace(result=lambda: [fault])

    monkeypatch.setattr(measure, "ProcessPoolExecutor", Process)
    rows = measure._in_own_process("scan", "cuda", 3, TINY)
    assert asked == [TINY, replace(TINY, peers=False)][: 1 + bool(fails)]
    beside = [{"name": "beside peers", "peer": True, "error": "fault, True"}] if fails else []
    last = {"name": "a", "error": "fault, False"} if False in fails else {"name": "a"}
    assert rows == [last, *beside]


def test_a_mamba_is_timed_beside_the_others_where_peers_are(monkeypatch):
    pytest.importorskip("torch", reason="the peer is torch's")
    monkeypatch.setattr(train_step, "_configuration", lambda timer, sizes, step: [{"name": "ours"}])
    monkeypatch.setattr(train_step, "_beside_mamba", lambda timer, sizes, mamba: [{"name": f"mamba {mamba}"}])
    for sizes, found in (
        (replace(TINY, gpu=False, mamba=(1, 8)), ["ours", "mamba (1, 8)"]),
        (replace(TINY, gpu=False, mamba=(1, 8), peers=False), ["ours"]),
        (replace(TINY, gpu=True, mamba=(1, 8)), ["ours"]),
    ):
        assert [row["name"] for row in train_step.train_steps(Timer("cpu", 1), sizes)] == found


def test_a_peers_step_clips_as_ours_does():
    torch = pytest.importorskip("torch", reason="peers are torch's")
    from tools.bench import peers

    model = torch.nn.Linear(3, 1, bias=False)
    before = model.weight.detach().clone()
    step = peers._optimizer_step(
        model, lambda: (1e3 * model.weight).sum(), torch.optim.SGD(model.parameters(), lr=1.0), 0.5
    )
    step()
    assert torch.linalg.vector_norm(model.weight.detach() - before).item() == pytest.approx(0.5, rel=1e-4)
    assert model.weight.grad is None


def test_reasons_stand_in_order(capsys):
    names = [f"method {letter}" for letter in "cafebd"]
    rows = [{"name": name, "not_run": "needs a GPU"} for name in names for _ in range(2)]
    results.show_table(Console(width=200), "scan", {"ms": "milliseconds"}, rows)
    shown = [line.strip() for line in capsys.readouterr().out.splitlines() if "needs a GPU" in line]
    assert shown == [f"{name}: not run: needs a GPU" for name in sorted(names)]


def test_what_cannot_run_is_no_error():
    lack = RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    for reason in (ImportError("no fla"), NotImplementedError("needs a GPU"), NotRun("t 3"), lack, MemoryError()):
        row = {}

        def raises(reason=reason):
            raise reason

        assert guarded(row, raises) is None and set(row) == {"not_run"}


def test_slow_candidates_sit_out_and_fast_ones_get_their_rounds(monkeypatch):
    timer, calls, waited = Timer("cpu", 10), [], []
    slow: Row = {"bytes": 10}
    fast: Row = {"bytes": 10}
    monkeypatch.setattr(timer, "_wall", lambda call: call() or 0.0)
    timer.steps([(slow, lambda: waited.append(1) or 9.0), (fast, lambda: calls.append(1))])
    # Two calls to warm up, one of what takes long.
    assert slow["rounds"] == 3 and len(waited) == 4 and fast["rounds"] == 10 and len(calls) == 12
    assert slow["milliseconds"] == 9000.0
    fast["milliseconds"] = 1.0
    bandwidth([slow, fast], fast)
    assert fast["of_copy"] == 1.0 and slow["of_copy"] == pytest.approx(1 / 9000)


def test_a_peer_that_needs_powers_of_two_says_so():
    torch = pytest.importorskip("torch", reason="peers are torch's")
    from tools.bench import peers

    with pytest.raises(NotRun, match="powers of two, got 3"):
        peers.SCANS["accelerated-scan warp"]([torch.ones(1, 3, 4)] * 2)


def test_gpu_check_reads_what_pytest_said(tmp_path, capfd):
    file = tmp_path / "test_planted.py"
    file.write_text(
        "import pytest\n"
        "def test_torch_right(): pass\n"
        "def test_torch_wrong(): assert 1 == 2\n"
        "def test_jax_not_asked_for(): assert False\n"
        "@pytest.mark.skip(reason='of another make')\n"
        "def test_torch_skipped(): pass\n"
    )
    result = gpu_check.run_tests([str(file)])
    assert result["exit_code"] == 1 and result["tests"] == 3
    (failed,) = result["failed"]
    assert failed["test"].endswith("::test_torch_wrong") and "assert 1 == 2" in failed["message"]
    assert result["skipped"] == {"of another make": 1}
    assert not gpu_check.passed({"tests": result})
    assert "3 run, 1 failed, 1 of them skipped" in gpu_check.summary({"tests": result})
    capfd.readouterr()


def test_gpu_check_runs_all_of_torchs_own_tests_and_none_of_jax_alone():
    names = {path.rsplit("/", 1)[1] for path in gpu_check.files()}
    both = {"operations", "scan", "properties", "model", "gates", "optimizer", "liquid_ssm_model", "mixed_precision"}
    own = {"torch_compile", "triton_kernels", "triton_launches", "numba_kernels", "decode", "decode_numba", "doctor",
           "fused_linear_cross_entropy", "ui_models"}  # fmt: skip
    assert {f"test_{name}.py" for name in both | own} <= names
    assert names and not any("jax" in name or "pallas" in name for name in names)


def test_gpu_check_writes_one_json_and_fails_where_something_did(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(measure, "require_device", lambda _: None)
    monkeypatch.setattr(measure, "identity", lambda _: {"environment": {"python": "3"}})
    monkeypatch.setattr(gpu_check, "run_tests", lambda files: {"exit_code": 0, "tests": len(files), "failed": []})
    measured = {"environment": {}, "device": {"name": "x"}, "seconds": 1.0, "sections": {}, "errors": []}
    monkeypatch.setattr(measure, "measured", lambda *_: measured)
    for errors, code in (([], 0), (["scan: broken"], 1)):
        measured["errors"] = errors
        with pytest.raises(SystemExit) as stop:
            gpu_check.main(["--json", str(tmp_path / "gpu-check.json")])
        assert stop.value.code == code
        result = json.loads((tmp_path / "gpu-check.json").read_text())
        assert result["environment"] == {"python": "3"} and result["bench"]["errors"] == errors
        assert result["tests"]["tests"] >= 5
    assert "scan: broken" in capsys.readouterr().out


def test_on_a_gpu_events_stand_around_the_call_and_behind_the_flush(monkeypatch):
    torch = pytest.importorskip("torch", reason="CUDA events are torch's")
    happened = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            happened.append("record")

        def elapsed_time(self, end):
            return 2.5

    class Flush:
        def sum(self):
            happened.append("flush")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: happened.append("wait"))
    timer = Timer("cpu", 1)
    timer.cuda, timer.flush = True, Flush()
    row = {}
    timer.kernels([(row, lambda: happened.append("call"))])
    assert row["milliseconds"] == 2.5
    assert happened[: len(happened) // 3] == ["flush"] * 4 + ["record", "call", "record", "wait"]
