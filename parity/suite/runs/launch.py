"""Processes of JAX that find each other, as the hosts of a pod do, on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from parity.proof.environment import ROOT


def environment(devices: int, rank: int = 0, size: int = 1, port: int = 0) -> dict[str, str]:
    """Of one process with so many devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    here = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if size > 1:
        here |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}"}
        here |= {"JAX_NUM_PROCESSES": str(size), "JAX_PROCESS_ID": str(rank)}
    return here


def start(devices: int, size: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """So many processes of one command, which share the devices."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        subprocess.Popen([sys.executable, *arguments], env=there, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        for there in (environment(devices // size, rank, size, port) for rank in range(size))
    ]


def finish(processes: list[subprocess.Popen[str]], code: int = 0, seconds: float = 400.0) -> list[str]:
    """The stderr of each, after all have ended with the code."""
    try:
        errors = [one.communicate(timeout=seconds)[1] for one in processes]
    finally:
        for one in processes:
            one.kill()
    if any(one.returncode != code for one in processes):
        raise AssertionError("\n\n".join(errors)[-6000:])
    return errors
