"""Which files are text, and what to do with those that are not: told by their names, and by how they begin."""

from __future__ import annotations

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
    ".csv": f"{_ROWS}, or {_AS_TEXT}", ".tsv": f"{_ROWS}, or {_AS_TEXT}",
    ".html": f"take the text out of it, or {_AS_TEXT}", ".htm": f"take the text out of it, or {_AS_TEXT}",
    ".xhtml": f"take the text out of it, or {_AS_TEXT}", ".ipynb": f"take the text out of it, or {_AS_TEXT}",
    ".pdf": "take the text out of it, for example by pdftotext", ".rtf": "save it as plain text",
    ".doc": "save it as plain text", ".docx": "save it as plain text", ".odt": "save it as plain text",
    ".epub": "take the text out of it, for example by pandoc -t plain", ".xlsx": _ROWS, ".xls": _ROWS,
    ".arrow": _ARRAYS, ".feather": _ARRAYS, ".avro": _ARRAYS, ".orc": _ARRAYS, ".npy": _ARRAYS, ".npz": _ARRAYS,
    ".pkl": _ARRAYS, ".pickle": _ARRAYS, ".sqlite": _ARRAYS, ".db": _ARRAYS, ".bin": _ARRAYS, ".pt": _ARRAYS,
    ".safetensors": _ARRAYS,
}  # fmt: skip
_BEGINNINGS = {
    b"%PDF-": ("a .pdf file", _FORMATS[".pdf"]), b"{\\rtf": ("a .rtf file", _FORMATS[".rtf"]),
    b"\xd0\xcf\x11\xe0": ("a file of an office program", "save it as plain text"),
    b"SQLite format 3\0": ("a database", _ARRAYS), b"\x93NUMPY": ("an array of NumPy", _ARRAYS),
    b"ARROW1": ("an Arrow file", _ARRAYS), b"PAR1": ("a parquet file", "give it the suffix .parquet"),
}  # fmt: skip
#: By the mark at the beginning, longest first: UTF-32 begins as UTF-16 does.
_ENCODINGS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def require_text(path: Path) -> None:
    """Refuse a file that is not read, before the others are.

    Raises:
        OSError: if it cannot be opened.
        ValueError: if it is compressed, in UTF-16, or of a format that would be trained on with all its marks.
    """
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING)
    packed = next((kind for magic, kind in _MAGIC.items() if beginning.startswith(magic)), None)
    if beginning[:3] == b"BZh" and beginning[4:10] in _BZIP2_BLOCKS:
        packed = ".bz2"
    # What a zip holds may be a document: its own suffix knows better.
    if packed and not (packed == ".zip" and suffix in _FORMATS):
        raise ValueError(f"{path} is compressed ({packed}); decompress it first: {_COMPRESSED[packed]} {path}")
    if suffix in _COMPRESSED:
        raise ValueError(f"{path} is compressed ({suffix}); decompress it first: {_COMPRESSED[suffix]} {path}")
    if suffix in _FORMATS:
        raise ValueError(f"{path} is a {suffix} file, no plain text; {_FORMATS[suffix]}")
    if suffix == ".parquet":
        return
    for magic, (what, remedy) in _BEGINNINGS.items():
        if beginning.startswith(magic):
            raise ValueError(f"{path} is {what}, no plain text; {remedy}")
    _require_utf8(path, beginning)


def _require_utf8(path: Path, beginning: bytes) -> None:
    encoding = next((name for mark, name in _ENCODINGS.items() if beginning.startswith(mark)), None)
    if encoding is None and beginning.count(0) * 4 > len(beginning):
        # English in UTF-16 without its mark is valid UTF-8, of which every other character is no character.
        encoding = "UTF-16LE" if beginning[1::2].count(0) > beginning[::2].count(0) else "UTF-16BE"
        if not 3 * len(beginning) < 8 * beginning.count(0) < 5 * len(beginning):
            raise ValueError(f"{path} holds zero bytes and is no text; name a file of UTF-8 text")
    if encoding is not None:
        raise ValueError(f"{path} is {encoding}, not UTF-8; convert it first: iconv -f {encoding} -t UTF-8 {path}")
