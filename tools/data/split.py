"""Which text is for training and which for validation: one text divided, or two texts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from tools.data.documents import Advance, Source, Split, route

#: "train" or "val", a piece of a document, and whether the document ends with it.
Routed = tuple[str, str, bool]


def _never() -> bool:
    return False


class Parts(Protocol):
    """Text for training, then text for validation; both can be read more than once."""

    @property
    def names(self) -> dict[str, list[str]]:
        """What meta.json says of where it came from."""
        ...

    @property
    def size(self) -> int:
        """All of it in units of progress."""
        ...

    @property
    def tail(self) -> int:
        """What has to be read however little of the training text is wanted."""
        ...

    def pieces(self, advance: Advance, whole: bool = False, enough: Callable[[], bool] = _never) -> Iterator[Routed]:
        """The pieces of both parts; none for training any more once `enough`."""
        ...


@dataclass(frozen=True)
class Divided:
    """One text, whose end is for validation."""

    source: Source
    split: Split

    @property
    def names(self) -> dict[str, list[str]]:
        return {"source": self.source.names}

    @property
    def size(self) -> int:
        return self.source.size

    @property
    def tail(self) -> int:
        return self.size

    def pieces(self, advance: Advance, whole: bool = False, enough: Callable[[], bool] = _never) -> Iterator[Routed]:
        for routed in route(self.source.pieces(advance, whole), self.split):
            if routed[0] == "val" or not enough():
                yield routed


@dataclass(frozen=True)
class Separate:
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
    def tail(self) -> int:
        return self.val.size

    def pieces(self, advance: Advance, whole: bool = False, enough: Callable[[], bool] = _never) -> Iterator[Routed]:
        for text, ends in self.train.pieces(advance, whole):
            if enough():
                break
            yield "train", text, ends
        for text, ends in self.val.pieces(advance, whole):
            yield "val", text, ends
