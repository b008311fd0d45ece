"""The least time a train step can take on a device: counted bytes and FLOPs over the datasheet's peaks.

A model, not a measurement. A term takes max(FLOPs / peak, bytes / bandwidth), and terms follow each other: what a
step cannot go below at 100 % of peak, with no launch overhead and nothing kept in a cache between kernels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from spec.config import ModelConfig
from spec.parameters import num_parameters, parameter_table

BUDGET = Path(__file__).parents[2] / "parity" / "suite" / "compiled" / "triton" / "budget.json"
COUNTED = "counted in the interpreter, parity/suite/compiled/triton/budget.json"
PUBLISHED = ("A5000", 56_668)
"""Tokens a second that the original LiquidNet announcement reports for its 30M model, and on which device."""


@dataclass(frozen=True)
class Device:
    """Peaks of a device: dense bfloat16 products with float32 accumulation in FLOP/s, memory in bytes/s."""

    flops: float
    bandwidth: float
    source: str
    called: tuple[str, ...] = ()
    """What torch.cuda.get_device_name says."""


DEVICES = {
    "A5000": Device(
        111.1e12,
        768e9,
        "NVIDIA RTX A5000 datasheet: tensor 222.2 TFLOP/s with sparsity, half of it dense; 768 GB/s. "
        "GA102 workstation cards accumulate in float32 at full rate (A40 datasheet: 149.7 either way)",
        ("NVIDIA RTX A5000",),
    ),
    "H100": Device(
        989.4e12,
        3350e9,
        "NVIDIA H100 datasheet, SXM5: 1,979 TFLOP/s with sparsity, half of it dense; 3.35 TB/s",
        ("NVIDIA H100 80GB HBM3",),
    ),
    "H200": Device(
        989.4e12,
        4800e9,
        "NVIDIA H200 datasheet, SXM: 1,979 TFLOP/s with sparsity, half of it dense; 4.8 TB/s",
        ("NVIDIA H200",),
    ),
    "A100": Device(
        312e12,
        2039e9,
        "NVIDIA A100 datasheet, SXM4 80 GB: 312 TFLOP/s dense; 2,039 GB/s",
        ("NVIDIA A100-SXM4-80GB",),
    ),
    "RTX 4090": Device(
        165.2e12,
        1008e9,
        "NVIDIA Ada whitepaper, GeForce RTX 4090: 165.2 TFLOP/s dense with float32 accumulation; 1,008 GB/s",
        ("NVIDIA GeForce RTX 4090",),
    ),
    "MI300X": Device(
        1307.4e12,
        5300e9,
        "AMD Instinct MI300X datasheet: 1,307.4 TFLOP/s dense; 5.3 TB/s",
        ("AMD Instinct MI300X",),
    ),
}


@dataclass(frozen=True)
class Term:
    """One part of a step: (FLOPs, bytes) of each kernel in it, and where the numbers come from."""

    name: str
    kernels: tuple[tuple[float, float], ...]
    origin: str

    @property
    def flops(self) -> float:
        return sum(flops for flops, _ in self.kernels)

    @property
    def bytes(self) -> float:
        return sum(moved for _, moved in self.kernels)

    def seconds(self, device: Device) -> float:
        """The sum over kernels of max(FLOPs / peak, bytes / bandwidth)."""
        return sum(max(flops / device.flops, moved / device.bandwidth) for flops, moved in self.kernels)


@dataclass(frozen=True)
class MixerTraffic:
    """Bytes a (token, channel) that a mixer moves, bfloat16 in and out."""

    forward: float
    backward: float
    origin: str


PEERS = {
    "fla recurrent, compiled gates": MixerTraffic(
        20, 40, "loads and stores of fused_recurrent_hgrn, each gate kernel read and written once, bfloat16"
    ),
    "fla chunk, compiled gates": MixerTraffic(
        41, 62, "loads and stores of chunk_hgrn at t 512, chunks of 128, each gate kernel read and written once"
    ),
    "fla chunk, eager gates": MixerTraffic(67, 118, "the same, each operation of the gates read and written alone"),
}
MINIMUM = MixerTraffic(8, 14, "three pre-activations read, one output written; four read, three written")


@dataclass(frozen=True)
class LossForm:
    """How the loss is computed: bytes a logit, products of tokens x width x vocabulary, and logits held at a time."""

    logit_bytes: float
    products: int
    held: int | None
    what: str


CHUNK_LOGITS = 2**26
"""Those of torch_impl.ops.cross_entropy on a GPU, which this file does not import: it needs no backend."""
_IN_CHUNKS = (
    "a chunk's float32 logits written and read (8), their bfloat16 gradient written and read by two products (6)"
)
LOSSES = {
    "one pass over chunks": LossForm(14, 3, CHUNK_LOGITS, _IN_CHUNKS),
    "one pass, chunks a quarter as large": LossForm(14, 3, CHUNK_LOGITS // 4, _IN_CHUNKS),
    "all logits at once, eager float32": LossForm(
        42,
        3,
        None,
        "bfloat16 logits widened (8), log-softmax (8), its gradient (16), narrowed again (6), read by two products (4)",
    ),
    "all logits at once, fused bfloat16": LossForm(
        12, 3, None, "logits written and read twice (6), gradient written and read by two products (6)"
    ),
    "logits never in memory": LossForm(0, 4, None, "none; the logits' product is made twice"),
}
OURS = "one pass over chunks"


def counted_bytes(path: Path | None = None) -> dict[str, float]:
    """Bytes a (token, channel) of each kernel, as counted by interpreting it.

    Raises:
        ValueError: the table is missing, or lacks the mixer.
    """
    path = BUDGET if path is None else path
    try:
        counted = json.loads(path.read_text())["bytes"]
        return {name: float(counted[name]) for name in ("mixer forward", "mixer backward")} | counted
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: it holds the counted bytes and comes with the sources") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} needs bytes for 'mixer forward' and 'mixer backward', got {error}") from error


def linear(tokens: int, inputs: int, outputs: int) -> list[tuple[float, float]]:
    """(FLOPs, bytes) of y = x W^T and of both gradients: 2 m n k each, all bfloat16 but the float32 gradient of W.

    Each array is read once and written once; `tokens`, `inputs` and `outputs` are sizes.
    """
    flops = 2.0 * tokens * inputs * outputs
    x, weight, y = 2.0 * tokens * inputs, 2.0 * inputs * outputs, 2.0 * tokens * outputs
    return [(flops, x + weight + y)] * 2 + [(flops, x + 2 * weight + y)]


def lm_head(config: ModelConfig, tokens: int, form: LossForm) -> tuple[tuple[float, float], ...]:
    """(FLOPs, bytes) of the products with the embedding, chunk by chunk; the logits' own bytes are another term.

    Each chunk reads the bfloat16 embedding in every product, and adds to its float32 gradient: reads and writes it.
    """
    d, v = config.d_model, config.vocab_size
    chunks = 1 if form.held is None else -(-tokens // max(1, form.held // v))
    hidden, weight, flops = 2.0 * tokens * d / chunks, 2.0 * v * d, 2.0 * tokens * d * v / chunks
    gradient = 4.0 * v * d * (1 if chunks == 1 else 2)
    return (*[(flops, hidden + weight)] * (form.products - 1), (flops, hidden + gradient)) * chunks


def step_terms(config: ModelConfig, tokens: int, mixer: MixerTraffic, loss: str = OURS) -> tuple[Term, ...]:
    """Every part of a train step in bfloat16: products, mixer, MLP, norms, embedding, loss and optimizer.

    Args:
        config: the model.
        tokens: tokens a step.
        mixer: what the mixer moves.
        loss: a key of LOSSES.
    """
    d, f, v, layers = config.d_model, config.d_ff, config.vocab_size, config.n_layers
    form = LOSSES[loss]
    shapes = ((d, 3 * d), (d, d), (d, 2 * f), (f, d))
    layer = [kernel for shape in shapes for kernel in linear(tokens, *shape)] * layers
    wide = float(tokens * d)
    matrices = sum(row.shape[0] * row.shape[1] for row in parameter_table(config) if len(row.shape) == 2)
    all_weights = float(num_parameters(config))
    once = "formula: bytes each read once and written once: "
    return (
        Term("LM head products", lm_head(config, tokens, form),
             f"formula: 2 m n k, {form.products} products; operands, and the float32 gradient a chunk, if slower"),
        Term("cross-entropy", ((0.0, form.logit_bytes * tokens * v),), f"{once}{form.what}"),
        Term("layer products", tuple(layer), "formula: 2 m n k, 3 products a matrix; bfloat16 operands if slower"),
        Term(
            "mixer",
            ((0.0, mixer.forward * wide), (0.0, mixer.backward * wide)) * layers,
            f"{mixer.origin}: bfloat16 in and out, {mixer.forward:g} forward, {mixer.backward:g} backward a "
            "(token, channel)",
        ),
        Term("SwiGLU", ((0.0, 6.0 * tokens * f), (0.0, 10.0 * tokens * f)) * layers,
             f"{once}bfloat16, 6 forward, 10 backward a (token, MLP channel)"),
        Term("residual + norm", ((0.0, 12.0 * wide), (0.0, 16.0 * wide)) * (2 * layers),
             f"{once}float32 stream, bfloat16 branches, 12 forward, 16 backward a (token, channel)"),
        Term("embedding + first norm", ((0.0, 10.0 * wide), (0.0, 18.0 * wide)),
             f"{once}float32 rows gathered, their gradients added"),
        Term("optimizer", ((0.0, 32.0 * all_weights), (0.0, 2.0 * matrices)),
             f"{once}float32 AdamW 28 a weight, norm of the gradient 4, bfloat16 copy of the matrices 2"),
    )  # fmt: skip


def ours(counted: dict[str, float] | None = None) -> MixerTraffic:
    """The fused kernels' traffic, as counted."""
    counted = counted_bytes() if counted is None else counted
    return MixerTraffic(counted["mixer forward"], counted["mixer backward"], COUNTED)


def step_seconds(terms: tuple[Term, ...], device: Device) -> float:
    """The sum of the terms."""
    return sum(term.seconds(device) for term in terms)


def step_flops(config: ModelConfig, tokens: int) -> float:
    """FLOPs of the products of a step, no recomputation: what MFU divides by. 6 a weight of a matrix and token."""
    weights = sum(row.shape[0] * row.shape[1] for row in parameter_table(config) if len(row.shape) == 2)
    return 6.0 * tokens * weights


def attention_flops(width: int, layers: int, tokens: int, window: int) -> float:
    """FLOPs that causal attention adds to 6 a weight and token: 12 t d a layer and token, half of it masked away."""
    return 6.0 * layers * tokens * window * width


def known_device(called: str) -> tuple[str, Device] | None:
    """The row of DEVICES that a device name stands for, or None."""
    return next(((name, device) for name, device in DEVICES.items() if called in device.called), None)
