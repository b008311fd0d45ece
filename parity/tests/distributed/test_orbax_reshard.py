"""Orbax's checkpoints on other devices: from one mesh onto another, from two processes into one, in a run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from parity.proof import adapters
from parity.tests.checkpoint.test_checkpoint_format import assert_same
from parity.tests.checkpoint.test_orbax import named
from parity.tests.checkpoint.test_sharded import bits
from spec.checkpoint.files import TEMPORARY_PREFIX
from spec.checkpoint.format import list_checkpoints, parts_of
from tools import convert
from tools.cli.main import main
from tools.training.run_dir import RunDir

if adapters.missing("jax"):
    pytest.skip(adapters.missing("jax") or "", allow_module_level=True)
pytest.importorskip("orbax.checkpoint")

from jax_impl.checkpoint import sharded

MESHES = """
import sys, warnings
warnings.simplefilter("error")
from pathlib import Path
import jax, jax.numpy as jnp, ml_dtypes, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from jax_impl.checkpoint import sharded
from jax_impl.training.distributed import ParallelContext

def mesh(*sizes):
    axes, devices = ("data", "fsdp")[-len(sizes):], np.array(jax.devices()[: np.prod(sizes)])
    return Mesh(devices.reshape(sizes), axes, axis_types=(AxisType.Auto,) * len(sizes))

out, random = Path(sys.argv[1]), np.random.default_rng(0)
shapes = {"parameters.a": (64, 1024), "parameters.b": (16,), "first_moment.a": (8, 24)}
whole = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
whole["parameters.half"] = whole["parameters.a"].astype(ml_dtypes.bfloat16)
cuts = {"parameters.a": P(None, "fsdp"), "parameters.b": P(), "first_moment.a": P("fsdp"), "parameters.half": P("fsdp")}
written_on = mesh(4, 2)
arrays = {name: jax.device_put(x, NamedSharding(written_on, cuts[name])) for name, x in whole.items()}
step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
writing = sharded.AsyncSave(arrays, out, ParallelContext())
after = jax.block_until_ready(step(arrays))
assert all(x.is_deleted() for x in arrays.values()) and (np.asarray(after["parameters.a"]) == -1).all()
writing.result()
assert writing.done()

def check(found, dtype=None):
    for name, x in whole.items():
        assert np.asarray(found[name]).tobytes() == x.astype(dtype or x.dtype).tobytes(), name

check(sharded.read_whole(out))
kinds = [NamedSharding(mesh(*sizes), P("fsdp")) for sizes in ((2,), (8,), (2, 4))]
for kind in (*kinds, jax.sharding.SingleDeviceSharding(jax.devices()[3]), None):
    like = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=kind) for name, x in whole.items()}
    found = sharded.read_shards(like, out, ParallelContext())
    check(found)
    assert kind is None or all(x.sharding == kind for x in found.values())
narrow = {name: x.update(dtype=jnp.float32) for name, x in like.items()}
check(sharded.read_shards(narrow, out, ParallelContext()), np.float32)

def refused(like, told):
    try:
        sharded.read_shards(like, out, ParallelContext())
    except ValueError as error:
        assert told in str(error) and str(out) in str(error), error
    else:
        raise AssertionError(told)

refused({**like, "second_moment.a": like["parameters.a"]}, "tensor second_moment.a is missing")
refused({name: x for name, x in like.items() if name != "parameters.b"}, "tensor parameters.b is not part of")
wrong = jax.ShapeDtypeStruct((1024, 64), jnp.float32)
refused({**like, "parameters.a": wrong}, "tensor parameters.a has shape (64, 1024), not (1024, 64)")
out = out / "nan"
bad = jax.device_put(whole["parameters.a"], kinds[1]).at[63, 1023].set(jnp.nan)
sharded.AsyncSave({"parameters.a": bad}, out, ParallelContext()).result()
refused({"parameters.a": like["parameters.a"].update(sharding=kinds[0])}, "tensor parameters.a holds a value that")
"""


def environment(devices: int, **more: str) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, **more}


def test_another_mesh_reads_the_same_bits(tmp_path):
    """From (4, 2) devices, whose buffers are given away at once, onto 2, 8, (2, 4) and one."""
    command = [sys.executable, "-c", MESHES, str(tmp_path)]
    done = subprocess.run(command, env=environment(8), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


TOGETHER = """
import resource, sys, warnings
warnings.simplefilter("error")
from pathlib import Path
import jax, numpy as np
from jax_impl.checkpoint import sharded
from jax_impl.training import distributed

out, context = Path(sys.argv[1]), distributed.initialize("fsdp", timeout=60)
assert context.size == 2 and len(jax.devices()) == 4
whole = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)

def on(sharding):
    return jax.make_array_from_callback(whole.shape, sharding, lambda place: whole[place])

def same(arrays):
    return all(np.array_equal(x.data, whole[x.index]) for a in arrays.values() for x in a.addressable_shards)

