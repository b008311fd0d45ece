"""The tables of `liquidnet plan`."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from tools.cli.json_file import Json


def show(result: Json, console: Console) -> None:
    """What a step needs a chip, what takes the time, what is exchanged, and the instructions asked for."""
    mesh = ", ".join(f"{axis}={size}" for axis, size in result["mesh"].items() if size > 1) or "one chip"
    shape = f"{result['batch_size']:,} x {result['seq_len']:,} tokens a step, {result['tokens_per_chip']:,} a chip"
    console.print(
        f"{result['preset']}, {result['parameters'] / 1e6:.1f}M parameters, {result['dtype']}, on "
        f"{result['topology']} ({result['chips']} chips, {mesh}): {shape}",
        soft_wrap=True,
    )
    console.print(_chip(result))
    console.print(_kinds(result["kinds"]))
    if result["collectives"]:
        console.print(_collectives(result["collectives"]))
    if result["dearest"]:
        console.print(_costliest(result["dearest"]))
    for line in result["uncertain"]:
        console.print(f"uncertain: {escape(line)}", soft_wrap=True)
    console.print(f"peaks: {result['peaks']['source']}", style="dim", soft_wrap=True)


def _chip(result: Json) -> Table:
    memory, model = result["memory"], "by that model"
    table = Table("a chip", "", "where it comes from", title="train step", title_justify="left")
    for row in (
        ("peak memory", _gb(memory["peak"]),
         f"the compiler: arguments + outputs + temporary - aliased, of {_gb(memory['capacity'])}"),
        ("  arguments, aliased by outputs", f"{_gb(memory['arguments'])}, {_gb(memory['aliased'])}",
         "parameters, moments and batch; the step updates in place"),
        ("  temporary", _gb(memory["temporary"]), "activations, gradients"),
        ("HBM traffic", _gb(result["hbm_bytes"]), "counted in the compiled program"),
        ("products", _tera(result["flops"]), "counted in the compiled program, recomputation included"),
        ("compile time", f"{result['compile_seconds']:.0f} s", "measured here"),
    ):  # fmt: skip
        table.add_row(*row)
    table.add_section()
    for row in (
        ("sum of rooflines", f"{_ms(result['milliseconds'])} ms",
         "a model, not a measurement: 100 % of peak, no overlap"),
        ("  all at once", f"{_ms(result['bound_milliseconds'])} ms",
         "the same, were products and traffic to overlap wholly"),
        ("tokens a second", f"{result['tokens_per_second'] / 1e6:.2f}M on {result['chips']} chips", model),
        ("MFU", f"{100 * result['mfu']:.0f} %", f"{model}: {_tera(result['model_flops'])}, 6 a weight and token"),
    ):  # fmt: skip
        table.add_row(*row)
    if "largest_batch" in result:
        most = result["largest_batch"]
        table.add_section()
        size = f"{most['batch_size']:,}, {most['tokens_per_chip']:,} tokens a chip"
        table.add_row("largest batch", size, f"{most['how']}: {_gb(most['peak'])}")
    return table


def _kinds(rows: list[Json]) -> Table:
    table = Table("instructions", "ms by the model", "GB", "TFLOP", title="where they go", title_justify="left")
    shown = [row for row in rows if row["milliseconds"] >= 0.005 * rows[0]["milliseconds"]]
    rest = [row for row in rows if row not in shown]
    for row in shown:
        table.add_row(row["kind"], _ms(row["milliseconds"]), f"{row['bytes'] / 1e9:.1f}", f"{row['flops'] / 1e12:.1f}")
    if rest:
        milliseconds, moved = (sum(row[key] for row in rest) for key in ("milliseconds", "bytes"))
        table.add_row(f"{len(rest)} others", _ms(milliseconds), f"{moved / 1e9:.1f}", "0.0")
    return table


def _collectives(rows: list[Json]) -> Table:
    table = Table("collective", "chips", "a step", "operands, MB", "results, MB", "largest operand, MB",
                  title="exchanged by each chip", title_justify="left")  # fmt: skip
    for row in rows:
        sizes = (f"{row[key] / 1e6:,.3f}" for key in ("operand", "result", "largest"))
        table.add_row(row["kind"], str(row["group"]), str(row["count"]), *sizes)
    return table


def _costliest(rows: list[Json]) -> Table:
    table = Table("ms", "times", "MB read", "MB written", "GFLOP", Column("instruction", overflow="fold"),
                  Column("source", overflow="fold"),
                  title="dearest instructions, all runs of each together", title_justify="left")  # fmt: skip
    for row in rows:
        # The end of the path tells where it is from.
        source = escape("; ".join(filter(None, (row["source"][-72:], row["note"]))))
        table.add_row(
            f"{row['milliseconds']:.2f}", f"{row['times']:g}", f"{row['read'] / 1e6:,.0f}",
            f"{row['written'] / 1e6:,.0f}", f"{row['flops'] / 1e9:,.0f}", row["name"], source,
        )  # fmt: skip
    return table


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.2f} TFLOP" if flops >= 1e11 else f"{flops / 1e9:.2f} GFLOP"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:#.3g}"
