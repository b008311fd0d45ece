"""What a planted fault is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """One mistake that somebody porting this could make, and the tests that must notice it.

    Args:
        name: the fault in a few words, `the scan drops the initial state`.
        file: the file it is in, from the root of the repository.
        old: the text that is right; occurs once in the file.
        new: what stands there instead.
        tests: arguments of pytest, files first, then `-k` and an expression: what must catch it, in seconds.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def apply(self, root: Path) -> str:
        """Plant the fault below `root`; the text that was there before. ValueError where `old` is not there once."""
        path = root / self.file
        text = path.read_text("utf-8")
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file} holds {text.count(self.old)} times what `{self.name}` replaces, not once")
        path.write_text(text.replace(self.old, self.new), "utf-8")
        return text