names = ("parameters.cut", "parameters.copied")
arrays = dict(zip(names, (on(context.sharding("fsdp")), on(context.sharding()))))
sharded.AsyncSave(arrays, out, context).result()
places = {"parameters.cut": context.sharding(None, "fsdp"), "parameters.copied": context.sharding("fsdp")}
like = {name: jax.ShapeDtypeStruct(whole.shape, whole.dtype, sharding=places[name]) for name in names}
assert same(sharded.read_shards(like, out, context))
assert all(x.tobytes() == whole.tobytes() for x in sharded.read_whole(out).values())
# One of them finds its disk full; both are told of it at once.
if context.rank == 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, resource.RLIM_INFINITY))
(out / "full").mkdir(exist_ok=True)
writing = sharded.AsyncSave(arrays, out / "full", context)
try:
    writing.result()
except OSError as error:
    assert "File too large" in str(error), error
else:
    raise AssertionError("nobody was told")
print("done", flush=True)
distributed.exit_if_initialized(0)
"""


def test_two_processes_write_one_checkpoint(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = time.monotonic()
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(tmp_path)],
            env=environment(2, JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0] and all("done" in one for one in told), "\n".join(told)
    assert all("Traceback" not in one for one in told), "\n".join(told)
    assert time.monotonic() - started < sharded.TIMEOUT_SECONDS / 5
    assert {path.name for path in (tmp_path / "orbax").glob("ocdbt.process_*")} == {
        f"ocdbt.process_{i}" for i in (0, 1)
    }
    # One process, on one device, reads what two wrote.
    whole = sharded.read_whole(tmp_path)
    expected = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    assert whole["parameters.cut"].tobytes() == whole["parameters.copied"].tobytes() == expected.tobytes()


KILLED = """
import sys
from pathlib import Path
from parity.tests.checkpoint.test_orbax import Parts, save
from tools.training.run_dir import RunDir
from tools.training.checkpoint_manager import make_checkpoint_manager

manager = make_checkpoint_manager("orbax", RunDir(Path(sys.argv[1])), Parts(), keep=2)
print("ready", flush=True)
for step in range(1, 10_000):
    save(manager, step)
    manager.finish()
"""


def test_a_killed_writer_leaves_whole_checkpoints(tmp_path):
    """Whenever it dies; what it had not finished, Orbax's own directories among it, goes with the next start."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    deadline = time.monotonic() + 60
    while len(list_checkpoints(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    process.stdout.close()
    left = tmp_path / "checkpoints" / f"{TEMPORARY_PREFIX}step_00000099.0123abcd" / "orbax.orbax-checkpoint-tmp" / "d"
    left.mkdir(parents=True)
    (left / "part").write_bytes(b"x")
    with RunDir(tmp_path).locked():
        pass
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert names and all(name.startswith("step_") for name in names)
    for path in list_checkpoints(tmp_path):
        assert bits(named(convert.read(path))) == bits(named())


@pytest.mark.long
def test_a_run_goes_on_from_it_on_either_backend(small_data, tmp_path, capfd):
    """Bit for bit what a neutral checkpoint is; two devices read their parts of it, torch all."""
    flags = ["--data", str(small_data), "--preset", "nano", "--d-model", "16", "--d-ff", "16", "--n-layers", "1"]
    flags += ["--seq-len", "8", "--batch-size", "4", "--steps", "8", "--checkpoint-every", "2", "--eval-every", "8"]
    flags += ["--method", "sequential", "--eval-windows", "4"]

    def train(backend: str, out: str, *more: str) -> None:
        with pytest.raises(SystemExit) as stop:
            main(["train", backend, "--out", str(tmp_path / out), *flags, *more])
        assert stop.value.code == 0

    train("jax", "whole", "--stop-at", "4")
    train("jax", "parts", "--stop-at", "3", "--checkpoint-format", "orbax")
    train("jax", "parts", "--stop-at", "4", "--checkpoint-format", "orbax", "--resume")
    assert [parts_of(path) for path in list_checkpoints(tmp_path / "parts")] == ["orbax"] * 3
    whole, parts = (convert.read(tmp_path / name) for name in ("whole", "parts"))
    assert_same(parts, whole)
    command = [sys.executable, "-m", "jax_impl.train", "--out", str(tmp_path / "parts"), *flags, "--resume"]
    command += ["--stop-at", "6", "--checkpoint-format", "orbax", "--parallel", "fsdp"]
    done = subprocess.run(command, env=environment(2), capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "orbax" not in done.stderr.lower(), done.stderr
    assert convert.read(tmp_path / "parts").state["step"] == 6
    if not adapters.missing("torch"):
        train("torch", "parts", "--resume", "--stop-at", "7")
        assert parts_of(list_checkpoints(tmp_path / "parts")[-1]) is None
    assert "absl" not in capfd.readouterr().err
