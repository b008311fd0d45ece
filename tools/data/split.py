"""The split into training and validation text: one text divided, or two texts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from tools.data.documents import Advance, Source
from tools.data.pieces import Piece

#: "train" or "val", a piece of a document, and whether the document ends with it.
Routed = tuple[str, str, bool]

MANY_DOCUMENTS = 20


@dataclass(frozen=True)
class Split:
    """Training text: this many whole documents and this many characters of the next; the rest is for validation."""

    documents: int
    characters: int


def choose_split(lengths: Sequence[int], val_fraction: float) -> Split:
    """Divide documents between training and validation.

    Args:
        lengths: characters of every document, in order.
        val_fraction: the share of characters wanted at the end; 20 or more documents stay whole, fewer are cut.

    Raises:
        ValueError: if one part would be empty.
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    cut = int(total * (1 - val_fraction))
    if len(ends) >= MANY_DOCUMENTS:
        return Split(int(np.argmin(np.abs(ends[:-1] - total * (1 - val_fraction)))) + 1, 0)
    if not 0 < cut < total:
        raise ValueError(f"val_fraction {val_fraction} of {total} characters leaves a part empty; give more text")
    documents = int(np.searchsorted(ends, cut, side="right"))
    return Split(documents, cut - (int(ends[documents - 1]) if documents else 0))


def route(pieces: Iterable[Piece], split: Split) -> Iterator[Routed]:
    """Send each piece to its part.

    Args:
        pieces: all documents.
        split: where training ends.

    Yields: "train" or "val", the text, and whether a document ends with it.
    """
    index = position = 0
    for text, ends in pieces:
        if index < split.documents:
            yield "train", text, ends
        elif index > split.documents or position >= split.characters:
            yield "val", text, ends
        else:
            room = split.characters - position
            yield "train", text[:room], False
            if room < len(text):
                yield "val", text[room:], ends
        position = 0 if ends else position + len(text)
        index += ends


def _never() -> bool:
    return False


@dataclass(frozen=True)
class DividedSource:
    """One text, whose end is for validation."""

    source: Source
    split: Split
    whole: Split
    """All of its documents and characters, as they were when the split was chosen."""

    @property
    def names(self) -> dict[str, list[str]]:
        """What meta.json says of where it came from."""
        return {"source": self.source.names}

    @property
    def size(self) -> int:
        """All of it in units of progress."""
        return self.source.size

    #: What has to be read however little of the training text is wanted.
    least_size = size

    def pieces(self, advance: Advance, whole: bool = False, enough: Callable[[], bool] = _never) -> Iterator[Routed]:
        """The pieces of both parts; none for training any more once `enough`.

        Raises:
            ValueError: at the end, the text is not the one that the split was chosen for.
        """
        documents = characters = 0
        for routed in route(self.source.pieces(advance, whole), self.split):
            documents += routed[2]
            characters += len(routed[1])
            if routed[0] == "val" or not enough():
                yield routed
        if Split(documents, characters) != self.whole:
            raise ValueError(
                f"the text changed while it was read ({', '.join(self.source.names)}); run it again once nothing "
                "writes to it any more"
            )


@dataclass(frozen=True)
class SeparateSources:
    """A text for training and another one for validation."""

    train: Source
    val: Source

    @property
    def names(self) -> dict[str, list[str]]:
        return {"source": self.train.names, "val_source": self.val.names}

    @property
    def size(self) -> int:
        return self.train.size + self.val.size

    @property
    def least_size(self) -> int:
        return self.val.size

    def pieces(self, advance: Advance, whole: bool = False, enough: Callable[[], bool] = _never) -> Iterator[Routed]:
        for text, ends in self.train.pieces(advance, whole):
            if enough():
                break
            yield "train", text, ends
        for text, ends in self.val.pieces(advance, whole):
            yield "val", text, ends


#: Text for training, then text for validation; both can be read more than once.
Parts: TypeAlias = DividedSource | SeparateSources
