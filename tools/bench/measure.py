"""The sections of `liquidnet bench` in turn, on a processor or a GPU, in one JSON with the environment."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from spec.config import nearest
from spec.runtime.memory import keep_freed_memory
from tools.bench import decode, machine, operations, roofline, train_step
from tools.bench.limits import targets
from tools.bench.results import Result, errors_of, is_fault
from tools.bench.sizes import Sizes
from tools.bench.timer import Row, Timer, guarded
from tools.cli import backends
from tools.cli.json_file import Json
from tools.cli.progress import progress


@dataclass(frozen=True)
class Section:
    """What measures it, where, and about how many seconds it takes on two cores, for the progress bar."""

    measure: Callable[[Timer, Sizes], list[Row]]
    devices: tuple[str, ...] = ("cpu", "gpu")
    seconds: int = 0


SECTIONS = {
    "machine": Section(machine.machine, ("cpu",), 6),
    "peak": Section(machine.peak, ("gpu",)),
    "scan": Section(partial(operations.methods, operations.SCAN), seconds=8),
    "mixer": Section(partial(operations.methods, operations.MIXER), seconds=8),
    "loss": Section(operations.losses, ("gpu",)),
    "train": Section(train_step.train_steps, seconds=70),
    "decode": Section(decode.decoding, seconds=40),
    "growth": Section(train_step.scaling, ("cpu",), 25),
}
NO_GPU = (
    "--device cuda: torch finds no GPU here; install a CUDA or ROCm build of torch on a machine with one, "
    "or leave --device at cpu"
)


def sections_of(device: str) -> list[str]:
    """The names of those that are measured on `cpu` or `gpu`, in order."""
    return [name for name, section in SECTIONS.items() if device in section.devices]


def chosen(names: str | None) -> list[str]:
    """The sections of a comma-separated list that a processor measures, in their order; all of them for None.

    Raises:
        ValueError: one that is none.
    """
    known = sections_of("cpu")
    asked = known if names is None else [name.strip() for name in names.split(",")]
    for name in asked:
        if name not in known:
            hint = nearest(name, known) or f"; choose from {','.join(known)}"
            raise ValueError(f"--sections: there is no section {name!r}{hint}")
    return [name for name in known if name in asked]


def require_device(name: str) -> None:
    """Raises ValueError, saying what to do, where the device is unknown or not here."""
    if name not in ("cpu", "cuda"):
        raise ValueError(f"unknown --device {name!r}; choose cpu or cuda")
    if name == "cpu":
        return
    try:
        import torch
    except ModuleNotFoundError:
        raise ValueError("--device cuda needs torch; pip install 'liquidnet-dual[torch]'") from None
    if not torch.cuda.is_available():
        raise ValueError(NO_GPU)


def measured(device: str, rounds: int, sizes: Sizes, names: list[str] | None = None) -> Result:
    """The sections in turn; one that fails becomes an error row and leaves the others alone.

    Args:
        device: `cuda` or `cpu`.
        rounds: rounds to take medians over.
        sizes: what is measured.
        names: of SECTIONS; all of the device's by default.
    """
    names = sections_of("gpu" if sizes.gpu else "cpu") if names is None else names
    result: Result = {"when": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
    if sizes.gpu:
        result |= identity(device)
    else:
        # As the engines do: what a peer allocates costs it as little as ours.
        keep_freed_memory()
        for backend in backends.installed():
            # Before anything else imports it: it tells OpenMP how to wait.
            backends.load(backend, "layers")
        result["environment"] = _environment("numba", "transformers")
    result |= {"rounds": rounds, "sections": {}, "section_seconds": {}}
    started = time.perf_counter()
    total = sum(SECTIONS[name].seconds for name in names)
    with contextlib.nullcontext() if sizes.gpu else progress("measuring", total) as bar:
        for name in names:
            if sizes.gpu:
                print(name, file=sys.stderr)
            begun = time.perf_counter()
            rows_of = _in_own_process if device == "cuda" else section_rows
            result["sections"][name] = rows_of(name, device, rounds, sizes)
            result["section_seconds"][name] = round(time.perf_counter() - begun, 1)
            # Engines refer to themselves: their memory would be measured with the next section.
            gc.collect()
            if bar is not None:
                bar.advance(SECTIONS[name].seconds)
    result["seconds"] = round(time.perf_counter() - started, 1)
    if sizes.gpu:
        _add_model(result, sizes)
    else:
        result["targets"] = targets(result["sections"])
    result["errors"] = errors_of(result["sections"])
    return result


def section_rows(name: str, device: str, rounds: int, sizes: Sizes) -> list[Row]:
    """The rows of one of SECTIONS; one error row where it fails as a whole."""
    row: Row = {"name": name}
    rows = guarded(row, lambda: SECTIONS[name].measure(Timer(device, rounds), sizes))
    return [row] if rows is None else rows


def _in_own_process(name: str, device: str, rounds: int, sizes: Sizes) -> list[Row]:
    """`section_rows` in a process of its own: after one wrong access to memory, nothing runs on the GPU any more.

    Where something fails, it is measured again without peers, who may have done it.
    """
    tried: list[list[Row]] = []
    for peers in (True, False):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                tried.append(pool.submit(section_rows, name, device, rounds, replace(sizes, peers=peers)).result())
            except BrokenProcessPool as error:
                tried.append([{"name": name, "error": f"the process of this section died: {error}"}])
        if not any(is_fault(row) for row in tried[-1]):
            break
    reasons = [row["error"] for row in tried[0] if is_fault(row) and "error" in row]
    return tried[-1] + [{"name": "beside peers", "peer": True, "error": reason} for reason in reasons[:1]]


def _environment(*more: str) -> Json:
    """The machine and the versions of what is installed; `more` names packages besides the usual ones."""
    from parity.proof.environment import environment, version

    found: Json = {**environment()}
    found["versions"] |= {name: version(name) for name in more}
    return found


def identity(device: str) -> Result:
    """The environment and the GPU that something was measured on."""
    # JAX, where it is installed, is asked for its devices: it would take three quarters of the memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return {"environment": _environment(), "device": facts(device)}


def facts(device: str) -> Json:
    """Name, memory, cache, driver and versions of the GPU, as far as the system tells."""
    import torch

    try:
        import triton

        versions = {"torch": torch.__version__, "triton": triton.__version__}
    except ImportError:
        versions = {"torch": torch.__version__, "triton": None}
    if device == "cpu":
        return {"name": "cpu", **versions}
    seen = torch.cuda.get_device_properties(0)
    return {
        "name": torch.cuda.get_device_name(0),
        "capability": list(torch.cuda.get_device_capability(0)),
        "memory_gib": round(seen.total_memory / 2**30, 1),
        "l2_mib": getattr(seen, "L2_cache_size", 0) / 2**20,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "driver_and_limits": _nvidia_smi(),
        **versions,
    }


def _nvidia_smi() -> str | None:
    """Driver, power limit and highest clock, in nvidia-smi's words."""
    asked = "driver_version,power.limit,clocks.max.sm,clocks.max.memory"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={asked}", "--format=csv"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _add_model(result: Result, sizes: Sizes) -> None:
    """MFU by the measured peak and, where the device is known, by the datasheet's; the modelled floor of the step."""
    known = roofline.known_device(result["device"]["name"])
    reached = [row["tflops"] for row in result["sections"]["peak"] if "tflops" in row]
    for row in result["sections"]["train"]:
        if "tflops" in row and reached:
            row["mfu_of_measured"] = row["tflops"] / reached[0]
        if "tflops" in row and known:
            row["mfu_of_datasheet"] = 1e12 * row["tflops"] / known.flops
    if known is None:
        return
    result["device"]["datasheet"] = {"flops": known.flops, "bytes_per_second": known.bandwidth}
    step = sizes.training[0]
    seconds = roofline.step_seconds(roofline.step_terms(step.config, step.tokens, roofline.FUSED), known)
    result["modelled"] = {"milliseconds": 1e3 * seconds, "tokens_per_second": step.tokens / seconds}
