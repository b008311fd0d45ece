"""`python -m parity.suite.compiled.triton.compile`: the kernels compiled for GPUs that need not be there, as JSON.

The launchers themselves run, on the CPU, and what they would launch is compiled instead: with the layout of the table,
the specialisation of the run time, and no source of their own here. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from torch_impl.kernels.triton import launch as table
from torch_impl.kernels.triton.cross_entropy import softmax_gradient
from torch_impl.ops.gated_scan import triton as triton_gated_scan
from torch_impl.ops.scan import triton as triton_scan

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_86": GPUTarget("cuda", 86, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHOWN = "sm_90"
"""Where instructions are counted, and every dtype is compiled."""
WIDTH, VOCABULARY = 384, 50257
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
Row = dict[str, float]


class Launch(NamedTuple):
    """A launch that was not made."""

    kernel: JITFunction
    arguments: tuple[object, ...]
    options: dict[str, object]

    @property
    def name(self) -> str:
        name = self.kernel.__name__.removesuffix("_kernel")
        return f"{name}, reverse" if self.options.get("REVERSE") else name


def mixer(dtype: torch.dtype, length: int, padded: bool, segments: int) -> Callable[[], None]:
    """Both directions of the mixer, with resets."""

    def launch() -> None:
        pre, grad_gated = (torch.empty(2, length, x * WIDTH, dtype=dtype) for x in (3, 1))
        state, mask = torch.empty(2, WIDTH), torch.zeros(2, length, dtype=torch.bool)
        bias, padding = torch.empty(WIDTH), mask if padded else None
        with mock.patch.object(triton_gated_scan, "split", return_value=segments):
            _, last, saved = triton_gated_scan._forward(pre, bias, state, mask, padding, 1e-6, True)
            triton_gated_scan._backward(pre, bias, mask, padding, saved, grad_gated, last, 1e-6)

    return launch


def scan() -> None:
    """Both directions of the scan; time is split in no way, and any length will do."""
    decay, state = torch.empty(2, 512, WIDTH), torch.empty(2, WIDTH)
    triton_scan.scan_states(decay, decay, state)
    triton_scan.scan_gradients(decay, decay, state, decay, state)


def softmax() -> None:
    """Rows of an odd vocabulary, padded, in place."""
    logits, nats = torch.empty(4, -(-VOCABULARY // 16) * 16), torch.empty(4)
    softmax_gradient(logits, torch.zeros(4, dtype=torch.int64), nats, logits, VOCABULARY, 1.0)


def forms(name: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """What is compiled: `resets` as in training, `all masks` with padding and a length that nothing divides."""
    yield "bfloat16, resets", mixer(torch.bfloat16, 512, False, 1)
    yield "bfloat16, resets", mixer(torch.bfloat16, 512, False, 4)
    yield "bfloat16, all masks", mixer(torch.bfloat16, 1000, True, 4)
    if name == SHOWN:
        yield "float16, all masks", mixer(torch.float16, 1000, True, 4)
        yield "float32, all masks", mixer(torch.float32, 1000, True, 4)
    yield "float32", scan
    yield "float32", softmax


@contextmanager
def launches_for(name: str) -> Iterator[list[Launch]]:
    """Collects the launches inside, laid out as on an architecture."""
    found: list[Launch] = []
    laid_out = table.launch_options

    def record(kernel, *arguments, grid, warmup, **options):
        found.append(Launch(kernel, arguments, options))

    hip = "gfx" if TARGETS[name].backend == "hip" else None
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(table, "architecture", return_value=name))
        patches.enter_context(mock.patch.object(torch.version, "hip", hip))
        for module in (triton_gated_scan, triton_scan):
            options_there = lambda direction, _, *rest: laid_out(direction, torch.device("cuda"), *rest)  # noqa: E731
            patches.enter_context(mock.patch.object(module, "launch_options", options_there))
        patches.enter_context(mock.patch.object(JITFunction, "run", record))
        yield found


def compiled_rows(name: str) -> dict[str, Row]:
    """One row a kernel and form; where a form launches a kernel twice, the first."""
    rows: dict[str, Row] = {}
    for form, launch in forms(name):
        with launches_for(name) as launches:
            launch()
        for one in launches:
            key = f"{one.name} ({'float32' if one.name.startswith('scan') else form}) {name}"
            if key not in rows:
                rows[key] = measure(one, TARGETS[name], count=name == SHOWN)
    return rows


def measure(launch: Launch, target: GPUTarget, count: bool) -> Row:
    """Compiles a launch as the run time would: registers, bytes spilled a thread, shared memory, conversions."""
    kernel, backend = launch.kernel, make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(*launch.arguments, **launch.options)
    packed = kernel._pack_args(backend, launch.options, bound, specialization, options)
    options, signature, constants, attributes = packed
    source = ASTSource(kernel, signature, constants, attributes)
    binary = triton.compile(source, target=target, options=options.__dict__)
    row = {"shared": binary.metadata.shared, "conversions": binary.asm["ttgir"].count("ttg.convert_layout")}
    if target.backend == "hip":
        text = binary.asm["amdgcn"]
        spilled = _number(r"\.private_segment_fixed_size:\s+(\d+)", text)
        return {"registers": _number(r"\.vgpr_count:\s+(\d+)", text), "spilled": spilled, **row}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        row = {"registers": _number(r"REG:(\d+)", usage), "spilled": _number(r"STACK:(\d+)", usage), **row}
        if count:
            tile = bound["BLOCK"] if "BLOCK" in bound else bound["W"] * bound["R"] * bound["C"]
            looped = instructions_in_loops(_tool("nvdisasm", "-c", file.name))
            row["instructions"] = round(looped * 32 * options.num_warps / tile, 1)
    return row


def instructions_in_loops(listing: str) -> int:
    """Instructions between each backward branch and where it goes: what a thread does for a block."""
    labels: dict[str, int] = {}
    done = total = 0
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = done
        elif re.match(r"\s*/\*[0-9a-f]{4,}\*/\s", line):
            done += 1
            target = re.search(r"\bBRA\b.*?(\.L_\w+)", line)
            # The branch to itself behind EXIT is no loop.
            if target and target[1] in labels and done - labels[target[1]] > 1:
                total += done - labels[target[1]]
    return total


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"{pattern} is not in the listing"
    return int(found[1])


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Prints versions and rows; a process a target, as many as there are processors."""
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        # The longest first.
        futures = {name: pool.submit(compiled_rows, name) for name in sorted(TARGETS, key=lambda name: name != SHOWN)}
        rows = {key: row for name in TARGETS for key, row in futures[name].result().items()}
    version = _tool("ptxas", "--version")
    versions = {"triton": triton.__version__, "ptxas": re.findall(r"V([\d.]+)", version)[0]}
    print(json.dumps({"versions": versions, "kernels": rows}))


if __name__ == "__main__":
    main()
