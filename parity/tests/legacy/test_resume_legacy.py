"""What commit 2aa1efa wrote is read by these sources, and goes on with them as it did there, in both backends.

`recorded/write.py` made the files with that commit. `expected.json` says what is in them, as other readers than ours
found it, and where the float64 reference comes to from there, which no machine has a part in. `bits.json` holds the
bits that the commit itself came to, by environment: another processor, version or number of threads gives others.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file


def _first(*modules: str) -> Any:
    """The first of these modules that exists: recorded/write.py calls this file with the sources of that commit."""
    return importlib.import_module(next(name for name in modules if _exists(name)))


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


main = _first("tools.cli.main", "tools.cli").main
LEGACY = Path(__file__).parent / "recorded"
BACKENDS = {"torch": ("torch",), "jax": ("jax", "flax", "optax")}
COUNTERS = ("step", "samples_consumed", "tokens", "seed")
# What is carried on where; Orbax's files are read through JAX, whoever goes on from them.
RESUMED = [
    ("torch_liquidnet", "torch"),
    ("torch_liquidnet", "jax"),
    ("torch_stream", "torch"),
    ("torch_stream", "jax"),
    ("torch_liquid_ssm", "torch"),
    ("torch_liquid_ssm", "jax"),
    ("torch_float16", "torch"),
    ("jax_liquidnet", "jax"),
    ("jax_liquidnet", "torch"),
    ("jax_stream", "jax"),
    ("jax_stream", "torch"),
    ("jax_liquid_ssm", "jax"),
    ("jax_liquid_ssm", "torch"),
]
CHECKPOINTS = [
    *sorted(f"runs/{run}" for run in {run for run, _ in RESUMED}),
    "files/stream.pt",
    "files/stream.msgpack",
    "files/dcp",
    "files/orbax",
]
TEXTS = [(name, backend) for name in ("liquidnet", "liquidnet_bpe", "liquid_ssm_int8") for backend in BACKENDS]
# Those of environment variables that change which instructions a library takes.
VARIABLES = (
    "ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "GLIBC_TUNABLES", "JAX_DEFAULT_MATMUL_PRECISION", "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS", "NUMBA_CPU_FEATURES", "NUMBA_CPU_NAME", "NUMBA_DISABLE_INTEL_SVML", "NUMBA_DISABLE_JIT",
    "NUMBA_OPT", "ONEDNN_MAX_CPU_ISA", "XLA_FLAGS",
)  # fmt: skip
LIBRARIES = {
    "torch": ("torch", "numpy", "numba", "llvmlite", "icc-rt", "intel-cmplr-lib-rt"),
    "jax": ("jax", "jaxlib", "flax", "optax", "numpy"),
}


@dataclass(frozen=True)
class Leg:
    """What a run came to in its second half.

    Args:
        held: a digest of every tensor that the engine held before its first step.
        batches: of the tokens, labels and resets of each step, as the engine was given them.
        lines: of metrics.jsonl.
        state: of the last checkpoint, state.json.
        bits: a digest of each kind of tensor in the last checkpoint.
    """

    held: dict[str, str]
    batches: list[str]
    lines: list[dict[str, Any]]
    state: dict[str, Any]
    bits: dict[str, str]

    @property
    def steps(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if "loss" in line]

    @property
    def evaluation(self) -> dict[str, Any]:
        (line,) = (line for line in self.lines if "val_loss" in line)
        return line

    def numbers(self) -> dict[str, Any]:
        """What was computed, and what it depends on beside the machine."""
        told = {name: [line[name] for line in self.steps] for name in ("loss", "grad_norm", "lr")}
        return {**told, "val_loss": self.evaluation["val_loss"], "sample": self.evaluation["sample"]}


def digest(*arrays: Any) -> str:
    """SHA-256 over dtype, shape and bytes of arrays."""
    sha = hashlib.sha256()
    for array in map(np.asarray, arrays):
        sha.update(f"{array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def tensors_of(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every tensor of a neutral checkpoint, by kind and path, as safetensors' own reader finds it."""
    found = {f"parameters.{path}": array for path, array in load_file(checkpoint / "model.safetensors").items()}
    for name in ("optimizer", "states"):
        if (checkpoint / f"{name}.safetensors").is_file():
            found |= load_file(checkpoint / f"{name}.safetensors")
    return found


def by_kind(tensors: dict[str, np.ndarray]) -> dict[str, str]:
    """A digest of parameters, of each moment, and of states."""
    kinds = sorted({name.partition(".")[0] for name in tensors})
    chosen = {kind: sorted(name for name in tensors if name.partition(".")[0] == kind) for kind in kinds}
    return {kind: digest(*(tensors[name] for name in names)) for kind, names in chosen.items()}


