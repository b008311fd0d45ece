"""`liquidnet plan`: what a train step needs on a TPU slice, from the TPU's own compiler, on a machine without a TPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from spec.config import TrainingConfig, require_integer
from spec.parameters import num_parameters
from spec.presets import RECIPES, preset
from tools.cli.destination import require_new_or_file
from tools.cli.json_file import Json, write_json
from tools.cli.progress import working
from tools.plan import topology
from tools.plan.batch import BatchSearch, largest_batch
from tools.plan.compile_step import CompiledStep, DoesNotFit, StepSpec, by_kind, compiled_step, costliest, summary
from tools.plan.tables import show


@dataclass(frozen=True)
class Plan:
    """Size a TPU run: compile its train step for a slice that is not here, and show what it needs a chip.

    Memory, HBM traffic, FLOPs and collectives are read off the compiled program. Milliseconds, tokens a second and MFU
    are a model, the sum of rooflines; nothing is measured. Needs `pip install 'liquidnet-dual[tpu]'`, and no TPU.
    """

    topology: str = "v6e:4x4"
    """The slice: chip and grid of chips, as v6e:4x4, v5e:2x4, v5p:2x2x2 or v4:2x2x2."""
    preset: str = "base"
    """Size and recipe, as in `liquidnet train`."""
    mesh: str | None = None
    """Chips along each axis, as in `liquidnet train jax` (default: data=all of them)."""
    batch_size: int | None = None
    """Sequences a step, over all chips (default: the recipe's, up to a multiple of what the mesh cuts it into)."""
    tokens_per_chip: int | None = None
    """Tokens a step and chip, in place of --batch-size."""
    seq_len: int | None = None
    """Tokens a sequence (default: the recipe's)."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of the dense products."""
    method: str = "auto"
    """Mixer method."""
    remat: bool = False
    """Make activations again in the backward pass instead of keeping them."""
    micro_batch_size: int | None = None
    """Sequences a chip takes at a time, their gradients added up (default: all of its share)."""
    d_model: int | None = None
    """Width, over the preset's."""
    d_ff: int | None = None
    """Width of the MLP, over the preset's."""
    n_layers: int | None = None
    """Number of blocks, over the preset's."""
    vocab_size: int | None = None
    """Entries of the vocabulary, over the preset's 50257."""
    largest_batch: Literal["estimate", "search", "skip"] = "estimate"
    """The largest batch that fits: a line through two compiles, then tried; or bisected to the row; or not at all."""
    explain: int = 0
    """Show so many instructions: those that the model gives most time."""
    json: Path | None = None
    """Write everything to this file too."""

    def run(self) -> None:
        require_new_or_file(self.json, "--json")
        if self.explain < 0:
            raise ValueError(f"--explain must be at least 0, got {self.explain}")
        where = topology.topology(self.topology)
        topology.compile_only()
        spec = self._spec(where)
        with working("importing JAX") as report:
            result = self._result(spec, report)
        show(result, Console(highlight=False, width=None if sys.stdout.isatty() else 120))
        if self.json is not None:
            write_json(self.json, result)

    def _result(self, spec: StepSpec, report: Callable[[str], None]) -> Json:
        def compile(spec: StepSpec) -> CompiledStep:
            report(f"compiling {spec.training.batch_size} x {spec.training.seq_len} tokens for {spec.topology.name}")
            return compiled_step(spec)

        parts = _parts(spec)
        trials = BatchSearch(spec, parts, compile)
        rows = spec.training.batch_size // parts
        try:
            done = compile(spec)
        except DoesNotFit as error:
            if self.largest_batch == "skip":
                raise
            trials.refused.add(rows)
            most = largest_batch(trials, self.largest_batch == "search")["batch_size"]
            instead = f"--batch-size {most} fits, or try" if most else "not one row a device fits; try"
            raise DoesNotFit(f"{error}; {instead} --remat, --micro-batch-size, or fsdp in --mesh") from error
        result: Json = {
            "preset": self.preset,
            "parameters": num_parameters(spec.config),
            **summary(spec, done),
            "kinds": by_kind(done.counted, spec.topology.peaks),
            "dearest": costliest(done.counted, spec.topology.peaks, self.explain),
        }
        if self.largest_batch != "skip":
            trials.peaks[rows] = done.memory["peak"]
            result["largest_batch"] = largest_batch(trials, self.largest_batch == "search")
        return result

    def _spec(self, where: topology.Topology) -> StepSpec:
        config, training = preset(self.preset), RECIPES[self.preset]
        sizes = {name: getattr(self, name) for name in ("d_model", "d_ff", "n_layers", "vocab_size")}
        seq_len = training.seq_len if self.seq_len is None else self.seq_len
        config = replace(config, **{name: size for name, size in sizes.items() if size is not None})
        if self.micro_batch_size is not None:
            require_integer("micro_batch_size", self.micro_batch_size, 1)
        training = replace(training, seq_len=seq_len, compute_dtype=self.dtype)
        spec = StepSpec(
            where, replace(config, max_seq_len=seq_len), training, self.mesh, self.method, self.remat,
            self.micro_batch_size,
        )  # fmt: skip
        return replace(spec, training=replace(training, batch_size=self._batch(training, spec)))

    def _batch(self, training: TrainingConfig, spec: StepSpec) -> int:
        if self.tokens_per_chip is not None:
            if self.batch_size is not None:
                raise ValueError("--batch-size and --tokens-per-chip both give the batch; give one of them")
            rows, rest = divmod(self.tokens_per_chip * spec.topology.chips, training.seq_len)
            if rest or rows < 1:
                raise ValueError(
                    f"--tokens-per-chip {self.tokens_per_chip} on {spec.topology.chips} chips is no whole number of "
                    f"sequences of {training.seq_len}; give --batch-size"
                )
            return rows
        parts = _parts(spec)
        batch = -(-training.batch_size // parts) * parts if self.batch_size is None else self.batch_size
        if batch < 1 or batch % parts:
            raise ValueError(
                f"--batch-size {batch} is not cut evenly between {parts} parts; give a multiple of {parts}"
            )
        return batch


def _parts(spec: StepSpec) -> int:
    """Into how many parts the mesh cuts the rows of a batch."""
    from jax_impl.training.distributed import mesh_sizes

    data, fsdp, _ = mesh_sizes(spec.topology.chips, "ddp", 1, spec.mesh)
    return data * fsdp
