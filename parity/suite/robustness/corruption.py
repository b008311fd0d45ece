"""Corrupted checkpoints and data, one kind of corruption after another: each is refused, or is read as it was written.

A case changes a whole sample at a path: a neutral directory, a `.pt` or `.msgpack` file, or prepared data.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spec.checkpoint.checksums import files_below
from spec.checkpoint.format import TEXTS, Checkpoint, pack
from spec.checkpoint.tree import to_tree
from spec.init import initial_parameters
from spec.optimizer import MOMENTS
from spec.presets import PRESETS
from tools import convert

SUFFIXES = {"neutral": "", "pt": ".pt", "msgpack": ".msgpack", "data": ""}
CONFIG = replace(PRESETS["nano"], vocab_size=11, d_model=6, d_ff=7, n_layers=2, max_seq_len=8)
VOCABULARY = 50
BIAS = "blocks.0.mixer.decay_bias"

Change = Callable[[Path], object]
Tree = dict[str, Any]
"""`spec.checkpoint.tree`'s, or what is no such tree."""
TreeChange = Callable[[Tree], Tree]


@dataclass(frozen=True)
class Corruption:
    """One way to corrupt a sample.

    Args:
        kind: what is counted together.
        form: neutral, pt, msgpack or data.
        name: of the case.
        change: does it, in place.
        refusal: what the reader must say, a regular expression; None where it may read what was written.
    """

    kind: str
    form: str
    name: str
    change: Change
    refusal: str | None = None


def sample() -> Checkpoint:
    """A whole checkpoint of a small model, with everything that a checkpoint can hold."""
    random = np.random.default_rng(1)
    shapes = {path: array.shape for path, array in initial_parameters(CONFIG).items()}
    draw = {path: random.standard_normal(shape).astype(np.float32) for path, shape in shapes.items()}
    moments = {name: {path: array * array for path, array in draw.items()} for name in MOMENTS}
    state = {"step": 7, "samples_consumed": 84, "tokens": 5376, "seed": 3, "best": {"step": 4, "val_loss": 1.25}}
    return Checkpoint(CONFIG, draw, moments, state, '{"model": "ünïcode"}', np.ones((2, 3, 6), np.float32))


def write_sample(form: str, path: Path) -> None:
    """The sample in one of the four forms."""
    if form == "data":
        write_data(path)
    else:
        convert.write(path, sample())


def write_data(path: Path) -> None:
    """A small directory of prepared data."""
    random, tokenizer = np.random.default_rng(0), b'{"kind": "made up"}'
    meta = {"format_version": 1, "dtype": "uint16", "vocab_size": VOCABULARY, "end_of_text_id": VOCABULARY - 1}
    meta["tokenizer_sha256"] = hashlib.sha256(tokenizer).hexdigest()
    files = {part: random.integers(0, VOCABULARY, 500).astype("<u2").tobytes() for part in ("train", "val")}
    for part, content in files.items():
        meta[part] = {"tokens": 500, "bytes": 1000, "sha256": hashlib.sha256(content).hexdigest()}
    path.mkdir()
    for name, content in (("tokenizer.json", tokenizer), *((f"{part}.bin", files[part]) for part in files)):
        (path / name).write_bytes(content)
    (path / "meta.json").write_text(json.dumps(meta))


def write_tree(path: Path, tree: Tree) -> None:
    """Whatever is in the tree, in the form that the suffix names; checksums are left as they are."""
    if path.suffix == ".pt":
        import torch

        tensors = {name: _tensors(value, torch.from_numpy) for name, value in tree.items()}
        torch.save(tensors, path)
    elif path.suffix == ".msgpack":
        import flax.serialization

        path.write_bytes(flax.serialization.msgpack_serialize(tree))
    else:
        for name, content in files_of(tree).items():
            (path / name).write_bytes(content)


