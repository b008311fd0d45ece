"""What a train step on a CPU costs, counted: operators, products, kernels, bytes, compilations. Nothing is timed.

A number that grows here has made every step slower, on every machine; one that shrinks is to be written down.
"""

from __future__ import annotations

from collections import Counter

import pytest

from spec import LiquidNetConfig
from spec.config import TrainingConfig
from spec.mixers import families
from spec.runtime.memory import keep_freed_memory
from tools.bench.train_step import random_batch

torch = pytest.importorskip("torch")
pytest.importorskip("numba", reason="the extra cpu")
if torch.cuda.is_available():
    pytest.skip("the steps of a GPU are other ones", allow_module_level=True)

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torch_impl.kernels.numba import gated_scan as gated_scan_kernels
from torch_impl.model import build
from torch_impl.ops import matmul
from torch_impl.ops.cross_entropy import numba as numba_loss
from torch_impl.ops.gated_scan.numba import numba_gated_scan
from torch_impl.ops.gated_scan.unfused import GatedScanInputs
from torch_impl.training.engine import Engine

LAYERS = 2
CONFIG = LiquidNetConfig(vocab_size=96, d_model=32, d_ff=48, n_layers=LAYERS, max_seq_len=32)
TRAINING = TrainingConfig(batch_size=4, seq_len=32)
LINEAR_LAYERS = 4 * LAYERS


