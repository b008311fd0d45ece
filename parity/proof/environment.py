"""What a measurement was made with: versions, devices, processor, threads, memory and commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from parity.proof import adapters

UNUSABLE = "cannot be used:"
ROOT = Path(__file__).parents[2]
PACKAGES = (
    "liquidnet-dual", "numpy", "torch", "triton", "jax", "jaxlib", "flax", "optax", "ml_dtypes", "safetensors",
    "tokenizers", "hypothesis",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Everything below, as JSON holds it."""
    installed = [name for name in adapters.FRAMEWORKS if adapters.missing(name) is None]
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "versions": {name: version(name) for name in PACKAGES},
        "devices": {name: devices(name) for name in installed},
        "threads": threads(),
        "commit": commit(),
    }


def version(package: str) -> str:
    """The version of an installed package, or `not installed`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def devices(backend: str) -> list[str]:
    """The names of the devices that a backend finds, the one it computes on first; UNUSABLE and why where it cannot."""
    if backend == "jax":
        import jax

        try:
            return [f"{device.platform}: {device.device_kind}" for device in jax.devices()]
        except Exception as error:  # for some platforms an AssertionError without a word
            return [f"{UNUSABLE} {error}" if str(error) else f"{UNUSABLE} it has no such platform"]
    import torch

    return [f"cuda: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())] or ["cpu: cpu"]


def threads() -> dict[str, str | int]:
    """How many threads torch uses, and what the variables that numeric libraries read say."""
    found: dict[str, str | int] = {
        name: os.environ[name] for name in ("OMP_NUM_THREADS", "XLA_FLAGS") if name in os.environ
    }
    if adapters.missing("torch") is None:
        import torch

        found["torch"] = torch.get_num_threads()
    return found


def one_thread_and_full_float32() -> None:
    """Sums in one order on every machine; float32 means float32."""
    if adapters.missing("torch") is None:
        import torch

        torch.set_num_threads(1)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


def processor() -> str:
    """The model name of the processor, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def commit(root: Path = ROOT) -> str | None:
    """The commit that the sources below `root` are, with `+` where they were changed; None outside a checkout."""
    if not (root / ".git").exists():
        return None
    try:
        name, changed = (
            subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return name + ("+" if changed else "")
