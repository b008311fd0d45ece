"""Orbax's checkpoints: any mesh and any processes write and read them bit for bit, whole or not at all."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from parity.proof import adapters
from parity.suite.robustness import corruption
from parity.tests.checkpoint.test_checkpoint_format import assert_same
from parity.tests.checkpoint.test_sharded import bits
from spec.checkpoint.checksums import checksums, file_sha256, files_below
from spec.checkpoint.format import list_checkpoints, parts_of, read_beside, read_checkpoint, write_checkpoint
from spec.checkpoint.sharded import named_arrays
from tools import convert
from tools.cli.main import main
from tools.training.checkpoint_manager import make_checkpoint_manager, require_format
from tools.training.run_dir import RunDir

if adapters.missing("jax"):
    pytest.skip(adapters.missing("jax") or "", allow_module_level=True)
pytest.importorskip("orbax.checkpoint")

from jax_impl.checkpoint import sharded
from jax_impl.training.distributed import ParallelContext


@pytest.fixture
def written(tmp_path):
    """The sample as Orbax writes it."""
    convert.write(tmp_path / "c", corruption.sample(), "orbax")
    return tmp_path / "c"


def named(checkpoint=None):
    checkpoint = checkpoint or corruption.sample()
    return named_arrays(checkpoint.parameters, checkpoint.moments)


def sign(directory: Path) -> None:
    """Right checksums for whatever is there, as of one who has them made anew."""
    (directory / "SHA256SUMS").unlink(missing_ok=True)
    sums = {name: file_sha256(path) for name, path in files_below(directory).items()}
    (directory / "SHA256SUMS").write_bytes(checksums(sums))


def test_a_directory_is_complete_and_checked_by_standard_tools(written):
    names = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    listed = dict(reversed(line.split("  ")) for line in (written / "SHA256SUMS").read_text().splitlines())
    assert set(listed) == names - {"SHA256SUMS"} and any(name.count("/") > 1 for name in names)
    assert subprocess.run(["sha256sum", "--quiet", "--check", "SHA256SUMS"], cwd=written, check=False).returncode == 0
    assert parts_of(written) == "orbax" and oct(written.stat().st_mode)[-3:] == "755"
    with pytest.raises(ValueError, match="already exists"):
        convert.write(written, corruption.sample(), "orbax")


def test_the_command_converts_there_and_back(tmp_path, capsys):
    write_checkpoint(tmp_path / "a", corruption.sample())
    main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--format", "orbax"])
    assert "(orbax, step 7, 16 tensors)" in capsys.readouterr().out
    main(["convert", str(tmp_path / "b"), str(tmp_path / "c")])
    for path in (tmp_path / "a").iterdir():
        assert (tmp_path / "c" / path.name).read_bytes() == path.read_bytes(), path.name
    with pytest.raises(SystemExit):
        main(["convert", str(tmp_path / "b"), str(tmp_path / "c.pt"), "--format", "orbax"])


def test_a_run_is_read_whatever_lies_newest(tmp_path):
    """Whole for those who cannot read it in parts, and by those who can, the rest of it."""
    run = RunDir(tmp_path)
    run.save(corruption.sample(), keep=3)
    convert.write(
        run.checkpoint_path(9), replace(corruption.sample(), state={**corruption.sample().state, "step": 9}), "orbax"
    )
    for newest in (run.newest_checkpoint(), run.newest_checkpoint((0, 2), "dcp"), convert.read(tmp_path)):
        assert newest is not None and newest.state["step"] == 9 and newest.verified
        assert bits(named(newest)) == bits(named())
    part = run.newest_checkpoint((0, 2), "orbax")
    assert part is not None and part.state["step"] == 9 and not part.parameters and not part.moments
    with pytest.raises(ValueError, match=r"was written by Orbax.*liquidnet convert"):
        read_checkpoint(tmp_path)


def test_damage_anywhere_is_refused_before_orbax_sees_it(written, monkeypatch):
    whole = {name: path.read_bytes() for name, path in files_below(written).items()}
    monkeypatch.setattr(sharded, "read_whole", lambda directory: pytest.fail("Orbax was asked"))
    random = np.random.default_rng(0)
    for name, content in whole.items():
        flipped = bytearray(content)
        flipped[random.integers(len(content))] ^= 1 << random.integers(8)
        for changed in (bytes(flipped), content[: len(content) // 2], content[:-1], content + b"\0", None):
            path = written / name
            path.unlink() if changed is None else path.write_bytes(changed)
            with pytest.raises(ValueError, match=r"SHA256SUMS|is missing"):
                convert.read(written)
        path.write_bytes(content)
    deep = written / "orbax" / "ocdbt.process_0" / "more"
    deep.write_bytes(b"")
    with pytest.raises(ValueError, match=r"orbax/ocdbt\.process_0/more is not listed in SHA256SUMS"):
        convert.read(written)
    deep.unlink()
    deep.symlink_to(written)
    with pytest.raises(ValueError, match="no regular file"):
        convert.read(written)
    deep.unlink()
    os.mkfifo(deep)
    with pytest.raises(ValueError, match="no regular file"):
        convert.read(written)


def test_each_reader_verifies_its_share(written):
    parts = sorted(name for name in files_below(written) if name.startswith("orbax/"))
    for number in (0, 1):
        path = written / parts[number]
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"{parts[number]} does not match SHA256SUMS"):
            read_beside(written, number, 2)
        assert read_beside(written, 1 - number, 2).state == corruption.sample().state
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["/etc/passwd", "../other", "orbax/../../other"])
def test_a_list_that_leads_elsewhere_is_refused(written, name):
    with (written / "SHA256SUMS").open("a") as sums:
        sums.write(f"{'0' * 64}  {name}\n")
    with pytest.raises(ValueError, match="which is no file of a checkpoint"):
        convert.read(written)


def test_wrong_content_under_right_checksums_is_refused(written, tmp_path):
    (written / "model.safetensors").write_bytes(b"")
    sign(written)
    with pytest.raises(ValueError, match="weights twice"):
        convert.read(written)
    (written / "model.safetensors").unlink()
    for name in ("_METADATA", "manifest.ocdbt"):
        content = (written / "orbax" / name).read_bytes()
        for changed in (b"", b"[]", b"{}", content[: len(content) // 2]):
            (written / "orbax" / name).write_bytes(changed)
            sign(written)
            with pytest.raises(ValueError, match="checkpoint "):
                convert.read(written)
        (written / "orbax" / name).write_bytes(content)
    sample = corruption.sample()
    arrays = {**named(), f"parameters.{corruption.BIAS}": np.full(6, np.nan, np.float32)}
    for kept, told in (
        (arrays, f"{corruption.BIAS} holds a value"),
        ({"parameters.more": np.ones(2)}, "2 layers|missing"),
    ):
        shutil.rmtree(written / "orbax")
        sharded.AsyncSave(kept, written, ParallelContext()).result()
        sign(written)
        with pytest.raises(ValueError, match=told):
            convert.read(written)
    assert sample.config.n_layers == 2


def test_what_would_not_fit_into_memory_is_not_asked_for(written, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 10)
    with pytest.raises(ValueError, match="more than this machine has memory"):
        sharded.read_whole(written)


@contextmanager
def full_disk(limit: int):
    """Files of this process end at so many bytes."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_told_by_the_result(tmp_path, capfd):
    large = {f"parameters.{i}": np.random.default_rng(i).standard_normal(20_000) for i in range(8)}
    with full_disk(2**14):
        writing = sharded.AsyncSave(large, tmp_path, ParallelContext())
        with pytest.raises(OSError, match=r"was not written.*File too large"):
            writing.result()
    assert writing.done() and not (tmp_path / "orbax").exists()
    assert capfd.readouterr() == ("", "")


