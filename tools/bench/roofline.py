"""`liquidnet bench --roofline`: the least time a train step can take: counted bytes and FLOPs over datasheets' peaks.

A model, not a measurement. A term takes max(FLOPs / peak, bytes / bandwidth), and terms follow each other: what a
step cannot go below at 100 % of peak, with no launch overhead and nothing kept in a cache between kernels
(Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model").
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from spec.config import ModelConfig
from spec.parameters import num_parameters, parameter_table
from tools.cli.json_file import Json

WHAT = "a model, not a measurement: a floor at 100 % of peak, without launch overhead"


@dataclass(frozen=True)
class Device:
    """Peaks of a device: dense bfloat16 products with float32 accumulation in FLOP/s, memory in bytes/s."""

    flops: float
    bandwidth: float
    source: str
    called: str
    """What torch.cuda.get_device_name says."""


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


@dataclass(frozen=True)
class LossForm:
    """How the loss is computed: bytes a logit, products of tokens x width x vocabulary, and logits held at a time."""

    logit_bytes: float
    products: int
    origin: str
    held: int | None = None


_DATA = tomllib.loads(Path(__file__).with_name("roofline.toml").read_text())
DEVICES = {name: Device(**row) for name, row in _DATA["devices"].items()}
MIXERS = {name: MixerTraffic(**row) for name, row in _DATA["mixers"].items()}
LOSSES = {name: LossForm(**row) for name, row in _DATA["losses"].items()}
PUBLISHED = _DATA["published"]
OURS = next(iter(LOSSES))
FUSED = MIXERS["ours, fused"]


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
        Term("cross-entropy", ((0.0, form.logit_bytes * tokens * v),), f"{once}{form.origin}"),
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


def known_device(called: str) -> Device | None:
    """The row of DEVICES that a device name stands for, or None."""
    return next((device for device in DEVICES.values() if called == device.called), None)


def modelled(name: str, config: ModelConfig, batch_size: int, seq_len: int) -> Json:
    """Everything that is printed, as JSON holds it; `name` is the preset's."""
    tokens = batch_size * seq_len
    terms = step_terms(config, tokens, FUSED)
    step = _step(terms, tokens)
    of_the_floor = PUBLISHED["tokens_per_second"] / step[PUBLISHED["device"]]["tokens_per_second"]
    return {
        "what": WHAT,
        "preset": name,
        "batch_size": batch_size,
        "seq_len": seq_len,
        "terms": [
            {
                "term": term.name,
                "gigaflops": 1e-9 * term.flops,
                "gigabytes": 1e-9 * term.bytes,
                "milliseconds": _milliseconds(term),
                "origin": term.origin,
            }
            for term in terms
        ],
        "step": step,
        "losses": [_loss_row(config, tokens, loss) for loss in LOSSES],
        "mixers": [_mixer_row(config, tokens, name, traffic) for name, traffic in MIXERS.items()],
        "published": {**PUBLISHED, "of_the_floor": of_the_floor},
        "devices": {
            name: {"flops": row.flops, "bytes_per_second": row.bandwidth, "source": row.source}
            for name, row in DEVICES.items()
        },
    }


def _milliseconds(*terms: Term) -> dict[str, float]:
    return {name: 1e3 * step_seconds(terms, device) for name, device in DEVICES.items()}


def _step(terms: tuple[Term, ...], tokens: int) -> dict[str, dict[str, float]]:
    whole = _milliseconds(*terms)
    return {name: {"milliseconds": ms, "tokens_per_second": 1e3 * tokens / ms} for name, ms in whole.items()}


def _loss_row(config: ModelConfig, tokens: int, loss: str) -> Json:
    terms, form = step_terms(config, tokens, FUSED, loss), LOSSES[loss]
    products, own = (term for term in terms if term.name in ("LM head products", "cross-entropy"))
    return {
        "loss": loss,
        "bytes_a_logit": form.logit_bytes,
        "gigabytes": 1e-9 * own.bytes,
        "products": form.products,
        "milliseconds": _milliseconds(products, own),
        "step": _step(terms, tokens),
        "origin": own.origin,
    }


def _mixer_row(config: ModelConfig, tokens: int, name: str, traffic: MixerTraffic) -> Json:
    (term,) = [term for term in step_terms(config, tokens, traffic) if term.name == "mixer"]
    return {
        "mixer": name,
        "gigabytes": 1e-9 * term.bytes,
        "bytes_forward": traffic.forward,
        "bytes_backward": traffic.backward,
        "milliseconds": _milliseconds(term),
        "origin": traffic.origin,
    }


def show(result: Json, console: Console | None = None) -> None:
    """The tables: milliseconds by device, origins, forms of the loss, mixers of others, devices."""
    console = console or Console(highlight=False)
    shape = f"{result['preset']}, {result['batch_size']} x {result['seq_len']} tokens a step, bfloat16"
    console.print(f"{shape}: {result['what']}", soft_wrap=True)
    times = Table("train step, ms", *DEVICES, title_justify="left")
    for row in result["terms"]:
        times.add_row(row["term"], *_cells(row["milliseconds"]))
    times.add_section()
    times.add_row("whole step, ms", *(f"{one['milliseconds']:.1f}" for one in result["step"].values()))
    # In thousands, so that a terminal of 80 columns holds the table.
    times.add_row("k tokens/s at most", *(f"{one['tokens_per_second'] / 1e3:,.0f}" for one in result["step"].values()))
    published = result["published"]
    speed = {published["device"]: f"{published['tokens_per_second'] / 1e3:.1f}"}
    times.add_row("k tokens/s published", *(speed.get(device, "") for device in DEVICES))
    console.print(times)
    if result["preset"] == "small":
        console.print(
            f"published: {published['tokens_per_second']:,} tokens/s on an {published['device']}, "
            f"{100 * published['of_the_floor']:.0f} % of this floor ({published['origin']})",
            soft_wrap=True,
        )
    origins = Table("term", "GFLOP", "GB", "where the numbers come from")
    for row in result["terms"]:
        origins.add_row(row["term"], f"{row['gigaflops']:,.0f}", f"{row['gigabytes']:.2f}", row["origin"])
    for kind in ("loss", "mixer"):
        origins.add_section()
        for row in result["mixers" if kind == "mixer" else "losses"]:
            origins.add_row(row[kind], "", f"{row['gigabytes']:.2f}", row["origin"])
    console.print(origins)
    losses = Table("LM head + loss, ms", "bytes", *DEVICES)
    for row in result["losses"]:
        name = row["loss"] + (" (ours)" if row["loss"] == OURS else "")
        losses.add_row(name, f"{row['bytes_a_logit']:g}", *_cells(row["milliseconds"]))
    console.print(losses)
    mixers = Table("mixer, ms a step", "bytes", *DEVICES)
    for row in result["mixers"]:
        traffic = f"{row['bytes_forward']:.3g} + {row['bytes_backward']:.3g}"
        mixers.add_row(row["mixer"], traffic, *_cells(row["milliseconds"]))
    console.print(mixers)
    sources = Table("device", "TFLOP/s", "GB/s", "source")
    for name, row in result["devices"].items():
        sources.add_row(name, f"{1e-12 * row['flops']:,.1f}", f"{1e-9 * row['bytes_per_second']:,.0f}", row["source"])
    console.print(sources)


def _cells(milliseconds: dict[str, float]) -> list[str]:
    return [f"{value:.2f}" for value in milliseconds.values()]
