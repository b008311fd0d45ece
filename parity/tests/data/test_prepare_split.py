"""Two texts in place of one divided, and a training part that ends where it has enough: validation never changes."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from parity.tests.data.test_prepare import check_meta, prepare, read_meta, refused, texts_of
from spec.data import open_data
from tools.data import documents
from tools.data import prepare as module
from tools.data.stories import stories
from tools.tokenizer import END_OF_TEXT, build_tokenizer


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "data"


def write_documents(path: Path, count: int, word: str = "word") -> list[str]:
    """A file of many documents of different lengths."""
    written = [f"Document {index}. " + f"{word} " * (index % 7) for index in range(count)]
    path.write_text(f"\n{END_OF_TEXT}\n".join(written))
    return written


@pytest.mark.parametrize("tokenizer", ["byte", "bpe:300"])
def test_a_validation_text_of_its_own(out: Path, tmp_path: Path, tokenizer: str):
    train = write_documents(tmp_path / "train.txt", 50)
    val = write_documents(tmp_path / "val.txt", 3, "zyzzyva")
    more = tmp_path / "more.jsonl"
    more.write_text('{"text": "zyzzyva"}\n')
    prepare(text=(tmp_path / "train.txt",), val_text=(tmp_path / "val.txt", more), out=out, tokenizer=tokenizer)
    check_meta(out)
    assert texts_of(out, "train") == [*train, ""]
    assert texts_of(out, "val") == [*val, "zyzzyva", ""]
    meta = read_meta(out)
    assert (meta["source"], meta["val_source"]) == (["train.txt"], ["val.txt", "more.jsonl"])
    assert "max_tokens" not in meta
    if tokenizer != "byte":
        expected = build_tokenizer(tokenizer, train)
        assert (out / "tokenizer.json").read_text() == expected.to_json()
    assert open_data(out).meta == meta


def test_a_cut_between_two_documents_ends_the_first(out: Path, tmp_path: Path):
    """Nothing of the second is for training, so the end of the first is."""
    (tmp_path / "two.jsonl").write_text('{"text": "abcdefgh"}\n{"text": "stuvwxyz"}\n')
    prepare(text=(tmp_path / "two.jsonl",), val_fraction=0.5, out=out)
    assert texts_of(out, "train") == ["abcdefgh", ""] and texts_of(out, "val") == ["stuvwxyz", ""]


def test_stories_with_a_validation_text(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "val.txt").write_text("One document only.\n")
    prepare(stories=3, val_text=(tmp_path / "val.txt",), out=out)
    assert texts_of(out, "train")[:-1] == list(stories(3, 0))
    assert texts_of(out, "val") == ["One document only.\n", ""]
    assert capsys.readouterr().err.splitlines() == ["encoding ..."]  # nothing to divide, so nothing is read before


class Lines:
    """Counts what is read of a file's documents."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: dict[str, int] = {}
        original = documents.FileSource.pieces

        def pieces(source: documents.FileSource, advance, whole: bool = False):
            for piece in original(source, advance, whole):
                self.read[source.paths[0].name] = self.read.get(source.paths[0].name, 0) + 1
                yield piece

        monkeypatch.setattr(documents.FileSource, "pieces", pieces)


@pytest.mark.parametrize("wanted", [1, 13, 14, 1000.0, 5e3])
def test_the_training_part_ends_with_a_document(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: float
):
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 300)
    train = write_documents(tmp_path / "train.txt", 500)
    val = write_documents(tmp_path / "val.txt", 9)
    lines = Lines(monkeypatch)
    prepare(text=(tmp_path / "train.txt",), val_text=(tmp_path / "val.txt",), max_tokens=wanted, out=out)
    check_meta(out)
    ends = np.cumsum([len(text) + 1 for text in train])
    documents_wanted = int(np.searchsorted(ends, wanted)) + 1
    assert texts_of(out, "train") == [*train[:documents_wanted], ""]
    assert texts_of(out, "val") == [*val, ""]
    assert read_meta(out)["train"]["tokens"] == ends[documents_wanted - 1] >= wanted
    assert read_meta(out)["max_tokens"] == wanted and type(read_meta(out)["max_tokens"]) is int
    assert lines.read == {"train.txt": pytest.approx(documents_wanted, abs=33), "val.txt": 9}