def test_what_nobody_waits_for_is_not_printed(monkeypatch):
    """TensorStore's answer to an event loop that has closed; any other error of a thread is."""
    told, loop = [], asyncio.new_event_loop()
    loop.close()
    monkeypatch.setattr(sharded, "_usual_hook", told.append)
    with pytest.raises(RuntimeError) as error:
        loop.call_soon_threadsafe(print)
    trace = error.value.__traceback__
    assert trace is not None
    sys.unraisablehook(SimpleNamespace(exc_traceback=trace.tb_next))
    assert not told
    for other in (trace, None):
        sys.unraisablehook(SimpleNamespace(exc_traceback=other))
    assert len(told) == 2


class Parts:
    """An engine of one process whose checkpoints Orbax writes."""

    def __init__(self, scale: float = 1.0):
        self.context, self.scale = ParallelContext(), scale

    def dump_states(self):
        return corruption.sample().states

    def save_shards(self, directory):
        arrays = {name: array * np.float32(self.scale) for name, array in named().items()}
        return sharded.AsyncSave(arrays, directory, self.context)


def save(checkpoint_manager, step: int) -> None:
    whole = corruption.sample()
    checkpoint_manager.save(corruption.CONFIG, {**whole.state, "step": step, "best": None}, whole.tokenizer)


