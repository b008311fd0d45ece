"""`liquidnet bench --model`: the modelled step time on known devices, and where each number comes from."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from spec.config import ModelConfig
from tools.bench import roofline
from tools.bench.roofline import (
    DEVICES,
    LOSSES,
    MINIMUM,
    OURS,
    PEERS,
    PUBLISHED,
    Device,
    MixerTraffic,
)

WHAT = "a model, not a measurement: a floor at 100 % of peak, without launch overhead"


def modelled(name: str, config: ModelConfig, batch_size: int, seq_len: int) -> dict[str, Any]:
    """Everything that is printed, as JSON holds it; `name` is the preset's."""
    tokens = batch_size * seq_len
    fused = roofline.ours()
    terms = roofline.step_terms(config, tokens, fused)
    floor = {device: roofline.step_seconds(terms, row) for device, row in DEVICES.items()}
    device, published = PUBLISHED
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
                "milliseconds": {device: 1e3 * term.seconds(row) for device, row in DEVICES.items()},
                "origin": term.origin,
            }
            for term in terms
        ],
        "step": _per_device(floor, tokens),
        "losses": [_loss_row(config, tokens, fused, loss) for loss in LOSSES],
        "mixers": [
            _mixer_row(config, tokens, name, traffic)
            for name, traffic in {"ours, fused": fused, **PEERS, "minimum": MINIMUM}.items()
        ],
        "published": {
            "device": device,
            "tokens_per_second": published,
            "of_the_floor": published * floor[device] / tokens,
            "origin": "the original LiquidNet announcement, its 30M model, measured by its author",
        },
        "devices": {
            name: {"flops": row.flops, "bytes_per_second": row.bandwidth, "source": row.source}
            for name, row in DEVICES.items()
        },
    }


def _per_device(seconds: dict[str, float], tokens: int) -> dict[str, dict[str, float]]:
    return {
        device: {"milliseconds": 1e3 * value, "tokens_per_second": tokens / value} for device, value in seconds.items()
    }


def _loss_row(config: ModelConfig, tokens: int, mixer: MixerTraffic, loss: str) -> dict[str, Any]:
    terms = roofline.step_terms(config, tokens, mixer, loss)
    part = {term.name: term for term in terms}
    form = LOSSES[loss]

    def milliseconds(device: Device) -> float:
        return 1e3 * (part["LM head products"].seconds(device) + part["cross-entropy"].seconds(device))

    return {
        "loss": loss,
        "bytes_a_logit": form.logit_bytes,
        "gigabytes": 1e-9 * part["cross-entropy"].bytes,
        "products": form.products,
        "milliseconds": {name: milliseconds(device) for name, device in DEVICES.items()},
        "step": _per_device({name: roofline.step_seconds(terms, row) for name, row in DEVICES.items()}, tokens),
        "origin": part["cross-entropy"].origin,
    }


def _mixer_row(config: ModelConfig, tokens: int, name: str, traffic: MixerTraffic) -> dict[str, Any]:
    (term,) = [term for term in roofline.step_terms(config, tokens, traffic) if term.name == "mixer"]
    return {
        "mixer": name,
        "gigabytes": 1e-9 * term.bytes,
        "bytes_forward": traffic.forward,
        "bytes_backward": traffic.backward,
        "milliseconds": {device: 1e3 * term.seconds(row) for device, row in DEVICES.items()},
        "origin": traffic.origin,
    }


def show(result: dict[str, Any], console: Console | None = None) -> None:
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
    published = {result["published"]["device"]: f"{result['published']['tokens_per_second'] / 1e3:.1f}"}
    times.add_row("k tokens/s published", *(published.get(device, "") for device in DEVICES))
    console.print(times)
    if result["preset"] == "small":
        told = result["published"]
        console.print(
            f"published: {told['tokens_per_second']:,} tokens/s on an {told['device']}, "
            f"{100 * told['of_the_floor']:.0f} % of this floor ({told['origin']})",
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
    console.print(_losses(result["losses"]))
    console.print(_mixers(result["mixers"]))
    sources = Table("device", "TFLOP/s", "GB/s", "source")
    for name, row in result["devices"].items():
        sources.add_row(name, f"{1e-12 * row['flops']:,.1f}", f"{1e-9 * row['bytes_per_second']:,.0f}", row["source"])
    console.print(sources)


def _cells(milliseconds: dict[str, float]) -> list[str]:
    return [f"{value:.2f}" for value in milliseconds.values()]


def _losses(rows: list[dict[str, Any]]) -> Table:
    table = Table("LM head + loss, ms", "bytes", *DEVICES)
    for row in rows:
        name = row["loss"] + (" (ours)" if row["loss"] == OURS else "")
        table.add_row(name, f"{row['bytes_a_logit']:g}", *_cells(row["milliseconds"]))
    return table


def _mixers(rows: list[dict[str, Any]]) -> Table:
    table = Table("mixer, ms a step", "bytes", *DEVICES)
    for row in rows:
        traffic = f"{row['bytes_forward']:.3g} + {row['bytes_backward']:.3g}"
        table.add_row(row["mixer"], traffic, *_cells(row["milliseconds"]))
    return table