class Operators(TorchDispatchMode):
    """Counts what PyTorch is asked to do, views left out."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not getattr(function, "is_view", False):
            self.counts[function.name().removeprefix("aten::").split(".")[0]] += 1
        return function(*args, **(kwargs or {}))


class Allocations(TorchDispatchMode):
    """Counts results that are large and lie nowhere in what they were made of."""

    def __init__(self, size):
        super().__init__()
        self.size, self.made = size, Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_leaves(args) if isinstance(x, torch.Tensor)}
        for x in (x for x in tree_leaves(found) if isinstance(x, torch.Tensor)):
            if x.untyped_storage().nbytes() >= self.size and x.untyped_storage().data_ptr() not in given:
                self.made[function.name().split(".")[0]] += 1
        return found


@pytest.fixture(params=[True, False], ids=["oneDNN", "BLAS"])
def convolutions(request, monkeypatch):
    monkeypatch.setattr(matmul, "PREFERS_CONVOLUTIONS", request.param)
    return request.param


def counted(batch_size=4, seq_len=32, layers=LAYERS):
    config = LiquidNetConfig(96, 32, 48, layers, seq_len)
    engine = Engine(config, TrainingConfig(batch_size=batch_size, seq_len=seq_len))
    batch = random_batch(config, batch_size, seq_len)
    engine.train_step(batch, 1e-3)
    with Operators() as operators:
        engine.train_step(batch, 1e-3)
    return operators.counts


def test_three_products_a_matrix(convolutions):
    """Forward, gradient of the input, gradient of the weight: nothing is made twice.

    test_fused_linear_cross_entropy.py has the read-out.
    """
    counts = counted()
    if convolutions:
        assert counts["convolution"] == counts["convolution_backward"] == LINEAR_LAYERS
        assert counts["mm"] == counts["addmm"] == counts["bmm"] == 0
    else:
        assert counts["mm"] == 3 * LINEAR_LAYERS and counts["convolution"] == 0


def test_few_operators_a_step(convolutions):
    """Beside products: what a layer needs, and what a step needs, whatever batch and length."""
    counts = counted()
    assert counts == counted(batch_size=8, seq_len=64), "operators must not depend on the number of tokens"
    more = counted(layers=LAYERS + 1)
    a_layer = {name: more[name] - counts[name] for name in more if more[name] != counts[name]}
    report = f"{sum(counts.values())} operators a step, {sum(a_layer.values())} a layer: {a_layer}"
    # A product of two views is one operator more than three. Six are copies of d numbers, which FSDP makes necessary.
    assert sum(a_layer.values()) <= (41 if convolutions else 49), report
    assert sum(counts.values()) - LAYERS * sum(a_layer.values()) <= 43, report
    assert counts["_fused_adamw_"] == 2, report


def test_kernels_are_compiled_once_for_all_lengths():
    for length in (1, 5, 33):
        pre, bias = torch.randn(2, length, 96, requires_grad=True), torch.randn(32, requires_grad=True)
        gated, _ = numba_gated_scan(GatedScanInputs(pre, bias, None, None, None, 1e-6))
        gated.sum().backward()
    for kernel in (gated_scan_kernels.gated_scan_forward, gated_scan_kernels.gated_scan_backward):
        (alone, _) = (cell.cell_contents for cell in kernel.__closure__ if hasattr(cell.cell_contents, "signatures"))
        formats = {signature[0].dtype for signature in alone.signatures}
        assert len(alone.signatures) == len(formats) >= 1, alone.signatures


@pytest.mark.parametrize("tokens", [128, 512])
def test_bytes_kept_for_the_gradients(tokens):
    """9 d + 3 f + 2 numbers of a token and layer; what two operations need is kept once.

    Norms: x and a number, twice. Inputs of products: d, d, d, f. Mixer: 3 d pre-activations and d states. SwiGLU: 2 f.
    """
    model, d, f = build(CONFIG), CONFIG.d_model, CONFIG.d_ff
    kept: dict[int, int] = {}
    mine = {parameter.data_ptr() for parameter in model.parameters()}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in mine:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = random_batch(CONFIG, 1, tokens)
    alive = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: alive.append(x) or keep(x), lambda x: x):
        hidden, _ = model.hidden(torch.as_tensor(batch.tokens, dtype=torch.long), None)
    a_layer = 4 * (9 * d + 3 * f + 2)
    token_and_last_norm = 8 + 4 * (d + 1)
    assert hidden.shape[1] == tokens
    assert sum(kept.values()) == tokens * (LAYERS * a_layer + token_and_last_norm) + LAYERS * d * 4


def test_the_loss_holds_as_many_logits_as_it_says(monkeypatch):
    """Blocks of logits, and of the gradient of the embedding one at a time."""
    made, usual = [], numba_loss.matmul
    monkeypatch.setattr(numba_loss, "matmul", lambda x, w: made.append(len(x) * len(w)) or usual(x, w))
    monkeypatch.setattr(numba_loss, "BLOCK_LOGITS", 2**12)
    hidden, embedding = torch.randn(256, 8), torch.randn(1000, 8)
    numba_loss.numba_fused_linear(hidden, embedding, torch.zeros(256, dtype=torch.long), 2**16, True)
    assert max(made) <= 2**12 and sum(made) == 256 * 1000
    rows = 2**16 // 1000 // 16 * 16
    assert sum(made[: len(made) // 4]) <= rows * 1000 + 2**12


def test_the_engine_keeps_freed_memory():
    keep_freed_memory.cache_clear()
    Engine(CONFIG, TRAINING)
    assert keep_freed_memory.cache_info().currsize == 1


def test_a_step_makes_no_copy_of_a_parameter(convolutions):
    """Of the size of the embedding a step makes its gradients as read-out and as table, scaled, and their sum."""
    config = LiquidNetConfig(4096, 32, 48, 1, 32)
    engine = Engine(config, TRAINING)
    batch = random_batch(config, 4, 32)
    engine.train_step(batch, 1e-3)
    size = 4 * config.vocab_size * config.d_model

    with Allocations(size) as allocations:
        engine.train_step(batch, 1e-3)
    assert allocations.made == Counter(
        {
            "liquidnet::fused_linear_cross_entropy": 1,
            "aten::mul": 1,
            "aten::embedding_dense_backward": 1,
            "aten::add": 1,
        }
    )


MOVES = {"_to_copy", "_unsafe_view", "clone", "permute", "squeeze", "t", "transpose", "unsqueeze", "view"}
"""What computes nothing."""


class Narrow(TorchDispatchMode):
    """The operators that bfloat16 is given to."""

    def __init__(self):
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if any(x.dtype == torch.bfloat16 for x in tensors):
            self.seen.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", families())
def test_in_bfloat16_nothing_is_computed_but_products(name):
    """Gates, norms, recurrence, softmax and sums are wide, forward and in every gradient."""
    model = build(families()[name].small_config(), compute_dtype="bfloat16")
    tokens = torch.zeros((2, 5), dtype=torch.int32)
    with Narrow() as narrow:
        model.loss(tokens, tokens)[0].backward()
    assert "mm" in narrow.seen and narrow.seen <= {"mm", "bmm", *MOVES}
