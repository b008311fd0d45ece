"""What a proof came to: printed, written as Markdown and JSON, raised."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from parity.proof.bounds import TIGHT
from spec.checkpoint.files import new_file

HEADER = ("backend", "dtype", "tensor", "worst error", "seed")


@dataclass
class TensorErrors:
    """The largest error of one tensor in one backend and dtype, in units of its bound, and the seed of its problem."""

    backend: str
    dtype: str
    tensor: str
    worst: float = 0.0
    seed: int = 0


@dataclass
class Failure:
    """What one backend in one dtype got wrong, shown on the smallest problem, and there where it is worst.

    Args:
        backend, dtype: of what.
        tensor: an output, or `gradient of` an input; empty where the function raised.
        units: how many bounds it is off by.
        seed, problem: of the problem, and what kind of one it is.
        message: tensor, place, units, what it is and what it should be.
        problems: how many problems failed.
    """

    backend: str
    dtype: str
    tensor: str
    units: float
    seed: int
    problem: str
    message: str
    problems: int = 1


@dataclass
class Result:
    """Whether an operation's functions are its reference but for rounding.

    Args:
        name: of the operation.
        draws, seed: problems of the seeds from `seed` on.
        by_hand: its gradients are those of an adjoint, not those of complex steps.
        rows: the largest errors.
        failures: one for each backend and dtype that failed.
        source: `FILE.py:OPERATION`, where the command line read it.
    """

    name: str
    draws: int
    seed: int
    by_hand: bool
    rows: list[TensorErrors] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    source: str | None = None

    @property
    def passed(self) -> bool:
        """No tensor was outside its bound."""
        return bool(self.rows or self.failures) and not self.failures

    @property
    def exit_code(self) -> int:
        """0: within every bound; 1: not. (2 is for bad input, which is a ValueError.)"""
        return 0 if self.passed else 1

    @property
    def used(self) -> float:
        """How much of a float32 bound was used at most: far below 1/30 it would let mistakes through."""
        return max((row.worst for row in self.rows if row.dtype == "float32"), default=0.0)

    def require(self) -> Result:
        """Itself, where it passed.

        Raises:
            AssertionError: it did not; names the worst entry and how to see it again.
        """
        if not self.passed:
            worst = max(self.failures, key=lambda one: one.units)
            raise AssertionError(f"{worst.message}\n    {self.repeat(worst)}")
        return self

    def repeat(self, failure: Failure) -> str:
        """A line that shows one failure again, alone."""
        if self.source is not None:
            return f"python -m parity {self.source} --draws 1 --seed {failure.seed} --dtypes {failure.dtype}"
        name = self.name if self.name.isidentifier() else "operation"
        return f"parity.prove({name}, draws=1, seed={failure.seed}, dtypes=({failure.dtype!r},)).require()"

    def report(self, directory: str | Path) -> None:
        """Writes report.md and report.json into a directory; numbers that are not finite are words in JSON."""
        more = {"passed": self.passed, "failures": [{**asdict(x), "repeat": self.repeat(x)} for x in self.failures]}
        whole = {**asdict(self), **more}
        for entry in (*whole["rows"], *whole["failures"]):
            entry.update({name: str(x) for name, x in entry.items() if isinstance(x, float) and not math.isfinite(x)})
        text = json.dumps(whole, indent=1, allow_nan=False) + "\n"
        for name, content in (("report.md", f"# Proof of {self.name}\n\n{self}\n"), ("report.json", text)):
            with new_file(Path(directory) / name) as temporary:
                temporary.write_text(content, encoding="utf-8")

    def __str__(self) -> str:
        return "\n\n".join(self._paragraphs())

    def _paragraphs(self) -> Iterator[str]:
        """The verdict, what failed, and a table, as Markdown and for a terminal."""
        wrong = dict.fromkeys(one.backend for one in self.failures)
        right = dict.fromkeys(row.backend for row in self.rows if row.backend not in wrong)
        count = f"{self.draws} problem{'s' * (self.draws > 1)}"
        if self.passed:
            yield f"PASS {self.name}: on {count} {' and '.join(right)} kept to the reference but for rounding."
        else:
            yield f"FAIL {self.name}: on {count} {' and '.join(wrong)} left the reference by more than rounding."
        for one in self.failures:
            yield (
                f"{one.message}\nfails on {one.problems} of {count}; shown is {one.problem}; to see it again:\n\n"
                f"    {self.repeat(one)}"
            )
        rows = [(x.backend, x.dtype, x.tensor, _number(x.worst), str(x.seed)) for x in self.rows]
        if rows:
            widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
            lines = [HEADER, tuple("-" * width for width in widths), *rows]
            cells = ([x.ljust(width) for x, width in zip(line, widths, strict=True)] for line in lines)
            yield "\n".join("| " + " | ".join(line) + " |" for line in cells)
        source = "its adjoint" if self.by_hand else "the reference by complex steps"
        yield (
            "Errors are in units of a bound. In float32 it is an estimate, 4 times what rounding at random did to the "
            f"reference, in float64 1e-12 of the largest entry. Gradients: of {source}."
        )
        if self.passed and any(row.dtype == "float32" for row in self.rows) and self.used < TIGHT:
            yield (
                f"Not tight: at most {_number(self.used)} of the float32 bounds was used; a mistake that is smaller "
                "than a bound passes in float32."
            )


def _number(units: float) -> str:
    return f"{units:.2f}" if 0.1 <= units < 100.0 else f"{units:.2g}"