def environment(backend: str) -> dict[str, Any]:
    """What the bits that a backend computes depend on, beside its input."""
    import_of = importlib.import_module(backend)
    if backend == "torch":
        device = import_of.cuda.get_device_name() if import_of.cuda.is_available() else "cpu"
        how = {"threads": import_of.get_num_threads(), "vectors": import_of.backends.cpu.get_cpu_capability()}
    else:
        # XLA makes as many threads as there are processors.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        how, device = {"threads": cores}, import_of.devices()[0].device_kind
    versions = {name: _version(name) for name in LIBRARIES[backend]}
    variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    where = {"machine": platform.machine(), "libc": " ".join(platform.libc_ver()), "processor": _processor()}
    return {"backend": backend, **where, "device": device, **how, "versions": versions, "variables": variables}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """Vendor, family, model and vector instructions: a hypervisor may hide the model's name."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return "unknown"
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    prefixes = ("sse", "ssse", "avx", "fma", "f16c", "bmi", "amx", "xop")
    vectors = sorted(flag for flag in told.get("flags", told.get("Features", "")).split() if flag.startswith(prefixes))
    names = [told.get(name, "?") for name in ("vendor_id", "cpu family", "model")]
    return " ".join(["/".join(names), *vectors])


@cache
def expected() -> dict[str, Any]:
    return json.loads((LEGACY / "expected.json").read_text())


@cache
def recorded(backend: str) -> dict[str, Any] | None:
    """The bits that 2aa1efa came to in this environment, where somebody has recorded them."""
    here = environment(backend)
    entries = json.loads((LEGACY / "bits.json").read_text())
    return next((entry for entry in entries if entry["environment"] == here), None)


def go_on(backend: str, run: Path, data: Path) -> Leg:
    """Carry a run on to its end by command line."""
    held: dict[str, str] = {}
    batches: list[str] = []

    def watch(engine: Any, batch: Any) -> None:
        held.update(held or held_by(engine))
        # As numbers: in what they are held is nobody's business.
        batches.append(digest(*(np.int64(part) for part in (batch.tokens, batch.labels, batch.resets))))

    with _before_steps(backend, watch), pytest.raises(SystemExit) as stop:
        main(["train", backend, "--data", str(data), "--out", str(run), "--resume"])
    assert stop.value.code == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    began = max(line["step"] for line in lines) - len(batches)
    last = max((run / "checkpoints").iterdir())
    state, bits = json.loads((last / "state.json").read_text()), by_kind(tensors_of(last))
    return Leg(held, batches, [line for line in lines if line["step"] > began], state, bits)


def held_by(engine: Any) -> dict[str, str]:
    """A digest of every parameter, moment and state, by kind and path."""
    parameters, moments = engine.dump()
    groups = {"parameters": parameters, **moments}
    held = {f"{kind}.{path}": digest(array) for kind, group in groups.items() for path, array in group.items()}
    states = engine.dump_states()
    return held if states is None else {**held, "states": digest(states)}


@contextmanager
def _before_steps(backend: str, watch: Callable[[Any, Any], None]) -> Iterator[None]:
    """Call a function with the engine and the batch before every training step."""
    engine = _first(f"{backend}_impl.training.engine", f"{backend}_impl.train").Engine
    train_step = engine.train_step

    def watched(self: Any, batch: Any, *rest: Any, **named: Any) -> Any:
        watch(self, batch)
        return train_step(self, batch, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "train_step", watched)
        yield


def talk(arguments: list[str], lines: list[str]) -> str:
    """What `liquidnet chat` answers to lines over a pipe."""
    with pytest.MonkeyPatch.context() as patch:
        told = io.StringIO()
        patch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        patch.setattr("sys.stdout", told)
        main(["chat", *arguments])
    return told.getvalue()


def talk_of(name: str, backend: str, legacy: Path, saved: Path) -> tuple[list[str], list[str]]:
    """Arguments and lines of a talk that goes on from a session that was kept, and keeps it again."""
    told = expected()["texts"][name]
    arguments = ["--backend", backend, "--checkpoint", str(legacy / told["checkpoint"]), *told["arguments"]]
    return arguments, [f"/load {legacy / told['session']}", *told["lines"], f"/save {saved}"]


def session_in(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Position and waiting tokens of a session, and its state, as safetensors' own reader finds them."""
    with safe_open(path, "np") as file:
        metadata, states = file.metadata(), file.get_tensor("states")
    return {"position": int(metadata["position"]), "pending": json.loads(metadata["pending"])}, states


def require(backend: str, *more: str) -> None:
    """Skip where a package is not installed."""
    for package in (*BACKENDS[backend], *more):
        pytest.importorskip(package, reason=f"{package} is not installed")


