"""What is no plain text is refused before any work, by its name and by how it begins, with what to do about it."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import subprocess
import zipfile
from pathlib import Path

import pytest

from tools.data.documents import open_files
from tools.data.prepare import Prepare

TEXT = b"Some words, and a few more.\n" * 9


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("text.txt", TEXT)
    return content.getvalue()


PACKED = {
    ".gz": (gzip.compress(TEXT), "gunzip -k"),
    ".bz2": (bz2.compress(TEXT), "bunzip2 -k"),
    ".xz": (lzma.compress(TEXT), "unxz -k"),
    ".zip": (zipped(), "unzip"),
    ".zst": (b"\x28\xb5\x2f\xfd" + TEXT, "zstd -d"),
}


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("name", ["text.jsonl{}", "text{}", "some.txt", "some.jsonl", "bare", "some.parquet"])
def test_what_is_compressed(suffix: str, name: str, tmp_path: Path):
    content, remedy = PACKED[suffix]
    path = tmp_path / name.format(suffix.upper())
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"is compressed \({suffix}\); decompress it first: {remedy} ") as caught:
        open_files([path], "--text")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and "rename" not in str(caught.value)
    # By its name alone, too: a suffix says what somebody meant.
    if suffix in path.suffix.lower():
        path.write_bytes(TEXT)
        with pytest.raises(ValueError, match=r"is compressed .* take that suffix away, or rename it to \.txt"):
            open_files([path], "--text")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.JSON", b'{"text": "a"}\n', r"rename it to \.jsonl"),
        ("a", b'\n{"text": "a"}\n', r"begins as JSON does; .* rename it to \.jsonl, or rename it to \.txt"),
        ("b", codecs.BOM_UTF8 + b'{"text": "a"}\n', "begins as JSON does"),
        ("a.geojson", b'{"type": "Point"}', r"write a \.jsonl file"),
        ("a.xml", b"<a>b</a>", "take the text out"),
        ("a.csv", b"text\na\n", r"write a \.jsonl file .* or rename it to \.txt"),
        ("a.Tsv", b"text\na\n", r"rename it to \.txt"),
        ("a.HTML", b"<p>a</p>", r"take the text out of it, or rename it to \.txt"),
        ("a.htm", b"<p>a</p>", "take the text out"),
        ("a.ipynb", b'{"cells": []}', r"rename it to \.txt"),
        ("a.json", b"[]", r"rename it to \.txt"),
        ("a.rtf", b"{\\rtf1 words}", r"rename it to \.txt"),
        ("a.doc", b"words", r"rename it to \.txt"),
        ("a.pdf", b"%PDF-1.7\n\xe2", "pdftotext$"),
        ("a.docx", zipped(), "save it as plain text$"),
        ("a.pt", zipped(), "is a .pt file, no text"),
        ("a.bin", b"words and \xff", "is a .bin file, no text"),
        ("a.db", b"SQLite format 3\0", "is a .db file, no text"),
        ("a.txt", b"%PDF-1.7\nwords\xe2", "is a .pdf file"),
        ("a", b"%PDF-1.7\nwords\xe2", "is a .pdf file"),
        ("a.txt", b"PAR1words\0", "suffix .parquet"),
        ("a.txt", b"SQLite format 3\0", "is a database"),
        ("a.txt", "words".encode("utf-16"), "is UTF-16, not UTF-8; convert it first: iconv -f UTF-16 -t UTF-8"),
        ("a.jsonl", b"\xfe\xff" + '{"text": "a"}'.encode("utf-16-be"), "is UTF-16, not UTF-8"),
        ("a.txt", "words".encode("utf-32"), "is UTF-32, not UTF-8"),
        ("a.txt", "words without a mark".encode("utf-16-le"), "is UTF-16LE"),
        ("a.txt", "words without a mark".encode("utf-16-be"), "is UTF-16BE"),
        ("a.txt", bytes(100), "holds zero bytes and is no text"),
    ],
)
def test_what_is_no_text(name: str, content: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Prepare(text=(tmp_path / name,), out=tmp_path / "out").run()
    assert str(tmp_path / name) in str(caught.value) and not (tmp_path / "out").exists()


def test_advice_for_a_shell_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The commands do what they say whatever the path is."""
    monkeypatch.chdir(tmp_path)
    for name in ("it's a $(touch made); text.gz", "-a.gz"):
        Path(name).write_bytes(gzip.compress(TEXT))
        with pytest.raises(ValueError, match="gunzip") as caught:
            open_files([Path(name)], "--text")
        subprocess.run(str(caught.value).partition("first: ")[2], shell=True, check=True)
        assert Path(name).with_suffix("").read_bytes() == TEXT and Path(name).exists()
    Path("a b.txt").write_bytes(b"\xff\xfe" + "words".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"iconv -f UTF-16 -t UTF-8 'a b\.txt'$"):
        open_files([Path("a b.txt")], "--text")
    Path("a b").mkdir()
    with pytest.raises(ValueError, match=r"name its files: --text 'a b'/\*\.txt$"):
        open_files([Path("a b")], "--text")
    assert not Path("made").exists()


@pytest.mark.parametrize(
    "name", ["a.txt", "a.md", "a.py", "a", "a.b.c", "a.TXT", "BZh.txt", "1.5", "a.gzip", "a.bin", "a.DB", "a.pt"]
)
@pytest.mark.parametrize(
    "content", [TEXT, b"BZh9 is how bzip2 begins", b"\xef\xbb\xbfwords", b"PK", b"PAR1 is", b"%PDF-1.7 is"]
)
def test_what_is_text(name: str, content: bytes, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    assert "".join(text for text, _ in open_files([tmp_path / name], "--text").pieces(lambda _: None)) == (
        content.removeprefix(b"\xef\xbb\xbf").decode()
    )


def test_text_may_hold_a_zero_byte_and_end_in_half_a_character(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"a\0b and more")
    (tmp_path / "a.bin").write_bytes(b"a" + "\u00e9".encode() * 4096)
    for name in ("a.txt", "a.bin"):
        open_files([tmp_path / name], "--text")
