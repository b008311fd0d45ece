"""The checked-in budget of the kernels, and what exceeds it.

`limits` is what was promised, and stays; `kernels` and `bytes` are what was measured when the table was last written.
Another ptxas may need other numbers of registers: fewer are within the budget.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

BUDGET = Path(__file__).parent / "budget.json"
Budget = dict[str, Any]
"""budget.json: `versions`, `limits`, and a section for each thing measured."""
SECTIONS = ("bytes", "kernels")
WATCHED = ("registers", "spilled", "shared", "conversions")


def faults(found: Budget, budget: Budget) -> list[str]:
    """A line for each kernel that spills, grows or moves more than the budget, and for each that either side lacks."""
    lines = [*compared("kernels", found, budget), *compared("bytes", found, budget)]
    for name, row in found["kernels"].items():
        kernel, (allowed, old) = name.split(" (")[0], (budget["limits"]["registers"], budget["kernels"].get(name, {}))
        if row["spilled"]:
            lines.append(f"{name} spills {row['spilled']} bytes a thread")
        if " sm_" in name and row["registers"] > allowed.get(kernel, row["registers"]):
            lines.append(f"{name} has {row['registers']} registers, the limit is {allowed[kernel]}")
        for column in WATCHED:
            if column != "spilled" and column in old and row[column] > old[column]:
                lines.append(f"{name}: {column} grew from {old[column]} to {row[column]}")
    for name, moved in found["bytes"].items():
        # Addresses are counted, not sampled: half a thousandth is the rounding of the table.
        for what, least in (("budget", budget["bytes"].get(name)), ("limit", budget["limits"]["bytes"].get(name))):
            if least is not None and moved > least + 5e-4:
                lines.append(f"{name} moves {moved} bytes a (token, channel), the {what} is {least}")
    return lines


def compared(section: str, found: Budget, budget: Budget) -> Iterator[str]:
    """A line for each row of a section that was not measured, or is not in the budget."""
    for name in sorted(found[section].keys() ^ budget[section].keys()):
        where = "budget; --write adds it" if name in found[section] else f"{section} any more; --write removes it"
        yield f"{name} is not in the {where}"


def to_text(budget: Budget, sections: Iterable[str]) -> str:
    """JSON text of versions, limits and sections, a line for each row of a section."""
    body = [f'  "versions": {json.dumps(budget["versions"])}']
    for section in ("limits", *sections):
        inside = ",\n".join(f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in budget[section].items())
        body.append(f"  {json.dumps(section)}: {{\n{inside}\n  }}")
    return "{\n" + ",\n".join(body) + "\n}\n"


def check_or_write(
    found: Budget,
    path: Path,
    faults: Callable[[Budget, Budget], list[str]],
    sections: Iterable[str],
    check: bool,
    write: bool,
) -> int:
    """Keeps what was found as the budget, compares it with the budget, or neither, as the flags say; the exit code.

    Args:
        found: what was measured, by section.
        path: of the budget; its limits stay whatever is written.
        faults: (found, budget) -> a line for each thing that exceeds the budget.
        sections: of the file, in their order, behind its limits.
        check: print each fault, or that there is none.
        write: what was found becomes the budget.
    """
    budget, name = json.loads(path.read_text()), f"parity/suite/compiled/{path.parent.name}/{path.name}"
    if write:
        budget = {"limits": budget["limits"], **found}
        path.write_text(to_text(budget, sections))
    wrong = faults(found, budget) if check or write else []
    for line in wrong:
        print(f"{name}: {line}", file=sys.stderr)
    if check and not wrong:
        print(f"everything is within {name}")
    return 1 if wrong else 0
