"""Which files are text, and what to do with those that are not: told by their names, and by how they begin."""

from __future__ import annotations

import codecs
import shlex
from pathlib import Path

_BEGINNING = 4096
_ROWS = "write a .jsonl file with a text field in each line"
_AS_TEXT = "rename it to .txt to train on it as it stands"

#: What undoes a compression, by suffix.
_COMPRESSED = {
    ".gz": "gunzip -k", ".tgz": "tar xzf", ".zst": "zstd -d", ".zip": "unzip", ".bz2": "bunzip2 -k", ".xz": "unxz -k",
    ".lzma": "unlzma -k", ".lz4": "lz4 -d", ".7z": "7z x", ".rar": "unrar x", ".tar": "tar xf", ".br": "brotli -d",
}  # fmt: skip
#: How such files begin, and formats that are no text.
_MAGIC = {
    b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"PK\x03\x04": ".zip", b"PK\x05\x06": ".zip",
    b"\xfd7zXZ\0": ".xz", b"\x04\x22\x4d\x18": ".lz4", b"7z\xbc\xaf\x27\x1c": ".7z", b"Rar!\x1a\x07": ".rar",
}  # fmt: skip
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")
_ARRAYS = f"{_ROWS}, or a .parquet file with such a column"
#: What is no plain text though it may be UTF-8, and what to make of it.
_FORMATS = {
    ".json": f"if each line is an object, rename it to .jsonl; else {_ROWS}, for example by jq -c '.[]'",
    ".json5": _ROWS, ".geojson": _ROWS, ".csv": _ROWS, ".tsv": _ROWS, ".xml": "take the text out of it",
    ".html": "take the text out of it", ".htm": "take the text out of it", ".xhtml": "take the text out of it",
    ".ipynb": "take the text out of it",
    ".pdf": "take the text out of it, for example by pdftotext", ".rtf": "save it as plain text",
    ".doc": "save it as plain text", ".docx": "save it as plain text", ".odt": "save it as plain text",
    ".epub": "take the text out of it, for example by pandoc -t plain", ".xlsx": _ROWS, ".xls": _ROWS,
}  # fmt: skip
#: Suffixes that anything may have: refused where the content is no text.
_ANYTHING = (
    ".arrow", ".feather", ".avro", ".orc", ".npy", ".npz", ".pkl", ".pickle", ".sqlite", ".db", ".bin", ".pt",
    ".safetensors",
)  # fmt: skip
_BEGINNINGS = {
    b"%PDF-": ("a .pdf file", _FORMATS[".pdf"]),
    b"\xd0\xcf\x11\xe0": ("a file of an office program", "save it as plain text"),
    b"SQLite format 3\0": ("a database", _ARRAYS), b"\x93NUMPY": ("an array of NumPy", _ARRAYS),
    b"ARROW1": ("an Arrow file", _ARRAYS), b"PAR1": ("a parquet file", "give it the suffix .parquet"),
}  # fmt: skip
#: Suffixes that say what a file is, whatever it begins with.
_SAID = (".txt", ".jsonl", ".jsonlines", ".ndjson")
#: By the mark at the beginning, longest first: UTF-32 begins as UTF-16 does.
_ENCODINGS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def require_text(path: Path) -> None:
    """Refuse a file that is not read, before the others are.

    Raises:
        OSError: if it cannot be opened.
        ValueError: if it is compressed, in UTF-16, or of a format that would be trained on with all its marks; where
            its content is UTF-8 all the same, the suffix .txt, which is then advised, lets it through.
    """
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING)
    packed = next((kind for magic, kind in _MAGIC.items() if beginning.startswith(magic)), None)
    if beginning[:3] == b"BZh" and beginning[4:10] in _BZIP2_BLOCKS:
        packed = ".bz2"
    # What a zip holds may be a document: its own suffix knows better.
    if packed and not (packed == ".zip" and suffix in (*_FORMATS, *_ANYTHING)):
        raise ValueError(f"{path} is compressed ({packed}); decompress it first: {_COMPRESSED[packed]} {quoted(path)}")
    text = _is_text(beginning)
    if suffix in _COMPRESSED:
        remedy = f"decompress it first: {_COMPRESSED[suffix]} {quoted(path)}"
        remedy = f"take that suffix away, or {_AS_TEXT}" if text else remedy
        raise ValueError(f"{path} is compressed by its name ({suffix}); {remedy}")
    if suffix in _FORMATS:
        raise ValueError(f"{path} is a {suffix} file, no plain text; {_FORMATS[suffix]}{f', or {_AS_TEXT}' * text}")
    if text and suffix not in _SAID and beginning.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b'{"'):
        raise ValueError(f"{path} begins as JSON does; if each line is an object, rename it to .jsonl, or {_AS_TEXT}")
    if suffix == ".parquet" or text:
        return
    if suffix in _ANYTHING:
        raise ValueError(f"{path} is a {suffix} file, no text; {_ARRAYS}")
    for magic, (what, remedy) in _BEGINNINGS.items():
        if beginning.startswith(magic):
            raise ValueError(f"{path} is {what}, no plain text; {remedy}")
    _require_utf8(path, beginning)


def _is_text(beginning: bytes) -> bool:
    """Whether what a file begins with is UTF-8 without a zero byte."""
    try:
        # Where the beginning ends, and not the file, a character may be cut in two.
        codecs.getincrementaldecoder("utf-8")().decode(beginning, final=len(beginning) < _BEGINNING)
    except UnicodeDecodeError:
        return False
    return 0 not in beginning


def quoted(path: Path) -> str:
    """The path as an argument for a shell, and no flag of the program it is given to."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def _require_utf8(path: Path, beginning: bytes) -> None:
    encoding = next((name for mark, name in _ENCODINGS.items() if beginning.startswith(mark)), None)
    if encoding is None and beginning.count(0) * 4 > len(beginning):
        # English in UTF-16 without its mark is valid UTF-8, of which every other character is no character.
        encoding = "UTF-16LE" if beginning[1::2].count(0) > beginning[::2].count(0) else "UTF-16BE"
        if not 3 * len(beginning) < 8 * beginning.count(0) < 5 * len(beginning):
            raise ValueError(f"{path} holds zero bytes and is no text; name a file of UTF-8 text")
    if encoding is not None:
        raise ValueError(
            f"{path} is {encoding}, not UTF-8; convert it first: iconv -f {encoding} -t UTF-8 {quoted(path)}"
        )