def _tensors(value: object, convert_array: Callable[[np.ndarray], object]) -> object:
    if isinstance(value, dict):
        return {name: _tensors(item, convert_array) for name, item in value.items()}
    return convert_array(np.array(value)) if isinstance(value, np.ndarray) else value


def files_of(tree: Tree) -> dict[str, bytes]:
    """The neutral directory's files of whatever is in the tree."""
    files = {name: tree[name].encode() for name in TEXTS if name in tree}
    files["model.safetensors"] = pack(tree["parameters"])
    moments = {f"{kind}.{path}": array for kind in MOMENTS for path, array in tree.get(kind, {}).items()}
    if moments:
        files["optimizer.safetensors"] = pack(moments)
    if "states" in tree:
        files["states.safetensors"] = pack({"states": tree["states"]})
    return files


def sums_of(files: dict[str, bytes]) -> str:
    """SHA256SUMS of the files."""
    rows = (f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files) if name != "SHA256SUMS")
    return "".join(rows)


def rewrite(path: Path, **files: bytes) -> None:
    """Other content for files of a neutral directory (`__` for the dot), under right checksums."""
    for name, content in files.items():
        (path / name.replace("__", ".")).write_bytes(content)
    (path / "SHA256SUMS").write_text(sums_of({name: file.read_bytes() for name, file in files_below(path).items()}))


