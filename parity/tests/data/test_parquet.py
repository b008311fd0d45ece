"""`.parquet` text: the same documents as in any other file, in bounded memory; what is no use is refused in words."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from parity.proof.environment import ROOT
from spec.data import open_data
from tools.data.documents import FileSource
from tools.data.prepare import Prepare
from tools.data.stories import stories
from tools.tokenizer import END_OF_TEXT, load_tokenizer

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

TEXTS = [*stories(60, 3), "  ", "caf\u00e9\n", f"two{END_OF_TEXT}three"]
DOCUMENTS = [*TEXTS[:60], "caf\u00e9\n", f"two{END_OF_TEXT}three"]


def write(path: Path, texts: object, type: object = None, name: str = "text", **options: object) -> Path:
    columns = {"id": pyarrow.array(range(len(texts))), name: pyarrow.array(texts, type=type)}  # type: ignore[arg-type]
    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_every_kind_of_string(tmp_path: Path, kind: str):
    type = pyarrow.dictionary(pyarrow.int32(), pyarrow.string()) if kind == "dictionary" else getattr(pyarrow, kind)()
    path = write(tmp_path / "some.PARQUET", TEXTS, type, row_group_size=7, compression="zstd")
    amounts: list[int] = []
    source = FileSource((path,))
    assert list(source.pieces(amounts.append, whole=True)) == [(text, True) for text in DOCUMENTS]
    assert len(amounts) > 1 and sum(amounts) == source.size == path.stat().st_size


def test_prepare_takes_it_beside_others(tmp_path: Path):
    """By a name that is not UTF-8, which Arrow itself does not open."""
    path = write(tmp_path / "some.parquet", TEXTS).rename(tmp_path / "some\udcff.parquet")
    (tmp_path / "val.txt").write_text("some text")
    Prepare(out=tmp_path / "data", text=(path,), val_text=(tmp_path / "val.txt",)).run()
    data = open_data(tmp_path / "data")
    written = load_tokenizer(tmp_path / "data/tokenizer.json").decode(data.train)
    assert written == "".join(document + END_OF_TEXT for document in DOCUMENTS)
    assert (data.train == data.end_of_text_id).sum() == data.meta["train"]["documents"] == len(DOCUMENTS)
    assert data.meta["source"] == ["some\udcff.parquet"]


def _garbage(path: Path) -> None:
    path.write_bytes(b"no parquet at all")


def _cut(path: Path) -> None:
    write(path, TEXTS)
    path.write_bytes(path.read_bytes()[:-200])


def _flipped(path: Path) -> None:
    write(path, TEXTS, compression="zstd")
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 4, len(content) // 2):
        content[place] ^= 0xFF
    path.write_bytes(content)


def _not_utf8(path: Path) -> None:
    binary = pyarrow.array([b"fine", b"\xff\xfe"], pyarrow.binary())
    parquet.write_table(
        pyarrow.table({"text": pyarrow.Array.from_buffers(pyarrow.string(), 2, binary.buffers())}), path
    )


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "garbage": (_garbage, "damaged, or no parquet .*; download or write it again"),
    "empty file": (lambda path: path.write_bytes(b""), "damaged, or no parquet"),
    "cut": (_cut, "damaged, or no parquet"),
    "flipped": (_flipped, "damaged, or no parquet"),
    "bytes": (_not_utf8, "damaged, or no parquet .*utf-8"),
    "other column": (lambda path: write(path, ["a"], name="story"), r"no column text among .*\(id, story\); rename"),
    "numbers": (lambda path: write(path, [1, 2]), "the column text holds int64, not string; convert it"),
    "lists": (lambda path: write(path, [["a"]]), "the column text holds list<.*, not string"),
    "binary": (lambda path: write(path, [b"a"]), "the column text holds binary, not string"),
    "null": (lambda path: write(path, ["a"] * 3000 + [None]), "row 3000 of the column text is null; leave such rows"),
    "no rows": (lambda path: write(path, [], pyarrow.string()), "no text in it"),
    "blank": (lambda path: write(path, [" ", ""]), "no text in it"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_refused_in_a_line(tmp_path: Path, name: str):
    damage, message = BAD[name]
    path = tmp_path / "bad.parquet"
    damage(path)
    with pytest.raises(ValueError, match=rf"bad\.parquet: .*{message}") as caught:
        Prepare(out=tmp_path / "data", text=(path,)).run()
    assert "\n" not in str(caught.value)
    assert [*tmp_path.iterdir()] == [path]


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "some.parquet", TEXTS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install 'liquidnet-dual\[parquet\]'"):
        Prepare(out=tmp_path / "data", text=(path,)).run()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the most memory used is asked of Linux")
@pytest.mark.parametrize("length", [1000, 1_000_000])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, length: int, report: Callable[[str], None]):
    """One group of rows of 200 MB of text, short rows or long, is read with a fraction of it in memory."""
    text = "".join(stories(2000, 0))[:1_000_000]
    rows = [text[start:] + text[:start] for start in range(200)]
    table = pyarrow.table({"text": [row[at : at + length] for row in rows for at in range(0, len(row), length)]})
    # Pages as small as other writers make them: pyarrow looks at their size only now and then.
    options = {"row_group_size": 10**6, "write_batch_size": 1, "use_dictionary": False}
    parquet.write_table(table, tmp_path / "large.parquet", **options)
    program = (
        "import re, sys; from pathlib import Path; from tools.data.documents import FileSource\n"
        "import pyarrow.parquet\n"
        "used = lambda: int(re.search(r'VmHWM:\\s*(\\d+) kB', Path('/proc/self/status').read_text())[1]) >> 10\n"
        "before = used(); source = FileSource((Path(sys.argv[1]),))\n"
        "total = sum(len(piece) for piece, _ in source.pieces(lambda amount: None)); print(total, used() - before)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "large.parquet")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    total, grown = map(int, done.stdout.split())
    assert total == 200_000_000
    report(f"200 MB of text in one group of rows of {length:,} characters: {grown} MiB more in memory")
    assert grown < 100
