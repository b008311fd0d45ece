"""Bytes a (token, channel) of each kernel; as a program, JSON. Needs TRITON_INTERPRET=1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch

from parity.proof.triton_interpreter import Traffic, counted, fast_scans
from torch_impl.kernels.triton import launch as table
from torch_impl.ops.gated_scan import triton as triton_gated_scan
from torch_impl.ops.gated_scan.unfused import GatedScanInputs
from torch_impl.ops.scan.triton import scan_gradients, scan_states

# Blocks of memory as in training: d is that of the `small` preset; a segment is as long as an H100 would make it.
BATCH, LENGTH, WIDTH, SEGMENTS = 1, 1024, 384, 8


@contextmanager
def blocks_of_a_gpu() -> Iterator[None]:
    """Lets the interpreter have the rows of a GPU: its own are more, for speed, and save fewer states."""
    with ExitStack() as patches:
        for direction in (table.FORWARD, table.BACKWARD, table.SCAN):
            rows = direction["cpu"]._replace(rows=direction["default"].rows)
            patches.enter_context(mock.patch.dict(direction, cpu=rows))
        yield


@blocks_of_a_gpu()
def counted_bytes() -> dict[str, float]:
    """Bytes a (token, channel) of mixer and scan in both directions, and of the mixer where time is split.

    The mixer has pre-activations and gated states in bfloat16 and saves its states, with the start of documents and no
    padding; the scan is float32. Split, everything that its three kernels touch counts.
    """
    fast_scans()
    mixers = {}
    for form, segments in (("", 1), (" split", SEGMENTS)):
        with mock.patch.object(triton_gated_scan, "split", return_value=segments):
            mixers |= {f"mixer {direction}{form}": moved for direction, moved in _mixer().items()}
    return mixers | {f"scan {direction}": moved for direction, moved in _scan().items()}


def _mixer() -> dict[str, float]:
    pre, grad_gated = (torch.randn(BATCH, LENGTH, x * WIDTH).bfloat16() for x in (3, 1))
    bias, state, grad_last = torch.randn(WIDTH), torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)
    for x in (pre, bias, state):
        x.requires_grad_()
    resets = torch.rand(BATCH, LENGTH) < 0.01
    with counted() as forward:
        gated, last = triton_gated_scan.triton_gated_scan(GatedScanInputs(pre, bias, state, resets, None, 1e-6))
    with counted() as backward:
        torch.autograd.grad((gated, last), (pre, bias, state), (grad_gated, grad_last))
    return {"forward": _each(forward), "backward": _each(backward)}


def _scan() -> dict[str, float]:
    shape = BATCH, LENGTH, WIDTH
    decay, drive, grad_states = torch.rand(shape), torch.randn(shape), torch.randn(shape)
    state, grad_last = torch.randn(2, BATCH, WIDTH)
    with counted() as forward:
        states = scan_states(decay, drive, state)
    with counted() as backward:
        scan_gradients(decay, states, state, grad_states, grad_last)
    return {"forward": _each(forward), "backward": _each(backward)}


def _each(traffic: Traffic) -> float:
    if not traffic.launches:
        raise AssertionError("no kernel was interpreted; TRITON_INTERPRET=1 has to be set before Triton is imported")
    return round(traffic.bytes / (BATCH * LENGTH * WIDTH), 4)


if __name__ == "__main__":
    print(json.dumps(counted_bytes()))
