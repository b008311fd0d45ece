"""Every format keeps every bit; every damaged file is refused in words."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import OrderedDict
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity.proof import adapters
from spec import LiquidNetConfig
from spec.checkpoint.format import Checkpoint, from_files, pack, read_checkpoint, to_files, unpack, write_checkpoint
from spec.checkpoint.tree import from_tree, to_tree
from spec.init import initial_parameters
from spec.optimizer import MOMENTS
from tools import convert

CONFIG = LiquidNetConfig(vocab_size=11, d_model=6, d_ff=7, n_layers=2, max_seq_len=8)
STATE = {"step": 7, "samples_consumed": 84, "tokens": 5376, "seed": 3, "best": {"step": 4, "val_loss": 1.25}}
DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
FORMATS = {"neutral": "", "dcp": "", "orbax": "", "pt": ".pt", "msgpack": ".msgpack"}
NEEDS = {".pt": "torch", ".msgpack": "jax"}
PAIRS = [
    *itertools.permutations(("neutral", "pt", "msgpack"), 2),
    *(("neutral", "dcp"), ("dcp", "orbax"), ("orbax", "neutral"), ("pt", "orbax"), ("orbax", "msgpack")),
]
NEEDED = {"pt": ("torch",), "msgpack": ("jax",), "orbax": ("jax", "orbax.checkpoint")}


def checkpoint_of(dtype) -> Checkpoint:
    generator = np.random.default_rng(1)
    draw = {
        path: generator.standard_normal(array.shape).astype(dtype) for path, array in initial_parameters(CONFIG).items()
    }
    moments = {name: {path: (array * array).astype(dtype) for path, array in draw.items()} for name in MOMENTS}
    states = generator.standard_normal((2, 3, 6)).astype(np.float64 if dtype == np.float64 else np.float32)
    return Checkpoint(CONFIG, draw, moments, STATE, '{"model": "ünïcode"}', states)


def assert_same(a: Checkpoint, b: Checkpoint) -> None:
    assert (a.config, dict(a.state), a.tokenizer) == (b.config, dict(b.state), b.tokenizer)
    pairs = [(a.parameters, b.parameters), *((a.moments[name], b.moments[name]) for name in MOMENTS)]
    assert (a.states is None) == (b.states is None)
    if a.states is not None and b.states is not None:
        pairs.append(({"states": a.states}, {"states": b.states}))
    for left, right in pairs:
        assert list(left) and set(left) == set(right)
        for path in left:
            assert left[path].dtype == right[path].dtype and left[path].tobytes() == right[path].tobytes(), path


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("first, second", PAIRS)
def test_any_format_to_any_other_keeps_every_bit(first, second, dtype, tmp_path):
    _require(first, second)
    checkpoint = checkpoint_of(dtype)
    a, b, c = (tmp_path / f"{name}{FORMATS[form]}" for name, form in (("a", first), ("b", second), ("c", first)))
    convert.write(a, checkpoint, first)
    convert.Convert(a, b, second).run()
    convert.Convert(b, c, first).run()
    assert_same(convert.read(b), checkpoint)
    assert_same(convert.read(c), checkpoint)


def _require(*forms: str) -> None:
    for package in {package for form in forms for package in NEEDED.get(form, ())}:
        pytest.importorskip(package, reason=f"{package} is not installed")


@pytest.mark.parametrize("form", FORMATS)
def test_weights_alone_are_a_checkpoint_too(form, tmp_path):
    """Wherever they lie: a name is any bytes, but to Orbax."""
    _require(form)
    weights, place = Checkpoint(CONFIG, initial_parameters(CONFIG)), tmp_path / f"w\udcff{FORMATS[form]}"
    if form == "orbax":
        with pytest.raises(ValueError, match="Orbax takes no name that is not UTF-8; name another place"):
            convert.write(place, weights, form)
        place = tmp_path / "w"
    convert.write(place, weights, form)
    if form == "orbax":
        place.rename(tmp_path / "w\udcff")
        with pytest.raises(ValueError, match="Orbax takes no name that is not UTF-8; name another place"):
            convert.read(tmp_path / "w\udcff")
        (tmp_path / "w\udcff").rename(place)
    read = convert.read(place)
    assert not read.moments and read.tokenizer is None and read.states is None and read.state["step"] == 0
    assert read.verified


def test_a_written_directory_is_complete_and_checked_by_standard_tools(tmp_path):
    write_checkpoint(tmp_path / "c", checkpoint_of(np.float32))
    names = {path.name for path in (tmp_path / "c").iterdir()}
    listed = dict(reversed(line.split("  ")) for line in (tmp_path / "c" / "SHA256SUMS").read_text().splitlines())
    assert set(listed) == names - {"SHA256SUMS"}
    for name, digest in listed.items():
        assert hashlib.sha256((tmp_path / "c" / name).read_bytes()).hexdigest() == digest
    with pytest.raises(ValueError, match="already exists"):
        write_checkpoint(tmp_path / "c", checkpoint_of(np.float32))


def test_a_line_break_of_another_kind_is_noticed():
    """A soak found that the last byte of SHA256SUMS could become a vertical tab."""
    files = to_files(checkpoint_of(np.float32))
    for byte in b"\x0b\x0c\r\x1c\x1d\x1e \x00":
        with pytest.raises(ValueError, match="SHA256SUMS does not end with a line break"):
            from_files({**files, "SHA256SUMS": files["SHA256SUMS"][:-1] + bytes([byte])}, "here")


@given(st.data())
def test_one_changed_byte_anywhere_is_noticed(data):
    files = to_files(checkpoint_of(np.float32))
    name = data.draw(st.sampled_from(sorted(files)))
    position = data.draw(st.integers(0, len(files[name]) - 1))
    content = bytearray(files[name])
    content[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match="checkpoint here"):
        from_files({**files, name: bytes(content)}, "here")


def resigned(checkpoint: Checkpoint, **changed: bytes) -> dict[str, bytes]:
    """Files with wrong content but right checksums, so that only the content can give them away."""
    files = {name: content for name, content in to_files(checkpoint).items() if name != "SHA256SUMS"}
    files |= {name.replace("__", "."): content for name, content in changed.items()}
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    return {**files, "SHA256SUMS": sums.encode()}


def wrong_contents() -> dict[str, tuple[dict[str, bytes], str]]:
    checkpoint = checkpoint_of(np.float32)
    weights, path = dict(checkpoint.parameters), "blocks.0.mixer.decay_bias"
    state = {"format_version": 1, **STATE}
    config = json.loads(to_files(checkpoint)["config.json"])
    rows = np.ones((2, 3, 6), np.float32)
    without = {name: array for name, array in weights.items() if name != path}
    nan = {**weights, path: np.full(6, np.nan, np.float32)}
    return {
        "missing tensor": ({"model__safetensors": pack(without)}, f"{path} is missing"),
        "extra tensor": ({"model__safetensors": pack({**weights, "extra": np.ones(1)})}, "extra is not part"),
        "shape": ({"model__safetensors": pack({**weights, path: np.ones(5, np.float32)})}, r"shape \(5,\)"),
        "dtype": ({"model__safetensors": pack({**weights, path: np.ones(6, np.int32)})}, "dtype I32"),
        "nan": ({"model__safetensors": pack(nan)}, "not finite"),
        "no safetensors": ({"model__safetensors": b"\x00" * 64}, "."),
        "one moment": (
            {"optimizer__safetensors": pack({f"first_moment.{p}": a for p, a in weights.items()})},
            "second",
        ),
        "two states": (
            {"states__safetensors": pack({"states": rows, "more": rows})},
            "must hold the tensor states alone, it holds more, states",
        ),
        **{
            f"states {name}": ({"states__safetensors": pack({"states": array})}, message)
            for name, array, message in (
                ("flat", rows[0], r"states has shape \(3, 6\), the configuration needs \(2, rows, 6\)"),
                ("layers", rows[:1], r"states has shape \(1, 3, 6\)"),
                ("width", rows[..., :5], r"states has shape \(2, 3, 5\)"),
                ("no rows", rows[:, :0], r"states has shape \(2, 0, 6\)"),
                ("dtype", rows.astype(np.float16), "states has dtype float16"),
                ("nan", rows * np.nan, "states holds a value that is not finite"),
            )
        },
        "best": ({"state__json": json.dumps({**state, "best": {"step": "x"}}).encode()}, "best step must be"),
        "best loss": ({"state__json": json.dumps({**state, "best": {"step": 4}}).encode()}, "val_loss must be"),
        "version": ({"state__json": json.dumps({**state, "format_version": 2}).encode()}, "format version 2"),
        "counter": ({"state__json": json.dumps({**state, "step": -1}).encode()}, "step must be"),
        "no counter": ({"state__json": json.dumps({"format_version": 1}).encode()}, "step must be"),
        "no json": ({"state__json": b"{"}, "."),
        "no object": ({"state__json": b"[]"}, "."),
        "deep json": ({"state__json": b"[" * 100_000}, "."),
        "family": ({"config__json": json.dumps({**config, "family": "gpt"}).encode()}, "family 'gpt'"),
        "field": ({"config__json": json.dumps({**config, "heads": 3}).encode()}, "no field 'heads'"),
        "width": ({"config__json": json.dumps({**config, "d_model": 0}).encode()}, "d_model"),
    }


@pytest.mark.parametrize("name", wrong_contents())
def test_wrong_content_with_right_checksums_is_refused(name):
    changed, message = wrong_contents()[name]
    with pytest.raises(ValueError, match=message):
        from_files(resigned(checkpoint_of(np.float32), **changed), "here")


def test_nothing_broken_is_written(tmp_path):
    checkpoint = checkpoint_of(np.float32)
    broken = {**checkpoint.parameters, "final_norm.weight": np.full(6, np.inf, np.float32)}
    with pytest.raises(ValueError, match=r"final_norm\.weight holds a value that is not finite"):
        write_checkpoint(tmp_path / "c", replace(checkpoint, parameters=broken))
    assert not list(tmp_path.iterdir())


def other_trees():
    """Each is refused: a damaged name of our own file must not pass for a file of another program."""
    tree = to_tree(checkpoint_of(np.float32))
    bare = {name: value for name, value in tree.items() if name != "SHA256SUMS"}
    weights = tree["parameters"]
    return [
        (None, "a NoneType, not a checkpoint"),
        ([], "a list, not a checkpoint"),
        ({}, "the configuration is stored beside the weights, never guessed"),
        ({"parameters": weights}, "the configuration is stored beside the weights, never guessed"),
        ({"config.json": tree["config.json"]}, "parameters, the weights by path, is missing"),
        ({**tree, "parameters": {"a": "text"}}, "parameters.a is a str, not a ndarray"),
        ({**bare, "parameters": [*weights.values()]}, "parameters, the weights by path, is missing or no dict"),
        ({**tree, "states": "text"}, "states is a str"),
        ({**tree, "SHA256SUMS": b""}, "SHA256SUMS is a bytes"),
        ({**tree, "more": weights}, "'more' is no part of a checkpoint"),
        ({**bare, "SHA256SUMT": tree["SHA256SUMS"]}, "'SHA256SUMT' is no part of a checkpoint"),
        ({**bare, 3: "three"}, "'3' is no part of a checkpoint"),
        ({**bare, "config.json": "{"}, "Expecting property name"),
        ({**bare, "config.json": json.loads(tree["config.json"])}, "config.json is a dict"),
        ({**bare, "state.json": "{}"}, "format version None"),
        ({**bare, "first_moment": {}}, "embedding.weight is missing"),
        ({**bare, "parameters": {**weights, "final_norm.weight": np.ones(5, np.float32)}}, r"shape \(5,\)"),
        ({**bare, "parameters": {**weights, "final_norm.weight": np.ones(6, ">f4")}}, "dtype >f4"),
        ({**bare, "parameters": {**weights, "final_norm.weight": np.ones(6, int)}}, "dtype int64"),
        ({**bare, "parameters": {**weights, "final_norm.weight": np.full(6, np.inf)}}, "not finite"),
    ]


@pytest.mark.parametrize("case", range(20))
def test_trees_of_another_make_are_refused(case):
    tree, message = other_trees()[case]
    with pytest.raises(ValueError, match=f"checkpoint here: .*{message}"):
        from_tree(tree, "here")


@pytest.mark.parametrize("suffix", NEEDS)
def test_a_file_of_another_program_is_read_and_said_to_be_unverified(suffix, tmp_path, capsys):
    pytest.importorskip(NEEDS[suffix], reason=f"{suffix} needs {NEEDS[suffix]}")
    whole, path = checkpoint_of(np.float32), tmp_path / f"a{suffix}"
    tree = to_tree(whole)
    del tree["SHA256SUMS"]
    for names, expected in (
        (tree, replace(whole, verified=False)),
        (("config.json", "parameters"), Checkpoint(whole.config, whole.parameters, tokenizer=None, verified=False)),
    ):
        write_tree(path, {name: tree[name] for name in names})
        read = convert.read(path)
        told = capsys.readouterr().err
        assert told == f"{path} carries no checksums: names, shapes, dtypes and finiteness were checked, not its bits\n"
        assert not read.verified and read.state == expected.state and read.config == expected.config
        assert set(read.moments) == set(expected.moments) and (read.states is None) == (expected.states is None)
        for name, array in expected.parameters.items():
            assert read.parameters[name].tobytes() == array.tobytes()
    convert.Convert(path, tmp_path / "neutral").run()
    capsys.readouterr()
    assert convert.read(tmp_path / "neutral").verified and not capsys.readouterr().err


def write_tree(path, tree):
    """A native file as another program would write it: with torch or Flax alone."""
    if path.suffix == ".pt":
        import torch

        groups = {
            name: OrderedDict(
                (path, torch.nn.Parameter(torch.from_numpy(array.copy()))) for path, array in value.items()
            )
            for name, value in tree.items()
            if isinstance(value, dict)
        }
        states = {"states": torch.from_numpy(tree["states"])} if "states" in tree else {}
        torch.save({**tree, **groups, **states}, path)
    else:
        import flax.serialization

        path.write_bytes(flax.serialization.msgpack_serialize(tree))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_pack_and_unpack_keep_bits_order_and_shapes(dtype):
    arrays = {"b": np.arange(6).reshape(2, 3).astype(dtype), "a": np.array(1.5, dtype).reshape(())}
    again = unpack(pack(arrays))
    assert pack(again) == pack(arrays)
    for name, array in arrays.items():
        assert again[name].dtype == array.dtype and again[name].shape == array.shape
        assert again[name].tobytes() == array.tobytes()


def test_a_run_names_its_newest_checkpoint(tmp_path):
    for step in (5, 100, 20):
        state = {**STATE, "step": step}
        write_checkpoint(tmp_path / "checkpoints" / f"step_{step:08d}", replace(checkpoint_of(np.float32), state=state))
    assert read_checkpoint(tmp_path).state["step"] == 100


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(adapters.FRAMEWORKS))
def test_a_tensor_keeps_dtype_and_bits_on_its_way_to_numpy(name, dtype):
    if adapters.missing(name):
        pytest.skip(adapters.missing(name))
    module = adapters.load_module(name, "layers")
    framework = __import__("torch") if name == "torch" else __import__("jax").numpy
    values = [1.0, -0.5, 3.25]
    make = framework.tensor if name == "torch" else framework.array
    found = adapters.load_module(name, "checkpoint.native").to_numpy(make(values, dtype=module.COMPUTE[dtype]))
    assert found.dtype == np.dtype(getattr(ml_dtypes, dtype, dtype)) and found.tolist() == values
