"""Faults in checkpoints of many parts, in their checksums, and in reading the files of other programs."""

from parity.suite.mutants.mutant import Mutant

PARTS = ("parity/tests/checkpoint/test_sharded.py", "-k", "come_together or no_whole")
READERS = ("parity/tests/checkpoint/test_sharded.py", "-k", "each_reader")
LISTED = ("parity/tests/checkpoint/test_sharded.py", "-k", "every_listed")
SAVER = ("parity/tests/checkpoint/test_sharded.py", "-k", "appears_whole")
TORCH_SHARDS = ("parity/tests/checkpoint/test_sharded.py", "-k", "torch_writes")
ORBAX, ORBAX_MESHES = "parity/tests/checkpoint/test_orbax.py", "parity/tests/distributed/test_orbax_reshard.py"
OTHERS = ("parity/tests/checkpoint/test_checkpoint_format.py", "-k", "another_program")
DAMAGED_PT = ("parity/tests/checkpoint/test_corruption.py", "-k", "does_no_harm and pt")
DAMAGED_MSGPACK = ("parity/tests/checkpoint/test_corruption.py", "-k", "does_no_harm and msgpack")

SHARDS = (
    Mutant(
        "shards: every part is put at the start of its tensor",
        "spec/checkpoint/sharded.py",
        "slice(low, low + length)",
        "slice(0, length)",
        PARTS,
    ),
    Mutant("shards: parts may overlap", "spec/checkpoint/sharded.py", "if not seen.all():", "if False:", PARTS),
    Mutant(
        "shards: nobody counts the numbers before asking for memory",
        "spec/checkpoint/sharded.py",
        "if filled != int(np.prod(shape, dtype=object)):",
        "if False:",
        PARTS,
    ),
    Mutant(
        "shards: a part of another dtype is converted",
        "spec/checkpoint/sharded.py",
        "if array.dtype != whole.dtype:",
        "if False:",
        PARTS,
    ),
    Mutant(
        "checksums are not compared", "spec/checkpoint/checksums.py", "if found[name] != digest:", "if False:", LISTED
    ),
    Mutant(
        "what SHA256SUMS does not list is not missed",
        "spec/checkpoint/checksums.py",
        "        if name not in sums:\n",
        "        if False:\n",
        LISTED,
    ),
    Mutant(
        "shards: the digests of the shards are taken from the list that they are compared with",
        "spec/checkpoint/format.py",
        'own.get(name, elsewhere.get(name, ""))',
        'elsewhere.get(name, "")',
        READERS,
    ),
    Mutant(
        "shards: every reader verifies the share of the first",
        "spec/checkpoint/format.py",
        "for name in parts[rank::size]}",
        "for name in parts[0::size]}",
        READERS,
    ),
    Mutant(
        "a file of another program is said to be verified",
        "spec/checkpoint/format.py",
        'states, "SHA256SUMS" in texts)',
        "states, True)",
        OTHERS,
    ),
    Mutant(
        "native files are not verified",
        "spec/checkpoint/tree.py",
        "            verify(files)\n",
        "",
        DAMAGED_MSGPACK,
    ),
    Mutant(
        "a .pt file may run code",
        "torch_impl/checkpoint/native.py",
        "weights_only=True, mmap=True",
        "weights_only=False, mmap=True",
        DAMAGED_PT,
    ),
    Mutant(
        "a .pt file may call what makes memory out of nothing",
        "torch_impl/checkpoint/native.py",
        "        _require_plain(path)\n",
        "",
        DAMAGED_PT,
    ),
    Mutant(
        "shards: an old checkpoint goes before the new one is whole",
        "tools/training/checkpoint_manager.py",
        "        writing, self.writing = self.writing, None\n",
        "        writing, self.writing = self.writing, None\n        self.run.drop_old(self.state, self.keep - 1)\n",
        SAVER,
    ),
    Mutant(
        "shards: SHA256SUMS leaves them out",
        "tools/training/checkpoint_manager.py",
        "checksums(sums)",
        "checksums({name: sums[name] for name in self.beside})",
        SAVER,
    ),
    Mutant(
        "torch: a run loaded from shards counts its steps from zero",
        "torch_impl/training/engine.py",
        "        set_steps(self.optimizer, step)\n",
        "        set_steps(self.optimizer, 0)\n",
        TORCH_SHARDS,
    ),
    Mutant(
        "checkpoint: a name in SHA256SUMS may lead out of the directory",
        "spec/checkpoint/checksums.py",
        'if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:',
        "if False:",
        (ORBAX, "-k", "leads_elsewhere"),
    ),
    Mutant(
        "orbax: values that are not finite are taken",
        "jax_impl/checkpoint/sharded.py",
        "if not all(np.isfinite(shard.data).all() for shard in array.addressable_shards):",
        "if False:",
        (ORBAX_MESHES, "-k", "another_mesh"),
    ),
    Mutant(
        "orbax: torch reads its part of what JAX wrote in parts",
        "tools/training/run_dir.py",
        "parts_of(found[-1]) == form",
        "parts_of(found[-1]) is not None",
        (ORBAX, "-k", "whatever_lies"),
    ),
)
