"""Files that are made to harm their reader: pickles that run code, archives and headers that ask for any memory, pipes.

Those of parity/suite/robustness/corruption.py were corrupted by chance.
"""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np

from parity.suite.robustness.corruption import BIAS, Change, Corruption, rewrite, sample, write_tree
from spec.checkpoint.format import pack
from spec.checkpoint.tree import to_tree

MARKER = "executed"
"""What a pickle bomb makes beside the sample."""
BOMB_BYTES = 150 * 2**20
"""Memory that each file of a few bytes asks for."""


class Call:
    """Pickles as a call of the function."""

    def __init__(self, function: Callable[..., object], *arguments: object):
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def _bombs(path: Path) -> dict[str, Call]:
    marker = str(path.parent / MARKER)
    return {
        "mkdir": Call(os.mkdir, marker),
        "system": Call(os.system, f"mkdir '{marker}'"),
        "exec": Call(exec, f"import os; os.mkdir({marker!r})"),
        "nested": Call(list, [Call(os.mkdir, marker)]),
    }


def pickle_bombs() -> Iterator[Corruption]:
    """A pickle that would make a directory beside the sample, wherever a reader might unpickle it."""

    def written(write: Callable[[Path, Call], object], name: str) -> Change:
        return lambda path: write(path, _bombs(path)[name])

    for name in ("mkdir", "system", "exec", "nested"):
        yield Corruption("pickle bombs", "pt", f"archive, {name}", written(_save_with, name), "not loaded")
        legacy = written(lambda path, bomb: _save_with(path, bomb, _use_new_zipfile_serialization=False), name)
        yield Corruption("pickle bombs", "pt", f"torch's old format, {name}", legacy, "not a zip")
        for protocol in (0, 2, 4):
            plain = written(lambda path, bomb, p=protocol: path.write_bytes(pickle.dumps(bomb, p)), name)
            inside = written(lambda path, bomb, p=protocol: rezip(path, pickled=pickle.dumps(bomb, p)), name)
            yield Corruption("pickle bombs", "pt", f"plain, protocol {protocol}, {name}", plain, "not loaded")
            yield Corruption("pickle bombs", "pt", f"data.pkl, protocol {protocol}, {name}", inside, "not loaded")
        yield Corruption(
            "pickle bombs", "msgpack", name, written(lambda p, b: p.write_bytes(pickle.dumps(b)), name), "."
        )
        neutral = written(lambda path, bomb: rewrite(path, model__safetensors=pickle.dumps(bomb)), name)
        yield Corruption("pickle bombs", "neutral", name, neutral, ".")


def _save_with(path: Path, bomb: Call, **options: bool) -> None:
    import torch

    weights = {name: torch.from_numpy(array) for name, array in sample().parameters.items()}
    torch.save({**_texts(), "parameters": {**weights, BIAS: bomb}}, path, **options)


def _texts() -> dict[str, str]:
    return {name: text for name, text in to_tree(sample()).items() if name == "config.json"}


def rezip(
    path: Path, pickled: bytes | None = None, more: tuple[tuple[str, bytes], ...] = (), deflate: str = ""
) -> None:
    """Write the archive again: another data.pkl, more entries, or those whose name ends with `deflate` compressed."""
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    folder = entries[0][0].partition("/")[0]
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # of two entries of one name
        for name, content in [*entries, *((name.replace("FOLDER", folder), content) for name, content in more)]:
            packed = zipfile.ZIP_DEFLATED if deflate and name.endswith(deflate) else zipfile.ZIP_STORED
            content = pickled if pickled is not None and name == f"{folder}/data.pkl" else content
            archive.writestr(name, content, packed)


