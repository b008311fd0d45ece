"""`liquidnet bench --device cuda`: everything measured on one GPU, in one JSON with the environment."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from rich.console import Console

from tools.bench import peers as bench_peers
from tools.bench import roofline, sections, training
from tools.bench.sections import Sizes
from tools.bench.tables import errors_of, is_fault, show_table
from tools.bench.timer import Clock, Row, guarded

SECTIONS: dict[str, Callable[[Clock, Sizes], list[Row]]] = {
    "peak": sections.peak,
    "scan": sections.scans,
    "mixer": sections.mixers,
    "loss": sections.losses,
    "train": training.train_steps,
    "decode": training.decoding,
}
NO_GPU = (
    "--device cuda: torch finds no GPU here; install a CUDA or ROCm build of torch on a machine with one, "
    "or leave --device at cpu"
)


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


def measured(device: str, rounds: int, sizes: Sizes, tell: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Every section in turn; one that fails becomes an error row and leaves the others alone.

    Args:
        device: `cuda` or `cpu`.
        rounds: rounds to take medians over.
        sizes: what is measured.
        tell: called with the name of each section as it begins.
    """
    result: dict[str, Any] = {**identity(device), "rounds": rounds, "sections": {}}
    started = time.perf_counter()
    for name in SECTIONS:
        tell(name)
        begun = time.perf_counter()
        rows = _apart(name, device, rounds, sizes) if device == "cuda" else section_rows(name, device, rounds, sizes)
        result["sections"][name] = rows
        result.setdefault("section_seconds", {})[name] = round(time.perf_counter() - begun, 1)
    result["seconds"] = round(time.perf_counter() - started, 1)
    _against_the_model(result, sizes)
    result["errors"] = errors_of(result["sections"])
    return result


def section_rows(name: str, device: str, rounds: int, sizes: Sizes, peers: bool = True) -> list[Row]:
    """The rows of one of SECTIONS; one error row where it fails as a whole."""
    import torch

    row: Row = {"name": name}
    if not peers:
        bench_peers.SCANS.clear()
        bench_peers.MIXERS.clear()
    rows = guarded(row, lambda: SECTIONS[name](Clock(torch.device(device), rounds), sizes))
    return [row] if rows is None else rows


def _apart(name: str, device: str, rounds: int, sizes: Sizes) -> list[Row]:
    """`section_rows` in a process of its own: after one wrong access to memory, nothing runs on the GPU any more.

    Where something fails, it is measured again without peers, who may have done it.
    """
    tried = []
    for peers in (True, False):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                tried.append(pool.submit(section_rows, name, device, rounds, sizes, peers).result())
            except BrokenProcessPool as error:
                tried.append([{"name": name, "error": f"the process of this section died: {error}"}])
        if not any(is_fault(row) for row in tried[-1]):
            break
    reasons = [row["error"] for row in tried[0] if is_fault(row)]
    return tried[-1] + [{"name": "beside peers", "peer": True, "error": reason} for reason in reasons[:1]]


def identity(device: str) -> dict[str, Any]:
    """The environment and the device that something was measured on."""
    # JAX, where it is installed, is asked for its devices: it would take three quarters of the memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from parity.proof.environment import environment

    return {"environment": environment(), "device": facts(device)}


def facts(device: str) -> dict[str, Any]:
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
        told = subprocess.run(
            ["nvidia-smi", f"--query-gpu={asked}", "--format=csv"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() if told.returncode == 0 else None


def _against_the_model(result: dict[str, Any], sizes: Sizes) -> None:
    """MFU by the measured peak and, where the device is known, by the datasheet's; the modelled floor of the step."""
    known = roofline.known_device(result["device"]["name"])
    reached = [row["tflops"] for row in result["sections"]["peak"] if "tflops" in row]
    for row in (row for row in result["sections"]["train"] if "tflops" in row):
        if reached:
            row["mfu_of_measured"] = row["tflops"] / reached[0]
        if known:
            row["mfu_of_datasheet"] = 1e12 * row["tflops"] / known[1].flops
    if known is None:
        return
    result["device"]["datasheet"] = {"flops": known[1].flops, "bytes_per_second": known[1].bandwidth}
    try:
        traffic = roofline.ours()
    except ValueError as missing:
        result["modelled"] = {"not_run": str(missing)}
        return
    tokens = sizes.training.batch_size * sizes.training.seq_len
    seconds = roofline.step_seconds(roofline.step_terms(sizes.config, tokens, traffic), known[1])
    result["modelled"] = {"milliseconds": 1e3 * seconds, "tokens_per_second": tokens / seconds}


COLUMNS = {
    "peak": {"ms": "milliseconds", "GB/s": "gb_per_s", "TFLOP/s": "tflops"},
    "scan": {"pass": "pass", "ms": "milliseconds", "GB/s": "gb_per_s", "of copy": "of_copy"},
    "mixer": {"pass": "pass", "ms": "milliseconds", "GB/s": "gb_per_s", "of copy": "of_copy"},
    "loss": {"ms": "milliseconds", "extra MiB": "extra_mib", "logits MiB": "float32_logits_mib"},
    "train": {"ms": "milliseconds", "tokens/s": "tokens_per_second", "TFLOP/s": "tflops", "MFU": "mfu_of_measured",
              "of datasheet": "mfu_of_datasheet"},
    "decode": {"batch": "batch", "ms": "milliseconds", "tokens/s": "tokens_per_second"},
}  # fmt: skip


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """One table a section and shape; below each, what was not run and why."""
    console = console or Console(highlight=False)
    console.print(f"measured on {result['device']['name']} in {result['seconds']:.0f} s", soft_wrap=True)
    for section, rows in result["sections"].items():
        for shape in dict.fromkeys(row.get("shape") for row in rows):
            show_table(
                console,
                section if shape is None else f"{section}, {' x '.join(map(str, shape))}",
                COLUMNS[section],
                [row for row in rows if row.get("shape") == shape],
            )
    if "milliseconds" in result.get("modelled", {}):
        told = result["modelled"]
        console.print(
            f"modelled floor of the train step: {told['milliseconds']:.1f} ms, {told['tokens_per_second']:,.0f} "
            "tokens/s (liquidnet bench --model)",
            soft_wrap=True,
        )