def files_in(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


def _flip(number: int) -> Change:
    def change(path: Path) -> None:
        random = np.random.default_rng(number)
        # meta.json of prepared data has no checksum of its own; its cases are made by hand.
        files = [file for file in files_in(path) if file.name != "meta.json"]
        file = files[number % len(files)]
        content = bytearray(file.read_bytes())
        content[random.integers(len(content))] ^= 1 << random.integers(8)
        file.write_bytes(content)

    return change


def _cut(number: int) -> Change:
    def change(path: Path) -> None:
        file = files_in(path)[number % len(files_in(path))]
        size = file.stat().st_size
        os.truncate(file, (0, 1, size // 2, size - 1)[number % 4] if number < 8 else (7 * number) % size)

    return change


def _append(tail: bytes) -> Change:
    def change(path: Path) -> None:
        for file in files_in(path):
            file.write_bytes(file.read_bytes() + tail)

    return change


def everywhere() -> Iterator[Corruption]:
    """Corruption that knows nothing of what it hits."""
    for form in SUFFIXES:
        yield from (Corruption("bit flips", form, f"flip {i}", _flip(i)) for i in range(16 if form == "data" else 22))
        yield from (Corruption("truncation", form, f"cut {i}", _cut(i), ".") for i in range(10))
        tails = {"nothing": b"\0" * 16, "line": b"\n", "text": b"PK\x05\x06" + bytes(30)}
        for name, tail in tails.items():
            yield Corruption("appended bytes", form, f"append {name}", _append(tail), None if form == "pt" else ".")


def _group(name: str, **changes: object) -> TreeChange:
    """A change of a tree: `None` takes an array out of a group, anything else replaces it."""

    def change(tree: Tree) -> Tree:
        arrays = {**tree[name], **{path.replace("__", "."): array for path, array in changes.items()}}
        return {**tree, name: {path: array for path, array in arrays.items() if array is not None}}

    return change


def _without(name: str) -> TreeChange:
    return lambda tree: {key: value for key, value in tree.items() if key != name}


def _text(name: str, **entries: object) -> TreeChange:
    return lambda tree: {**tree, name: json.dumps({**json.loads(tree[name]), **entries})}


def contents() -> Iterator[tuple[str, str, TreeChange, str]]:
    """Wrong content that only content can tell: kind, name, change of the tree, refusal."""
    bias = np.zeros(6, np.float32)

    def replaced(array: object, group: str = "parameters") -> TreeChange:
        return _group(group, **{BIAS.replace(".", "__"): array})

    yield "renamed tensors", "parameter", _group("parameters", **{BIAS: None, "bias": bias}), f"{BIAS} is missing"
    yield "renamed tensors", "moment", _group("first_moment", **{BIAS: None, "b.c": bias}), f"{BIAS} is missing"
    yield "renamed tensors", "one more", _group("parameters", more=bias), "more is not part"
    yield "renamed tensors", "metadata", _group("parameters", __metadata__=bias), "."
    yield "renamed tensors", "no moment", _without("second_moment"), "second_moment"
    for dtype in ("int32", "uint8", "int64", "bool", "float16"):
        name, refusal = ("states", "states has") if dtype == "float16" else (BIAS, BIAS)
        array = np.ones((2, 3, 6), dtype)
        change = (lambda tree, array=array: {**tree, "states": array}) if name == "states" else replaced(array[0, 0])
        yield "wrong dtype", dtype, change, f"{refusal}.* dtype"
    for shape in ((5,), (7,), (6, 1), (), (0,), (1, 1, 6)):
        yield "wrong shape", str(shape), replaced(np.zeros(shape, np.float32)), rf"{BIAS} has shape"
    yield "wrong shape", "transposed", _group("parameters", embedding__weight=np.zeros((6, 11), "f4")), "embedding"
    yield "wrong shape", "states", lambda tree: {**tree, "states": np.ones((3, 2, 6), "f4")}, "states has shape"
    for value in (np.nan, np.inf, -np.inf):
        yield "nan and inf", f"parameter {value}", replaced(bias + np.float32(value)), f"{BIAS} holds a value that is"
        yield "nan and inf", f"moment {value}", replaced(bias + np.float32(value), "second_moment"), "not finite"
        states = np.full((2, 3, 6), value, np.float32)
        yield "nan and inf", f"states {value}", lambda tree, array=states: {**tree, "states": array}, "states holds"
    for name, value, refusal in (
        ("n_layers", 3, "blocks.2"), ("n_layers", 2_000_000_000, "2000000000 layers"), ("d_model", -1, "d_model"),
        ("vocab_size", 2**40, "vocab_size"), ("norm_eps", float("nan"), "norm_eps"),
        ("family", [1], "family|unhashable"),
    ):  # fmt: skip
        yield "wrong text", f"config.json {name} {value}", _text("config.json", **{name: value}), refusal
    for name, value in (("step", -1), ("tokens", 1.5), ("seed", 2**64), ("best", 3), ("training", {}), ("data", [])):
        refusal = "TrainingConfig" if name == "training" else name
        yield "wrong text", f"state.json {name} {value}", _text("state.json", **{name: value}), refusal
    yield "wrong text", "best nan", _text("state.json", best={"step": 1, "val_loss": float("nan")}), "val_loss"
    for name in ("config.json", "state.json"):
        yield "wrong text", f"{name} deep", lambda tree, name=name: {**tree, name: "[" * 100_000}, "recursion"
    yield "wrong text", "digits", lambda tree: {**tree, "state.json": '{"step": ' + "9" * 5000 + "}"}, "."


def _rewritten(change: TreeChange, with_checksums: bool) -> Change:
    def rewrite_tree(path: Path) -> None:
        tree = change(to_tree(sample()))
        tree = {name: value for name, value in tree.items() if name != "SHA256SUMS"}
        if with_checksums:
            tree["SHA256SUMS"] = sums_of(files_of(tree))
        for file in files_in(path):
            file.unlink()
        write_tree(path, tree)

    return rewrite_tree


def rewritten() -> Iterator[Corruption]:
    """Every wrong content in each form; native ones in turn with checksums and without, as another program's."""
    for number, (kind, name, change, refusal) in enumerate(contents()):
        for form in ("neutral", "pt", "msgpack"):
            with_checksums = form == "neutral" or (number + (form == "pt")) % 2 == 0
            yield Corruption(kind, form, f"{kind}: {name}", _rewritten(change, with_checksums), refusal)
    for name in ("config.json", "parameters"):
        for form in ("pt", "msgpack"):
            yield Corruption("missing file", form, f"no {name}", _rewritten(_without(name), False), f"{name}.* missing")
