"""Block sizes of the kernels, and when time is split. No twin: Triton."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton

from torch_impl.ops.devices import architecture

ROW = 8
"""Consecutive steps that a warp keeps in registers."""
PROGRAMS_EACH = 2
"""Programs side by side that fill a processor."""
SPLIT_COST = 1.5
"""Bytes that a split gated scan moves for one that is not, both directions: (12.5 + 20.4) / (8.2 + 14.2)."""


class Blocks(NamedTuple):
    """How a program is laid out.

    Args:
        rows: W, each one warp; a block is W ROW steps of time.
        channels: C.
        stages: blocks whose loads are under way at once.
        registers: most that a thread may have, on NVIDIA.
    """

    rows: int
    channels: int
    stages: int
    registers: int


Table = dict[str | tuple[str, int], Blocks]
"""Layouts by (architecture, bytes a pre-activation), by architecture, or for any other one."""

# Measured on an H100; elsewhere what compiles without a spill. On the CPU an operation of the interpreter costs the
# same for one entry as for many.
FORWARD: Table = {"default": Blocks(4, 64, 2, 96), "sm_90": Blocks(4, 64, 3, 96), "cpu": Blocks(32, 512, 1, 0)}
BACKWARD: Table = {
    "default": Blocks(4, 64, 1, 168),
    "sm_90": Blocks(4, 64, 2, 168),
    ("sm_90", 4): Blocks(4, 64, 1, 168),
    "cpu": Blocks(32, 512, 1, 0),
}
SCAN: Table = {"default": Blocks(4, 64, 2, 96), "cpu": Blocks(32, 512, 1, 0)}


def saved_every(device: torch.device) -> int:
    """Steps of time from one state that the forward pass saves to the next: a block of the backward pass."""
    return BACKWARD.get(architecture(device), BACKWARD["default"]).rows * ROW


def launch_options(table: Table, device: torch.device, d: int, size: int) -> dict[str, Any]:
    """The layout of a kernel for d channels of `size` bytes on this device, as keywords of its launch."""
    name = architecture(device)
    rows, channels, stages, registers = table.get((name, size), table.get(name, table["default"]))
    if device.type == "cpu":
        channels = min(channels, triton.next_power_of_2(d))
    options = {"W": rows, "R": ROW, "C": channels, "STAGES": stages, "num_warps": rows, "enable_fp_fusion": True}
    if device.type == "cuda" and torch.version.hip is None:
        options["maxnreg"] = registers
    return options


def split(programs: int, blocks: int, processors: int) -> int:
    """Into how many segments of time a sequence of `blocks` blocks is cut; 1 leaves it whole.

    Programs run side by side on each processor, PROGRAMS_EACH of them filling it. Fewer leave memory idle, and cutting
    time in s segments makes s times as many, at SPLIT_COST the bytes: it pays where

        programs SPLIT_COST < PROGRAMS_EACH processors.

    Args:
        programs: sequences times blocks of channels.
        blocks: of the rows of a program, W ROW steps each.
        processors: of the device.
    """
    wanted = PROGRAMS_EACH * processors
    if programs * SPLIT_COST >= wanted:
        return 1
    length = max(1, blocks * programs // wanted)
    return -(-blocks // length)


def processors(device: torch.device) -> int:
    """Multiprocessors or compute units; of the interpreter 1."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