def _inflating(name: str) -> Change:
    def change(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            folder = archive.namelist()[0].partition("/")[0]
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry in ("data.pkl", "version", "data/0"):
                with archive.open(f"{folder}/{entry}", "w") as file:
                    for _ in range(BOMB_BYTES // 2**20 if entry == name else 0):
                        file.write(bytes(2**20))

    return change


def _patched(name: str, offset: int, value: bytes) -> Change:
    """Overwrite a field of an entry in the archive's central directory."""

    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        start = content.rindex(b"PK\x01\x02", 0, content.rindex(name.encode()))
        content[start + offset : start + offset + len(value)] = value
        path.write_bytes(content)

    return change


def zip_tricks() -> Iterator[Corruption]:
    """Archives that no `torch.save` writes."""
    case = partial(Corruption, "zip tricks", "pt")
    for name in ("../evil", "/evil", "FOLDER/../../evil", "other/data.pkl", "\\evil", "FOLDER/data/../../evil"):
        yield case(name, lambda path, n=name: rezip(path, more=((n, b"x"),)), "outside its folder")
    for name in ("data.pkl", "data/0", "version"):
        more = ((f"FOLDER/{name}", b"x"),)
        yield case(f"two {name}", lambda path, m=more: rezip(path, more=m), "two entries of one")
        yield case(f"deflated {name}", lambda p, n=name: rezip(p, deflate=f"/{n}"), "compressed")
    for name in ("data.pkl", "data/0"):
        yield case(f"bomb {name}", _inflating(name), "compressed")
    for name, value in (("data.pkl", b"\xff\xff\xff\x7f"), ("data/0", b"\xff\xff\xff\x7f")):
        yield case(f"size of {name}", _patched(name, 24, value), "compressed|not loaded")
        yield case(f"sizes of {name}", _patched(name, 20, value * 2), None)
        yield case(f"CRC of {name}", _patched(name, 16, value), None)
        yield case(f"place of {name}", _patched(name, 42, value), None)
    yield case("no data.pkl", lambda p: _archive(p, {"a/version": b"3"}), "data.pkl")
    yield case("no entry", lambda p: _archive(p, {}), "data.pkl")
    for name, content in (("text", b"text"), ("nothing", b""), ("safetensors", pack(sample().parameters))):
        yield case(name, lambda path, c=content: path.write_bytes(c), "not a zip")


def _archive(path: Path, entries: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def tensor_tricks() -> Iterator[Corruption]:
    """Pickles of torch's own types that ask for memory, or hold no plain tensor."""
    case = partial(Corruption, "tensor tricks", "pt")

    def made(make: Callable[[ModuleType], object]) -> Change:
        def change(path: Path) -> None:
            import torch

            torch.save({**_texts(), "parameters": {BIAS: make(torch)}}, path)

        return change

    def tangled(_torch: ModuleType) -> object:
        knot: dict[str, object] = {}
        for _ in range(80):
            knot = {"a": knot, "b": knot}
        return knot

    def looped(_torch: ModuleType) -> object:
        loop: dict[str, object] = {}
        loop["a"] = loop
        return loop

    count = BOMB_BYTES // 4
    for name, make, refusal in (
        ("one number, often", lambda torch: torch.zeros(1).expand(count), "claim more bytes"),
        ("bytearray", lambda torch: Call(bytearray, BOMB_BYTES), "bytearray"),
        ("Tensor", lambda torch: Call(torch.Tensor, count), "not loaded"),
        ("storage", lambda torch: Call(torch.UntypedStorage, BOMB_BYTES), "not loaded"),
        ("sparse", lambda torch: torch.eye(3).to_sparse(), "not loaded"),
        ("meta", lambda torch: torch.zeros(count, device="meta"), "not loaded"),
        ("complex", lambda torch: torch.zeros(6, dtype=torch.complex64), "."),
        ("float8", lambda torch: torch.zeros(6).to(torch.float8_e5m2), "not loaded"),
        ("a dict of dicts of dicts", tangled, f"{BIAS} is a dict"),
        ("a dict in itself", looped, f"{BIAS} is a dict"),
        ("a set", lambda torch: {1, 2}, "."),
        ("a number", lambda torch: 3.0, f"{BIAS} is a float"),
    ):
        yield case(name, made(make), refusal)
    longer = b"J\x00\x00\x00\x7f"
    # A storage ends with the file whatever it claims; a shape cannot.
    for name, old, refusal in (("storage", b"K\x06t", None), ("shape", b"K\x06\x85", "not loaded")):
        change = lambda path, o=old: rezip(path, pickled=_data_pickle(path).replace(o, longer + o[2:]))  # noqa: E731
        yield case(f"{name} beyond the file", change, refusal)


def _data_pickle(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))


def msgpack_tricks() -> Iterator[Corruption]:
    """Lengths that are not there, nesting, extensions that are no array."""
    case = partial(Corruption, "msgpack tricks", "msgpack")
    for name, content in {
        "text of 4 GiB": b"\xdb\xff\xff\xff\xff", "bytes of 4 GiB": b"\xc6\xff\xff\xff\xff", "nothing": b"",
        "list of 4 G": b"\xdd\xff\xff\xff\xff", "list of 2 G": b"\xdd\x7f\xff\xff\xff" + bytes(100), "nil": b"\xc0",
        "map of 4 G": b"\xdf\xff\xff\xff\xff", "extension of 4 GiB": b"\xc9\xff\xff\xff\xff\x01",
        "900 lists": b"\x91" * 900 + b"\x01", "endless lists": b"\x91" * 10**6,
        "900 maps": b"\x81\xa1a" * 900 + b"\x01", "endless maps": b"\x81\xa1a" * 10**5,
        "a list as key": b"\x81\x90\x01", "a number as key": b"\x81\x01\x01", "not UTF-8": b"\x81\xa1\xff\x01",
        "time": b"\xd6\xff" + bytes(4), "long time": b"\xc7\x0c\xff" + b"\xff" * 12,
        "two roots": b"\x80\x80", "never used": b"\xc1",
    }.items():  # fmt: skip
        yield case(name, lambda path, c=content: path.write_bytes(c), ".")
    numbers = np.ones(6, np.float32).tobytes()
    for name, array in {
        **{f"shape {shape}": (shape, "float32", numbers) for shape in ([7], [5], [2**62], [2**64 - 1], [1] * 100, "6")},
        **{f"{count} of {dtype}": ([count], dtype, numbers) for count, dtype in (
            (3, "O"), (3, "object"), (6, "V0"), (6, "U0"), (3, "f4,f4"), (6, ">f4"), (6, "float31"), (6, "a4"),
            (1, "(100000,100000)f4"), (3, "M8[s]"), (6, None), (6, [["a", "f4"]]))},
        "2^40 x 0": ([2**40, 0], "float32", b""), "odd bytes": ([6], "float32", numbers[:-1]),
        "a number for bytes": ([6], "float32", 3), "two parts": ([6], "float32"),
        "four parts": ([6], "float32", numbers, 1),
    }.items():  # fmt: skip
        for code in (1, 3):
            yield case(f"{name}, {code}", _extension(code, array), ".")
    for code, content in ((2, [1, 2]), (2, ["a", "b"]), (2, []), (2, 3), (5, [1]), (1, 3)):
        yield case(f"{code} {content}", _extension(code, content), ".")
    for name, value in {
        "no chunks": {"shape": {"0": 6}}, "no shape": {"chunks": {}}, "chunks a list": {"shape": {}, "chunks": [1]},
        "long shape": {"shape": {"0": 2**40}, "chunks": {"0": np.ones(6, "f4")}},
        "no array": {"shape": {"0": 1}, "chunks": {"0": 1}},
    }.items():  # fmt: skip
        chunked = {"__msgpack_chunked_array__": True, **value}
        yield case(f"chunked, {name}", _in_a_tree(chunked), ".")


def _in_a_tree(value: object) -> Change:
    return lambda path: write_tree(path, {**_texts(), "parameters": {**sample().parameters, BIAS: value}})


def _extension(code: int, content: object) -> Change:
    def change(path: Path) -> None:
        import msgpack

        _in_a_tree(msgpack.ExtType(code, msgpack.packb(content)))(path)

    return change