def test_validation_does_not_depend_on_max_tokens(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 300)
    write_documents(tmp_path / "many.txt", 100)
    prepare(text=(tmp_path / "many.txt",), out=out)
    prepare(text=(tmp_path / "many.txt",), out=tmp_path / "less", max_tokens=700)
    check_meta(tmp_path / "less")
    all_of_it, less = texts_of(out, "train"), texts_of(tmp_path / "less", "train")
    assert less == [*all_of_it[: len(less) - 1], ""] and 10 < len(less) < 30
    assert (out / "val.bin").read_bytes() == (tmp_path / "less/val.bin").read_bytes()
    capsys.readouterr()
    prepare(text=(tmp_path / "many.txt",), out=tmp_path / "more", max_tokens=1e6)
    assert "the training text ends before the 1,000,000 tokens of --max-tokens" in capsys.readouterr().out
    assert (out / "train.bin").read_bytes() == (tmp_path / "more/train.bin").read_bytes()


def test_a_long_document_is_not_cut_by_max_tokens(out: Path, tmp_path: Path):
    long = "word " * 30_000
    (tmp_path / "train.txt").write_text(f"{long}{END_OF_TEXT}another one")
    (tmp_path / "val.txt").write_text("some")
    prepare(text=(tmp_path / "train.txt",), val_text=(tmp_path / "val.txt",), max_tokens=10, out=out)
    assert texts_of(out, "train") == [long, ""]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_text": (Path("a"),)}, "no text: give"),
        ({"dataset": "tinystories", "val_text": (Path("a"),)}, "has its own validation text; leave --val-text out"),
        ({"dataset": "tinystories", "val_fraction": 0.1}, "--dataset tinystories brings another; leave one"),
        ({"stories": 5, "val_text": (Path("a"),), "val_fraction": 0.1}, "--val-text brings another; leave one of them"),
        ({"stories": 5, "max_tokens": 0.5}, "max_tokens must be at least 1, not 0.5; try 50e6"),
        ({"stories": 5, "max_tokens": float("inf")}, "max_tokens must be at least 1, not inf"),
        ({"stories": 5, "max_tokens": float("nan")}, "max_tokens must be at least 1, not nan"),
    ],
)
def test_flags_that_contradict_each_other(out: Path, arguments: dict[str, object], message: str):
    refused(out, message, **arguments)


def test_files_that_cannot_be_validation_text(out: Path, tmp_path: Path):
    text, link = tmp_path / "text.txt", tmp_path / "link.txt"
    refused(out, "check --val-text", FileNotFoundError, stories=5, val_text=(text,))
    text.write_text(" ")
    refused(out, r"text\.txt: no text in it", stories=5, val_text=(text,))
    for same in (link.symlink_to, link.hardlink_to):
        same(text)
        refused(out, r"link\.txt is in --text and in --val-text; a model", text=(text,), val_text=(link,))
        link.unlink()


def test_the_time_left_is_of_what_will_be_read(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With --max-tokens that is all of the validation text, and of the other as much as makes so many tokens."""
    expected: list[float] = []

    class Shown:
        def expect(self, total: float) -> None:
            expected.append(total)

        def advance(self, amount: float) -> None: ...

    monkeypatch.setattr(module, "progress", lambda *_: nullcontext(Shown()))
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 1000)
    (tmp_path / "train.txt").write_text(f"{'a' * 99}{END_OF_TEXT}" * 1000)
    (tmp_path / "val.txt").write_text("b" * 500)
    prepare(text=(tmp_path / "train.txt",), val_text=(tmp_path / "val.txt",), out=out, max_tokens=5000)
    # A document of 99 bytes is 100 tokens.
    assert expected and expected[-1] == pytest.approx(500 + 4950, rel=0.01)
