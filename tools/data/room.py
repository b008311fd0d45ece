"""Whether the disk has room for the token files: asked before the text is read, and once some of it is encoded."""

from __future__ import annotations

import math
from pathlib import Path

from tools.cli.destination import require_room
from tools.data.documents import ROW_READERS, FileSource, Source
from tools.tokenizer import Tokenizer

#: Of what is estimated, so much must be free: an estimate is no reason to refuse what might fit.
_SURE = 0.8


class Room:
    """What is known of the size of the token files.

    Args:
        out: where they are to be.
        limit: of --max-tokens; what ends early has no estimate.
    """

    def __init__(self, out: Path, limit: float) -> None:
        self._out, self._unlimited = out, limit == math.inf
        self._encoded = self._written = 0
        self._asked = False
        #: Of all of the text, once it has been read.
        self.characters: int | None = None

    def require_for_files(self, train: Source, val: Source | None, tokenizer: Tokenizer | None) -> None:
        """Raises OSError where plain files, a token a byte, will not fit; of other tokenizers nothing is known yet."""
        if tokenizer is None or not tokenizer.is_bytes or not self._unlimited:
            return
        paths = [path for source in (train, val) if isinstance(source, FileSource) for path in source.paths]
        # Rows hold more than text, or hold it compressed.
        size = sum(path.stat().st_size for path in paths if path.suffix.lower() not in ROW_READERS)
        require_room(self._out, _SURE * size * tokenizer.dtype.itemsize, "--out")

    def require_after(self, characters: int, written: int) -> None:
        """Raises OSError where the first batch shows that the rest will not fit; called after each batch."""
        self._encoded += characters
        if self._asked or self.characters is None or not self._unlimited:
            return
        self._asked = True
        rest = self.characters - self._encoded
        require_room(self._out, _SURE * written * rest / max(self._encoded, 1), "--out")
