"""How the Triton kernels are started: splitting time, addresses, registration with PyTorch, and who is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest

from parity.suite.compiled.triton.budget import faults
from spec import LiquidNetConfig

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from torch_impl import LiquidNet
from torch_impl.kernels.triton import gated_scan_backward, gated_scan_forward, launch, scan
from torch_impl.ops import devices
from torch_impl.ops.gated_scan import METHODS
from torch_impl.ops.gated_scan import triton as triton_methods
from torch_impl.ops.gated_scan.unfused import GatedScanInputs
from torch_impl.ops.scan import choose_method
from torch_impl.ops.scan import triton as triton_scan

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if reason := devices.triton_refusal(DEVICE):
    pytest.skip(reason, allow_module_level=True)
INTERPRETED = DEVICE.type == "cpu"
TINY = LiquidNetConfig(vocab_size=37, d_model=8, d_ff=16, n_layers=1, max_seq_len=8)


@pytest.mark.parametrize("blocks", [1, 2, 7, 32, 1000])
@pytest.mark.parametrize("processors", [1, 14, 132])
def test_time_is_split_where_programs_do_not_fill_the_device(blocks, processors):
    wanted = launch.PROGRAMS_EACH * processors
    for programs in range(1, 2 * wanted):
        segments = launch.split(programs, blocks, processors)
        assert (segments > 1) <= (programs * launch.SPLIT_COST < wanted)
        assert 1 <= segments <= blocks
        each = -(-blocks // segments)
        # The kernels take `each` blocks a segment: the last has what is left, and something is.
        assert (segments - 1) * each < blocks <= segments * each
        if segments > 1 and blocks >= wanted:
            assert programs * segments >= wanted


def test_the_rule_at_its_threshold():
    # 132 processors want 264 programs: 176 cost 1.5 times the bytes and fill the device no better.
    assert launch.split(176, 64, 132) == 1 and launch.split(175, 64, 132) == 2
    assert launch.split(1, 64, 132) == 64 and launch.split(12, 64, 132) == 32
    assert pytest.approx((12.5 + 20.4) / (8.2 + 14.2), abs=0.05) == launch.SPLIT_COST


def leaves(dtype, b=2, t=5, d=3):
    random = torch.Generator().manual_seed(0)
    sizes = {"pre": (b, t, 3 * d), "bias": (d,), "state": (b, d)}
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    drawn = {name: torch.randn(size, generator=random, dtype=torch.float64) for name, size in sizes.items()}
    return [x.to(DEVICE, dtype if name == "pre" else wide).requires_grad_() for name, x in drawn.items()]


@pytest.mark.parametrize("dtype, masked", [(torch.bfloat16, True), (torch.float32, False)])
def test_the_operators_are_registered_as_pytorch_asks(dtype, masked):
    pre, bias, state = leaves(dtype)
    resets, padding = (torch.rand(2, 2, 5, device=DEVICE) < 0.3) if masked else (None, None)
    torch.library.opcheck(triton_methods._forward, (pre, bias, state, resets, padding, 1e-6, True))
    *plain, of_gated = (x.detach() for x in (pre, bias, state, pre[..., :3]))
    saved = triton_methods._forward(*plain, resets, padding, 1e-6, True)[2]
    gradients = plain[0], plain[1], resets, padding, saved, of_gated, plain[2], 1e-6
    torch.library.opcheck(triton_methods._backward, gradients)
    wide, one = torch.rand(2, 5, 3, device=DEVICE), plain[2]
    torch.library.opcheck(triton_scan.scan_states, (wide, wide, one), {"reverse": masked})
    torch.library.opcheck(triton_scan.scan_gradients, (wide, wide, one, wide, one))


@pytest.mark.parametrize("t", [3, 33])
def test_gradients_are_those_of_finite_differences(t):
    inputs = leaves(torch.float64, b=1, t=t, d=1)
    resets, padding = torch.rand(2, 1, t, device=DEVICE) < 0.2

    def mix(pre, bias, state):
        return triton_methods.triton_gated_scan(GatedScanInputs(pre, bias, state, resets, padding, 0.1))

    assert torch.autograd.gradcheck(mix, inputs, fast_mode=t > 3)


# Dynamo makes an instance of every autograd.Function that it traces, which PyTorch itself warns of.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_a_step_compiles_without_a_graph_break(compute_dtype):
    model = LiquidNet(TINY, compute_dtype=compute_dtype, method="triton").to(DEVICE)
    tokens = torch.arange(10, device=DEVICE).reshape(2, 5)
    resets, padding = tokens == 3, tokens == 7
    found = []
    for loss in (model.loss, torch.compile(model.loss, fullgraph=True, backend="aot_eager")):
        value, states = loss(tokens, tokens + 1, resets=resets, padding=padding)
        (value + states.square().sum()).backward()
        found.append([value.detach(), *(p.grad.clone() for p in model.parameters())])
        model.zero_grad()
    for eager, compiled in zip(*found, strict=True):
        assert (eager - compiled).abs().max() <= 1e-6 * max(1.0, float(eager.abs().max()))


@contextmanager
def addresses_of(program):
    """Runs only this program of a grid, and instead of memory gives zeros; yields the addresses that it asks for."""
    from triton.runtime import interpreter

    asked, builder, running = [], interpreter.InterpreterBuilder, interpreter.interpreter_builder

    def load(self, pointers, mask, *rest):
        asked.append(pointers.data[mask.data])
        kind = pointers.get_element_ty()
        return interpreter.TensorHandle(np.zeros(pointers.data.shape, interpreter._get_np_dtype(kind)), kind)

    def store(self, pointers, value, mask, *rest):
        asked.append(pointers.data[mask.data])

    def place(*_):
        running.grid_idx = program, 0, 0

    with (
        mock.patch.object(builder, "create_masked_load", load),
        mock.patch.object(builder, "create_masked_store", store),
        mock.patch.object(running, "set_grid_idx", place),
    ):
        yield asked


STEPS, WIDTH = 32, 64
LAYOUT = {"STAGES": 1, "D": WIDTH, "W": 4, "R": 8, "C": WIDTH}
PLAIN = {"KEEP": 1.0, "REST": 0.0, "RESETS": False, "PADDED": False, "STILLS": False, **LAYOUT}
VALUE, DECAY, GATE = range(3)
# Of arguments with an entry a step: which, and which thirds of its row are touched; None where it has no thirds.
WHOLE = (VALUE, DECAY, GATE)
KERNELS = {
    "forward": (gated_scan_forward.gated_scan_forward, 8, 2, {0: WHOLE, 5: None}, {"SAVE": True, "EVERY": 32, **PLAIN}),
    "backward": (gated_scan_backward.gated_scan_backward, 10, 2, {0: WHOLE, 5: None, 7: WHOLE}, PLAIN),
    "summary": (gated_scan_forward.gated_scan_summary, 6, 2, {0: (VALUE, DECAY)}, PLAIN),
    "adjoint": (gated_scan_backward.gated_scan_adjoint_summary, 7, 2, {0: (DECAY, GATE), 4: None}, PLAIN),
    "scan": (scan.scan_forward, 4, 4, {0: None, 1: None, 3: None}, {"REVERSE": False, **LAYOUT}),
    "scan back": (scan.scan_forward, 4, 4, {0: None, 1: None, 3: None}, {"REVERSE": True, **LAYOUT}),
    "scan adjoint": (scan.scan_backward, 7, 4, {0: None, 3: None, 5: None, 6: None}, LAYOUT),
}


@pytest.mark.skipif(not INTERPRETED, reason="looks at addresses in the interpreter")
@pytest.mark.parametrize("far", ["sequence", "step"])
@pytest.mark.parametrize("name", KERNELS)
def test_addresses_beyond_two_to_the_31_elements_are_right(name, far):
    """One program, far from the first, of a problem that no memory holds."""
    kernel, tensors, size, touched, options = KERNELS[name]
    if name.startswith("scan") and far == "step":
        pytest.skip("a program of the scan has a whole sequence")
    segments = 1 if far == "sequence" else 2**22
    sequence, segment = (2**21, 0) if far == "sequence" else (0, segments - 1)
    length, program = segments * STEPS, sequence * segments + segment
    dtype = torch.float32 if size == 4 else torch.bfloat16
    arguments = [torch.zeros(1, dtype=dtype if i in touched else torch.float32) for i in range(tensors)]
    # Where a segment's length is counted in steps, or in blocks.
    sizes = () if name.startswith("scan") else (segments, STEPS if kernel.__name__.endswith("summary") else 1)
    with addresses_of(program) as asked:
        kernel[(1,)](*arguments, length, *sizes, **options)
    found = np.unique(np.concatenate([at.ravel() for at in asked]))
    for i, thirds in touched.items():
        each, columns = WIDTH, np.arange(WIDTH)
        if thirds is not None:
            each, columns = 3 * WIDTH, np.concatenate([third * WIDTH + columns for third in thirds])
        steps = np.arange(program * STEPS, (program + 1) * STEPS)
        elements = (steps[:, None] * each + columns).ravel()
        assert elements.max() > 2**31
        wanted = np.uint64(arguments[i].data_ptr()) + np.uint64(size) * elements.astype(np.uint64)
        assert np.isin(wanted, found).all(), f"argument {i}"


@pytest.mark.skipif(not INTERPRETED, reason="there is a GPU")
def test_a_machine_without_a_gpu_says_so():
    code = (
        "import torch; from torch_impl.ops.gated_scan import gated_scan; from torch_impl.ops.scan import scan\n"
        "x = torch.zeros(1, 2, 3)\n"
        "gated = lambda: gated_scan(x, torch.zeros(1), 0.1, method='triton')\n"
        "for run in (gated, lambda: scan(x, x, method='triton')):\n"
        "    try: run()\n"
        "    except NotImplementedError as error: print(error)\n"
    )
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    told = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=True).stdout
    reason = (
        "method 'triton': the Triton kernels need a GPU, the tensors are on cpu; TRITON_INTERPRET=1 interprets them"
    )
    assert (told.splitlines() == [reason] * 2) >= INTERPRETED


def test_an_old_gpu_is_refused_by_name_and_takes_chunked(monkeypatch):
    monkeypatch.setattr(devices, "INTERPRETED", False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA GeForce GTX 1650")
    with pytest.raises(NotImplementedError, match=r"need compute capability 8\.0, NVIDIA GeForce GTX 1650 has 7\.5"):
        devices.require_triton("triton", torch.device("cuda"))
    assert choose_method((1, 512, 8), torch.device("cuda")) == "chunked"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    assert choose_method((1, 512, 8), torch.device("cuda")) == "triton" and "triton" in METHODS


def test_what_exceeds_the_budget_of_the_kernels_is_named():
    row = {"registers": 90, "spilled": 0, "shared": 64, "conversions": 1}
    name = "gated_scan_forward (bfloat16, resets) sm_90"
    limits = {"bytes": {"mixer forward": 8.2}, "registers": {"gated_scan_forward": 96}}
    measured = {"kernels": {name: row}, "bytes": {"mixer forward": 8.14}}
    budget = {**measured, "limits": limits}
    assert faults(measured, budget) == []
    assert faults({**measured, "kernels": {name: row | {"registers": 80, "shared": 0}}}, budget) == []

    def told(**changes):
        return faults({**measured, "kernels": {name: row | changes}}, budget)

    assert told(spilled=8) == [f"{name} spills 8 bytes a thread"]
    assert told(shared=65) == [f"{name}: shared grew from 64 to 65"]
    assert told(conversions=2) == [f"{name}: conversions grew from 1 to 2"]
    assert told(registers=97) == [f"{name} has 97 registers, the limit is 96", f"{name}: registers grew from 90 to 97"]
    moved = faults({**measured, "bytes": {"mixer forward": 8.3}}, budget)
    assert [line.partition("the ")[2] for line in moved] == ["budget is 8.14", "limit is 8.2"]
    assert faults({**measured, "kernels": {}}, budget) == [f"{name} is not in the kernels any more; --write removes it"]
    assert faults(measured, {**budget, "bytes": {}}) == ["mixer forward is not in the budget; --write adds it"]
