"""Every flag of the commands that neither train nor write text reaches what it sets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from parity.proof.problems.cases import CONFIG
from parity.suite.report import command as parity_command
from parity.suite.report import report, sweep
from parity.suite.runs import trajectory_drift
from parity.suite.support.flags import Row, Typed, require_seen, run
from spec.checkpoint.format import Checkpoint
from spec.mixers import families
from spec.presets import PRESETS, RECIPES
from tools import convert, doctor
from tools.bench import command as bench
from tools.bench import gpu_check, sizes
from tools.cli import backends
from tools.compare import command as compare
from tools.data import prepare
from tools.plan import command as plan
from tools.plan.compile_step import CompiledStep
from tools.plot import command as plot
from tools.tokenizer import build_tokenizer
from tools.xla.count import Cost, ProgramCost

FAMILY = next(iter(families()))
HELD = Checkpoint(CONFIG, {}, state={"step": 3})
Found = dict[str, Any]

ROWS = {
    "prepare": [
        Row("--out", ("elsewhere",), "out", ["elsewhere"]),
        Row("--text", ("a.txt", "b.txt"), "source", ["a.txt", "b.txt"]),
        Row("--dataset", ("tinystories",), "dataset", "tinystories"),
        Row("--stories", ("41",), "documents", 41),
        Row("--stories-seed", ("3",), "seed", 3),
        Row("--tokenizer", ("gpt2",), "tokenizer", ("gpt2", None)),
        Row("--tokenizer-files", ("v.json", "m.txt"), "tokenizer", ("byte", (Path("v.json"), Path("m.txt")))),
        Row("--val-text", ("b.txt",), "val documents", 2),
        Row("--val-fraction", ("0.5",), "val documents", 15),
        Row("--max-tokens", ("2000",), "documents", 6),
    ],
    "plot": [
        Row("source", ("other",), "source", Path("other")),
        Row("--what", ("half-lives",), "drawn", "half-lives"),
        Row("--what", ("reach",), "drawn", "reach"),
        Row("--what", ("bench",), "drawn", "bench"),
        Row("--what", ("scaling",), "drawn", "scaling"),
        Row("--data", ("text",), "data", Path("text")),
        Row("--windows", ("5",), "windows", 5),
        Row("--seq-len", ("77",), "seq_len", 77),
        Row("--reference", ("behind",), "reference", Path("behind")),
        Row("--out", ("a.svg",), "out", Path("a.svg")),
    ],
    "convert": [
        Row("source", ("other",), "source", Path("other")),
        Row("target", ("there.msgpack",), "target", (Path("there.msgpack"), "msgpack")),
        Row("--format", ("dcp",), "target", (Path("there"), "dcp")),
    ],
    "compare": [
        Row("a", ("one",), "models", ("one", None)),
        Row("b", ("two",), "models", ("run", "two")),
        Row("--text", ("Foxes.",), "text", "Foxes."),
        Row("--text-file", ("a.txt",), "text", "From a file."),
        Row("--max-tokens", ("9",), "tokens", 9),
        Row("--all", (), "all", True),
        Row("--json", ("a.json",), "json", "{}\n"),
    ],
    "parity": [
        Row("--family", (FAMILY,), "family", (FAMILY, FAMILY)),
        Row("--report", ("there",), "report", Path("there")),
        Row("--draws", ("7",), "draws", 7),
        Row("--seed", ("13",), "seed", 13),
        Row("--no-trajectories", (), "trajectories", False),
    ],
    "bench": [
        Row("--rounds", ("4",), "rounds", 4),
        Row("--json", ("a.json",), "json", True),
        Row("--device", ("cuda",), "device", "cuda"),
        Row("--full", (), "sizes", sizes.full(sizes.CPU)),
        Row("--compiled", (), "sizes", replace(sizes.CPU, compiled=(False, True))),
        Row("--sections", ("train,scan",), "sections", ["scan", "train"]),
        Row("--history", ("kept",), "history", Path("kept")),
        Row("--roofline", (), "roofline", ("small", PRESETS["small"], *(RECIPES["small"].batch_size, 512))),
        Row("--model", (), "roofline", ("small", PRESETS["small"], *(RECIPES["small"].batch_size, 512))),
        Row("--liquid-ssm", (), "liquid-ssm", 15),
        Row("--serving", (), "serving", 15),
        Row("--preset", ("tiny",), "preset", "tiny"),
        Row("--batch-size", ("6",), "batch_size", 6),
        Row("--seq-len", ("40",), "seq_len", 40),
        # On a GPU these two say what is measured there.
        Row("--preset", ("tiny",), "sizes", sizes.on_gpu(PRESETS["tiny"], RECIPES["tiny"])),
    ],
    "plan": [
        Row("--topology", ("v5e:2x4",), "topology", "v5e:2x4"),
        Row("--preset", ("small",), "layers", PRESETS["small"].n_layers),
        Row("--mesh", ("data=4,fsdp=4",), "mesh", "data=4,fsdp=4"),
        Row("--batch-size", ("96",), "batch_size", 96),
        Row("--tokens-per-chip", ("1536",), "batch_size", 1536 * 16 // RECIPES["base"].seq_len),
        Row("--seq-len", ("256",), "seq_len", (256, 256)),
        Row("--dtype", ("float32",), "dtype", "float32"),
        Row("--method", ("chunked",), "method", "chunked"),
        Row("--remat", (), "remat", True),
        Row("--micro-batch-size", ("2",), "micro_batch", 2),
        Row("--d-model", ("72",), "d_model", 72),
        Row("--d-ff", ("88",), "d_ff", 88),
        Row("--n-layers", ("3",), "layers", 3),
        Row("--vocab-size", ("999",), "vocab_size", 999),
        Row("--largest-batch", ("skip",), "compiled", 1),
        Row("--largest-batch", ("search",), "bisect", True),
        Row("--explain", ("2",), "explained", 2),
        Row("--json", ("a.json",), "json", True),
    ],
    "doctor": [Row("--json", ("a.json",), "json", True)],
    "gpu_check": [
        Row("--json", ("a.json",), "json", True),
        Row("--rounds", ("4",), "rounds", 4),
        Row("--no-tests", (), "tested", False),
        Row("--no-bench", (), "rounds", None),
    ],
}


def of(command: str) -> Any:
    return pytest.mark.parametrize("row", ROWS[command], ids=lambda row: " ".join((row.flag, *row.typed)))


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """A directory of its own, whose files a command may name."""
    monkeypatch.chdir(tmp_path)


def recorded(command: str, found: Found, after: Callable[[], None] = lambda: None) -> Callable[[Typed], Found]:
    """Runs the command; what the recorders wrote down since, and what is there afterwards."""

    def seen(typed: Typed) -> Found:
        found.clear()
        Path("a.json").unlink(missing_ok=True)
        run(command, typed)
        after()
        return {"json": Path("a.json").exists(), **found}

    return seen


@of("prepare")
def test_prepare(row, monkeypatch):
    Path("a.txt").write_text("one<|endoftext|>two " * 9)
    Path("b.txt").write_text("three <|endoftext|>four")
    asked: Found = {}

    def build(name: str, texts: Any = None, files: Any = None) -> Any:
        asked["tokenizer"] = name, files
        return build_tokenizer("byte")

    def open_dataset(name: str) -> Any:
        asked["dataset"] = name
        return prepare.open_files((Path("a.txt"),), ""), prepare.open_files((Path("b.txt"),), "")

    def story_source(count: int, seed: int) -> Any:
        asked["seed"] = seed
        return source(count, seed)

    def after() -> None:
        (out,) = (path for path in Path().iterdir() if path.is_dir())
        meta = json.loads((out / "meta.json").read_text())
        shutil.rmtree(out)
        train, val = meta["train"], meta["val"]
        asked.update(out=[out.name], source=meta["source"], documents=train["documents"] + val["documents"])
        asked["val documents"] = val["documents"]

    source = prepare.StorySource
    for name, stub in (("build_tokenizer", build), ("open_dataset", open_dataset), ("StorySource", story_source)):
        monkeypatch.setattr(prepare, name, stub)
    monkeypatch.setattr(prepare, "check_tokenizer_name", lambda name, files: None)
    instead = {"--text": ("--text", ("b.txt",)), "--dataset": ("--text", ("a.txt",))}
    flag, typed = instead.get(row.flag, ("--stories", ("30",)))
    seen = recorded("prepare", asked, after)
    if row.flag == "--dataset":
        assert "dataset" not in seen({"--out": ("data",), flag: typed})
        assert seen({"--out": ("data",), row.flag: row.typed})[row.where] == row.value
    else:
        require_seen(row, {"--out": ("data",), flag: typed}, lambda typed: {"dataset": None, **seen(typed)})


@of("plot")
def test_plot(row, monkeypatch):
    found: Found = {}

    def loss(metrics: Any, target: Path, reference: Any = ()) -> None:
        found.update(drawn="loss", source=metrics[0], out=target, reference=reference[0] if reference else None)

    def half_lives(checkpoint: Any, target: Path, data: Any) -> None:
        found.update(drawn="half-lives", data=data)

    def reach(checkpoint: Any, target: Path, data: Any, windows: int, seq_len: int | None) -> None:
        found.update(drawn="reach", data=data, windows=windows, seq_len=seq_len)

    monkeypatch.setattr(plot, "_metrics", lambda path: [path])
    monkeypatch.setattr(plot, "open_data", lambda path: path)
    monkeypatch.setattr(plot.convert, "read", lambda path: HELD)
    monkeypatch.setattr(plot, "require_same_tokenizer", lambda *_: None)
    for name, stub in (("plot_loss", loss), ("plot_half_lives", half_lives), ("plot_reach", reach)):
        monkeypatch.setattr(plot, name, stub)
    for name in ("history", "scaling"):
        what = "bench" if name == "history" else name
        monkeypatch.setattr(plot, f"plot_{name}", lambda source, target, what=what: found.update(drawn=what))
    of_reach = row.flag in ("--windows", "--seq-len")
    given: dict[str, tuple[str, ...]] = {"source": ("run",)}
    if of_reach or row.where == "data":
        given["--what"] = ("reach" if of_reach else "half-lives",)
    if of_reach or row.typed == ("reach",):
        given["--data"] = ("d",)
    if row.typed == ("reach",):
        given["--what"] = ("half-lives",)
    require_seen(row, given, recorded("plot", found))


@of("convert")
def test_convert(row, monkeypatch):
    found: Found = {}

    def read(path: Path) -> Checkpoint:
        found["source"] = path
        return HELD

    monkeypatch.setattr(convert, "read", read)
    monkeypatch.setattr(convert, "write", lambda path, checkpoint, form: found.update(target=(path, form)))
    require_seen(row, {"source": ("run",), "target": ("there",)}, recorded("convert", found))


@of("compare")
def test_compare(row, monkeypatch):
    found: Found = {}
    Path("a.txt").write_text("From a file.")
    model = SimpleNamespace(backend=backends.default(), checkpoint=HELD)

    def opened(a: str, b: str | None) -> Any:
        found["models"] = a, b
        return model, model

    def encode(text: str, tokenizer: Any, vocab_size: int, most: int) -> np.ndarray:
        found.update(text=text, tokens=most)
        return np.zeros((1, 1), np.int64)

    def after() -> None:
        found["json"] = Path("a.json").read_text() if Path("a.json").exists() else None

    monkeypatch.setattr(compare, "open_models", opened)
    monkeypatch.setattr(compare, "encode", encode)
    monkeypatch.setattr(compare, "as_json", lambda comparison: {})
    monkeypatch.setattr(compare, "show", lambda comparison, everything: found.update(all=everything))
    for name in (
        "compare_configurations",
        "shared_tokenizer",
        "activations_of",
        "differences",
        "locate",
        "first_outside",
    ):
        monkeypatch.setattr(compare, name, lambda *_: None)
    require_seen(row, {"a": ("run",)}, recorded("compare", found, after))


@of("parity")
def test_parity(row, monkeypatch):
    pytest.importorskip("hypothesis", reason="draws the problems")
    found: Found = {}

    def swept(draws: int, seed: int | None, progress: Any, family: str | None) -> list[Any]:
        found.update(draws=draws, seed=seed, swept=family)
        return []

    def assemble(
        rows: Any, drift: Any, estimated: Any, draws: int, seed: int, seconds: float, family: Any, checks: Any
    ):
        assert (draws, seed) == (found["draws"], found["seed"])
        found.update(family=(found["swept"], family), trajectories=drift == "ran")
        return {"passed": True}

    monkeypatch.setattr(sweep, "sweep_operations", swept)
    monkeypatch.setattr(report, "assemble", assemble)
    monkeypatch.setattr(report, "write", lambda directory, result: found.update(report=directory))
    monkeypatch.setattr(parity_command, "_show", lambda result: None)
    monkeypatch.setattr("parity.proof.family_checks.run", lambda family, progress: [])
    monkeypatch.setattr("parity.proof.environment.one_thread_and_full_float32", lambda: None)
    monkeypatch.setattr("parity.proof.adapters.stop_worker", lambda: None)
    monkeypatch.setattr(trajectory_drift, "story_data", lambda: None)
    monkeypatch.setattr(trajectory_drift, "perturbed_run", lambda *_, **__: "ran")
    monkeypatch.setattr(trajectory_drift, "estimated_run", lambda *_, **__: "ran")
    if row.flag == "--no-trajectories" and len(backends.installed()) < 2:
        pytest.skip("the race needs both backends")
    seen = recorded("parity", found)
    require_seen(row, {}, lambda typed: {"report": None, **seen(typed)})


def measured_by(found: Found) -> Callable[..., Any]:
    def measured(device: str, rounds: int, what: Any, names: Any = None) -> Any:
        found.update(device=device, rounds=rounds, sizes=what, sections=names)
        return {"errors": []}

    return measured


@of("bench")
def test_bench(row, monkeypatch):
    found: Found = {}

    def modelled(name: str, config: Any, batch_size: int, seq_len: int) -> Any:
        found.update(roofline=(name, config, batch_size, seq_len), preset=name, batch_size=batch_size, seq_len=seq_len)
        return {}

    def compared(rounds: int, *_: Any) -> Any:
        found["liquid-ssm"] = rounds
        return {}

    def append(directory: Path, result: Any) -> str:
        found["history"] = directory
        return ""

    monkeypatch.setattr(bench.measure, "measured", measured_by(found))
    monkeypatch.setattr(bench.measure, "require_device", lambda name: None)
    monkeypatch.setattr(bench.results, "show", lambda result: None)
    monkeypatch.setattr(bench.results, "append", append)
    for module in (bench.roofline, bench.liquid_ssm_solvers, bench.serving):
        monkeypatch.setattr(module, "show", lambda *_: None)
    monkeypatch.setattr(bench.roofline, "modelled", modelled)
    monkeypatch.setattr(bench.liquid_ssm_solvers, "compare", compared)
    monkeypatch.setattr(bench.serving, "compare", lambda rounds, *_: found.update(serving=rounds) or {})
    given: dict[str, tuple[str, ...]] = {}
    if row.flag in ("--preset", "--batch-size", "--seq-len"):
        given = {"--device": ("cuda",)} if row.where == "sizes" else {"--roofline": ()}
    seen = recorded("bench", found)
    require_seen(row, given, lambda typed: {row.where: None, **seen(typed)})


def test_the_comparison_of_solvers_takes_its_rounds(monkeypatch):
    found: Found = {}
    monkeypatch.setattr(bench.liquid_ssm_solvers, "compare", lambda rounds, *_: found.update(rounds=rounds) or {})
    monkeypatch.setattr(bench.liquid_ssm_solvers, "show", lambda *_: None)
    run("bench", {"--liquid-ssm": (), "--rounds": ("2",)})
    assert found == {"rounds": 2}


@of("plan")
def test_plan(row, monkeypatch):
    if "jax" not in backends.installed():
        pytest.skip("the mesh is JAX's")
    found: Found = {}

    def compiled(spec: Any) -> CompiledStep:
        count = found.get("compiled", 0) + 1
        found["compiled"] = count
        if count == 1:
            config, training = spec.config, spec.training
            found.update(
                topology=spec.topology.name, mesh=spec.mesh, batch_size=training.batch_size, method=spec.method,
                seq_len=(training.seq_len, config.max_seq_len), dtype=training.compute_dtype, remat=spec.remat,
                micro_batch=spec.micro_batch, d_model=config.d_model, d_ff=config.d_ff, layers=config.n_layers,
                vocab_size=config.vocab_size,
            )  # fmt: skip
        memory = {"arguments": 0, "outputs": 0, "aliased": 0, "temporary": 0, "peak": 10**6}
        cost = Cost("a", "fusion", "", times=1, read=1.0, written=1.0, flops=1.0, passes=1.0)
        return CompiledStep(memory, ProgramCost([cost] * 5, []), 1.0, (16, 1, 1))

    def largest(trials: Any, bisect: bool) -> Any:
        found["bisect"] = bisect
        return searched(trials, bisect)

    searched = plan.largest_batch
    monkeypatch.setattr(plan, "largest_batch", largest)
    monkeypatch.setattr(plan, "show", lambda result, console: found.update(explained=len(result["dearest"])))
    monkeypatch.setattr(plan, "compiled_step", compiled)
    monkeypatch.setattr(plan.topology, "compile_only", lambda: None)
    require_seen(row, {}, recorded("plan", found))


@of("doctor")
def test_doctor(row, monkeypatch):
    monkeypatch.setattr(doctor, "environment", lambda: {"devices": {}})
    monkeypatch.setattr(doctor.Doctor, "_backend", lambda *_: {"missing": "all of it"})
    monkeypatch.setattr(doctor, "_show", lambda found: None)
    require_seen(row, {}, recorded("doctor", {}))


@of("gpu_check")
def test_gpu_check(row, monkeypatch):
    found: Found = {}

    def tested(files: Any) -> Any:
        found["tested"] = True
        return {"exit_code": 0, "tests": 1, "failed": []}

    def seen(typed: Typed) -> Found:
        found.clear()
        Path("a.json").unlink(missing_ok=True)
        with pytest.raises(SystemExit) as stop:
            gpu_check.main([word for flag, after in typed.items() for word in (flag, *after)])
        assert stop.value.code == 0
        return {"json": Path("a.json").exists(), "tested": False, "rounds": None, **found}

    monkeypatch.setattr(gpu_check.measure, "require_device", lambda name: None)
    monkeypatch.setattr(gpu_check.measure, "identity", lambda name: {})
    monkeypatch.setattr(gpu_check.measure, "measured", measured_by(found))
    monkeypatch.setattr(gpu_check.results, "show", lambda result: None)
    monkeypatch.setattr(gpu_check, "run_tests", tested)
    require_seen(row, {}, seen)
