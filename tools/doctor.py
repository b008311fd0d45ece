"""What is here, what runs, and whether it is right."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from parity.proof.environment import UNUSABLE, environment
from spec.mixers import families, registry, unusable
from spec.presets import PRESETS, RECIPES
from tools.cli import backends
from tools.cli.destination import require_new_or_file
from tools.cli.json_file import Json, write_json
from tools.cli.progress import track
from tools.training.selftest import Verdict, known_verdict, probe, remember, self_test, tested_operations


@dataclass(frozen=True)
class Doctor:
    """Show versions, devices and methods, and test each method against the float64 reference on this device.

    The verdicts on scans are kept for `liquidnet train`, which asks for them where --method is auto.
    Exit code 0: every method that runs here is within its bounds; 1: one is not, or none runs,
    or a backend finds no device; 2: no backend is installed. `auto` is shown for nano's shapes. Families of installed
    packages are listed, and of one that cannot be used, why; `liquidnet parity --family NAME` proves one.
    """

    json: Path | None = None
    """Write everything to this file too."""

    def run(self) -> None:
        require_new_or_file(self.json, "--json")
        flaw = unknown_xla_flags()
        if flaw is not None:
            del os.environ["XLA_FLAGS"]
        found: Json = {"environment": environment(), "backends": {}, "families": outside(), "passed": False}
        if flaw is not None:
            found["environment"]["devices"]["jax"] = [f"{UNUSABLE} {flaw}"]
        for name in backends.BACKENDS:
            found["backends"][name] = self._backend(name, found["environment"]["devices"].get(name, []))
        checked = [row for one in found["backends"].values() for row in one.get("methods", ())]
        usable = not any("unusable" in one for one in found["backends"].values())
        running = [{row["operation"] for row in one["methods"] if row["runs"]} == set(tested_operations())
                   for one in found["backends"].values() if "methods" in one]  # fmt: skip
        within = all(row["passed"] for row in checked if row["runs"])
        found["passed"] = bool(checked) and usable and all(running) and within
        _show(found)
        if self.json is not None:
            write_json(self.json, found)
        backends.default()
        sys.exit(0 if found["passed"] else 1)

    def _backend(self, name: backends.Backend, devices: list[str]) -> Json:
        if name not in backends.installed():
            return {"missing": _advice(name)}
        if any(device.startswith(UNUSABLE) for device in devices):
            return {"unusable": devices[0]}
        return {**placement(name), "methods": examine(name)}


def unknown_xla_flags() -> str | None:
    """Why XLA would end this process, as it does for XLA_FLAGS that it does not know; None where it would not."""
    if "XLA_FLAGS" not in os.environ or "jax" in sys.modules or "jax" not in backends.installed():
        return None
    ended = subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], capture_output=True, text=True)
    told = next((line for line in ended.stderr.splitlines() if "XLA_FLAGS" in line), None)
    if ended.returncode == 0 or told is None:
        return None
    return f"{told.partition('] ')[2] or told}; mend XLA_FLAGS, or unset it"


def outside() -> list[Json]:
    """Families from outside: the package that each is in, and why it, or its module of a backend, cannot be used."""
    found, broken = registry(), {name: unusable(f"{name}_impl") for name in backends.installed()}
    rows: list[Json] = [{"name": name, "package": "", "problems": [why]} for name, why in found.broken.items()]
    for name, package in found.packages.items():
        problems = [f"{backend}: {one[name]}" for backend, one in broken.items() if name in one]
        rows.append({"name": name, "package": package, "problems": problems})
    return sorted(rows, key=lambda row: row["name"])


def examine(backend: str) -> list[Json]:
    """One row for each method of each operation: whether it runs, how far it is off, what the cache says of it."""
    from parity.proof.adapters import load

    rows: list[Json] = []
    methods, auto = load(backend).METHODS, automatic(backend)
    every = [(name, method) for name in tested_operations() for method in methods[name] if method != "auto"]
    for operation, method in track(every, f"{backend}: testing {len(every)} methods"):
        verdict = probe(backend, operation, method)
        # JSON has no number that is not finite.
        worst = None if math.isnan(verdict.worst) else min(verdict.worst, sys.float_info.max)
        row: Json = {
            "operation": operation,
            "method": method,
            "passed": verdict.passed,
            "worst": worst,
            "message": verdict.message,
            "runs": verdict.runs,
            "auto": method == auto[operation],
            "cache": _cache_verdict(backend, method) if operation == "mixer" else "",
        }
        rows.append(row)
    return rows


def placement(backend: str) -> Json:
    """Where a backend computes, in which half precision it should train there, and how it decodes.

    For torch also the GPU's architecture, and why the Triton methods do not run; None where they do.
    """
    smallest = replace(PRESETS["nano"], vocab_size=1, d_model=1, d_ff=1, n_layers=1, max_seq_len=1)
    model = backends.load(backend, "model").build(smallest)
    choose = backends.load(backend, "ops.decode").choose_method
    if backend != "torch":
        return {"dtype": "bfloat16", "decode": choose(model)}
    known = backends.load(backend, "ops.devices")
    device = known.default_device()
    return {
        "device": device.type,
        "architecture": known.architecture(device),
        "triton": known.triton_refusal(device),
        "dtype": "bfloat16" if known.has_bfloat16(device) else "float16",
        "decode": choose(model.to(device)),
    }


def automatic(backend: str) -> dict[str, str]:
    """What `auto` takes for the shapes of the first preset of each family of this project."""
    choose, found = backends.load(backend, "model").choose_method, {}
    for one in (one for name, one in families().items() if name not in registry().packages):
        config, training = next(iter(one.presets.values()))
        found[one.operation] = choose(config, training.batch_size, training.seq_len)
    nano, training = PRESETS["nano"], RECIPES["nano"]
    scan = backends.load(backend, "ops.scan").choose_method((training.batch_size, training.seq_len, nano.d_model))
    losses = backends.load(backend, "ops.cross_entropy")
    where = (backends.load(backend, "ops.devices").default_device(),) if backend == "torch" else ()
    return {"scan": scan, **found, "loss": losses.choose_method(*where)}


def _cache_verdict(backend: str, method: str) -> str:
    """Whether the verdict that training reads still holds; the cache is corrected where it does not."""
    known, now = known_verdict(backend, method), self_test(backend, method)
    if known != now:
        remember(backend, method, now)
    if known is None:
        return "kept now"
    return "agrees" if known.passed == now.passed else f"said {_word(known)}: corrected"


def _word(verdict: Verdict) -> str:
    return "within" if verdict.passed else "outside" if verdict.runs else "does not run"


def _advice(backend: str) -> str:
    from parity.proof.adapters import missing

    return f"{missing(backend)}: pip install 'liquidnet-dual[{backend}]'"


def _show(found: Json) -> None:
    console = Console(highlight=False)
    e = found["environment"]
    here = Table(show_header=False, title="this machine", title_justify="left")
    here.add_row("python", f"{e['python']} on {e['system']}")
    here.add_row("processor", f"{e['processor']}, {e['cores']} cores, {e['memory_gib']} GiB")
    for name, value in e["threads"].items():
        here.add_row(f"threads, {name}", str(value))
    for name, devices in e["devices"].items():
        here.add_row(f"{name} devices", escape(", ".join(devices)))
    for name, version in e["versions"].items():
        here.add_row(name, version, style="dim" if version == "not installed" else None)
    console.print(here)
    for row in found["families"]:
        state = "; ".join(row["problems"]) or f"usable, from {row['package']}"
        style = "red" if row["problems"] else None
        console.print(f"family {row['name']}: {state}", style=style, markup=False, soft_wrap=True)
    for name, one in found["backends"].items():
        if "methods" not in one:
            console.print(f"{name}: {one.get('missing') or one.get('unusable')}", markup=False, soft_wrap=True)
        else:
            console.print(_methods(name, one["methods"]))
            console.print(f"{name}: {_placement_line(one)}", markup=False, soft_wrap=True)
            for row in one["methods"]:
                if not row["passed"]:
                    console.print(
                        f"{name} {row['operation']} {row['method']}: {row['message']}",
                        style="red" if row["runs"] else "dim", markup=False, soft_wrap=True,
                    )  # fmt: skip


def _placement_line(one: Json) -> str:
    """What `placement` found, in a line."""
    parts = [f"half precision: --dtype {one.get('dtype')}", f"decode: {one.get('decode')}"]
    if "device" in one:
        parts.insert(0, f"computes on {one['device']} ({one.get('architecture')})")
        triton = one.get("triton")
        parts.append("Triton methods run" if triton is None else f"Triton methods do not run: {triton}")
    return "; ".join(parts)


def _methods(backend: str, rows: list[Json]) -> Table:
    table = Table(
        "operation", "method", "runs here", "worst error / bound", "auto", "for train",
        title=f"{backend}: each method against the float64 reference", title_justify="left",
    )  # fmt: skip
    for row in rows:
        worst = "" if row["worst"] is None else f"{row['worst']:.3g}" + ("" if row["passed"] else " OUTSIDE")
        cells = (row["operation"], row["method"], "yes" if row["runs"] else "no", worst, "x" if row["auto"] else "")
        style = None if row["passed"] else "bold red" if row["runs"] else "dim"
        table.add_row(*cells, row["cache"], style=style)
    return table