@pytest.fixture
def legacy(tmp_path) -> Path:
    """A copy of all that was written, to be carried on."""
    return Path(shutil.copytree(LEGACY, tmp_path / "legacy"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_bits_of_this_environment_are_recorded(backend):
    """Where they are not, the tests below hold continuations to bounds alone, and this one says so."""
    require(backend)
    if recorded(backend) is None:
        pytest.skip(f"no bits of 2aa1efa are recorded for {json.dumps(environment(backend))}")
    missing = {f"{run}/{by}" for run, by in RESUMED if by == backend} - recorded(backend)["runs"].keys()
    assert not missing


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_tensor_is_read_to_the_same_bits(name, legacy, tmp_path):
    """Whatever wrote it: the neutral directory that `liquidnet convert` makes holds what other readers found."""
    if name.endswith((".pt", ".msgpack")):
        require("torch" if name.endswith(".pt") else "jax")
    if name in ("files/orbax", "runs/jax_stream"):
        require("jax", "orbax.checkpoint")
    main(["convert", str(legacy / name), str(tmp_path / "neutral")])
    told = expected()["checkpoints"][name]
    assert {path: digest(array) for path, array in tensors_of(tmp_path / "neutral").items()} == told["tensors"]
    state, config = (json.loads((tmp_path / "neutral" / f"{part}.json").read_text()) for part in ("state", "config"))
    assert {key: state[key] for key in told["state"]} == told["state"]
    assert {key: config[key] for key in told["config"]} == told["config"]
    tokenizer = (legacy / told["data"] / "tokenizer.json").read_bytes()
    assert (tmp_path / "neutral" / "tokenizer.json").read_bytes() == tokenizer


@pytest.mark.parametrize("run, backend", RESUMED)
def test_a_run_goes_on_as_it_did(run, backend, legacy, capsys, report):
    """From the same bits, over the same tokens, to losses within the bound; where bits are recorded, to the same bits.

    2aa1efa was within the bound too, and a state, moment or noise that is lost leads out of it: write.py looks.
    """
    require(backend, *(("jax", "orbax.checkpoint") if run == "jax_stream" else ()))
    told = expected()["runs"][run]
    leg = go_on(backend, legacy / "runs" / run, legacy / told["data"])
    assert leg.held == expected()["checkpoints"][f"runs/{run}"]["tensors"]
    assert leg.batches == told["batches"]
    assert {name: leg.state[name] for name in COUNTERS} == told["counters"]
    # A cosine is one unit in the last place off at most, whoever's library it is.
    assert [line["lr"] for line in leg.steps] == pytest.approx(told["lr"], rel=2.0**-50, abs=0)
    assert leg.evaluation["sample"].startswith(told["prompt"])
    worst = 0.0
    for name in ("loss", "grad_norm", "val_loss"):
        found = [leg.evaluation[name]] if name == "val_loss" else [line[name] for line in leg.steps]
        for step, (number, truth, bound) in enumerate(zip(found, *told[name], strict=True), start=4):
            worst = max(worst, abs(number - truth) / bound)
            assert abs(number - truth) <= bound, f"{name} at step {step}: {number}, not {truth} within {bound}"
    known = recorded(backend)
    report(f"{run} in {backend}: {worst:.2f} of the bound, {'bits compared' if known else 'no bits recorded here'}")
    if known is None:
        return
    assert {**leg.numbers(), "bits": leg.bits} == known["runs"][f"{run}/{backend}"]
    if run.startswith(backend):
        assert "will not repeat the same bits" not in capsys.readouterr().err


class Enough(Exception):
    """Ends a run before its first step."""


# The backend says so itself when it is first imported, which here is within a test: pytest takes it back after that.
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("run, backend", [("torch_stream", "torch"), ("jax_stream", "jax")])
def test_an_engine_reads_its_part_of_what_was_written_in_parts(run, backend, legacy):
    """As each of several processes does, by DCP and Orbax themselves; alone, a process reads all by another way."""
    require(backend, *(("orbax.checkpoint",) if backend == "jax" else ()))
    directory = legacy / "runs" / run / "checkpoints" / "step_00000003"

    def read_again(engine: Any, _batch: Any) -> None:
        parameters, moments = engine.dump()
        nothing = {path: np.zeros_like(array) for path, array in parameters.items()}
        engine.load(nothing, dict.fromkeys(moments, nothing), 0)
        before = held_by(engine)
        engine.load_shards(directory, 3)
        told = expected()["checkpoints"][f"runs/{run}"]["tensors"]
        assert before != told and held_by(engine) == told
        raise Enough

    with _before_steps(backend, read_again), pytest.raises(Enough):
        main(["train", backend, "--data", str(legacy / "data"), "--out", str(legacy / "runs" / run), "--resume"])


@pytest.mark.parametrize("name, backend", TEXTS)
def test_a_session_goes_on_as_it_did(name, backend, legacy, tmp_path):
    """The same text on any machine: no draw was near enough to another token for rounding to matter (write.py)."""
    require(backend)
    told = expected()["texts"][name]
    found, states = session_in(legacy / told["session"])
    assert {**found, "states": digest(states)} == told["found"]
    saved = tmp_path / "saved.safetensors"
    answers = talk(*talk_of(name, backend, legacy, saved))
    assert answers.startswith(told["answers"])
    after, states = session_in(saved)
    truth, bound = told["states"]
    assert after == told["after"]
    np.testing.assert_allclose(states, truth, rtol=0, atol=bound)
    known = recorded(backend)
    assert known is None or known["texts"][f"{name}/{backend}"] == digest(states)