def test_the_saver_lets_it_appear_whole(tmp_path):
    run = RunDir(tmp_path)
    checkpoint_manager = make_checkpoint_manager("orbax", run, Parts(), keep=2)
    for step in (1, 2, 3):
        save(checkpoint_manager, step)
        # The first lies under another name until all of it is there.
        assert [path.name for path in list_checkpoints(tmp_path)] == [f"step_0000000{i}" for i in range(1, step)][-2:]
        deadline = time.monotonic() + 60
        while checkpoint_manager.pending is not None and time.monotonic() < deadline:
            checkpoint_manager.poll()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000002", "step_00000003"]
    assert_same(
        convert.read(tmp_path),
        replace(corruption.sample(), state={**corruption.sample().state, "step": 3, "best": None}),
    )
    with full_disk(600):
        save(checkpoint_manager, 4)
        with pytest.raises(OSError, match="File too large"):
            checkpoint_manager.finish()
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith(".")]
    assert convert.read(tmp_path).state["step"] == 3


def test_each_backend_refuses_the_other_ones_format():
    with pytest.raises(
        ValueError, match=r"--checkpoint-format orbax is JAX's; torch reads it, and writes neutral or dcp"
    ):
        require_format("torch", "orbax", Path("run"))
    with pytest.raises(
        ValueError, match=r"--checkpoint-format dcp is PyTorch's; jax reads it, and writes neutral or orb"
    ):
        require_format("jax", "dcp", Path("run"))
    for backend, own in (("torch", "dcp"), ("jax", "orbax")):
        if not adapters.missing(backend):
            require_format(backend, own, Path("run"))
            require_format(backend, "neutral", Path("run"))
            require_format(backend, "neutral", Path("r\udcff"))
    if not adapters.missing("jax"):
        with pytest.raises(ValueError, match="Orbax takes no name that is not UTF-8; name another place, or another"):
            require_format("jax", "orbax", Path("r\udcff"))


def test_without_orbax_it_is_said_what_to_install(written, monkeypatch):
    monkeypatch.setattr(sharded, "ocp", None)
    with pytest.raises(ValueError, match=r"written by Orbax: .*pip install orbax-checkpoint; or use liquidnet convert"):
        convert.read(written)
    with pytest.raises(NotImplementedError, match="orbax-checkpoint"):
        require_format("jax", "orbax", Path("run"))
    # JAX itself is what cannot be imported; a stand-in for the loader says so as the real one does.
    monkeypatch.setattr(convert.backends, "load", lambda *names: (_ for _ in ()).throw(ValueError("needs jax")))
    with pytest.raises(ValueError, match=r"written by Orbax: needs jax; or use liquidnet convert"):
        convert.read(written)
