"""`liquidnet train`: its flags, what a run is asked to be, and whether it still is the same run."""

from __future__ import annotations

import math
import os
import re
import sys
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from spec.checkpoint.format import Checkpoint, list_checkpoints
from spec.config import ModelConfig, TrainingConfig, require_integer
from spec.data import Dataset, next_batch, open_data, validation_batches
from spec.optimizer import num_moments
from spec.parameters import num_parameters
from spec.presets import PRESETS, RECIPES, preset
from spec.runtime.engine import Engine
from spec.runtime.parallel import ParallelContext
from tools import convert
from tools.cli import backends, signals
from tools.cli.destination import require_room, require_writable
from tools.training.checkpoint_manager import CheckpointFormat, require_format
from tools.training.decay import begin_decay, stable_origin
from tools.training.evaluate import require_same_tokenizer
from tools.training.mixer_flags import mixer_sizes, with_mixer_flags
from tools.training.run_dir import ExecutionConfig, RunDir, Settings, data_identity
from tools.training.selftest import trusted_method
from tools.training.tensorboard import require_tensorboard
from tools.training.trainer import Trainer


@dataclass(frozen=True)
@with_mixer_flags
class Train:
    """Train a model, or carry a run on, on either backend.

    SIGTERM and SIGHUP save a checkpoint and exit 75, Ctrl-C saves and exits 130; `--resume` goes on from each,
    and from a kill. A flag that is not given is the preset's or, on --resume, what the run was started with; the last
    flags below are of mixers, each with the kinds of model that have it;
    --stop-at, --profile, --tensorboard and what says who computes what (from --micro-batch-size to
    --checkpoint-format) are of this call alone. Under torchrun (`torchrun --nproc-per-node 4 -m torch_impl.train ...`)
    several processes train; JAX takes all devices of each host, and several hosts as JAX_COORDINATOR_ADDRESS tells
    (see docs/guide/tpu.md).
    """

    backend: Annotated[backends.Backend, tyro.conf.Positional]
    """Backend to train with."""
    data: Path
    """Directory that `liquidnet prepare` wrote."""
    out: Path
    """Directory of the run."""
    preset: Annotated[str | None, tyro.conf.arg(help=f"Size and recipe: {', '.join(PRESETS)} (default: nano).")] = None
    d_model: int | None = None
    """Width, over the preset's."""
    d_ff: int | None = None
    """Width of the MLP, over the preset's."""
    n_layers: int | None = None
    """Number of blocks, over the preset's."""
    steps: int | None = None
    """Length of the learning-rate schedule in steps. A longer one changes no rate of a wsd schedule's stable part."""
    total_tokens: float | None = None
    """Length of the schedule in tokens instead of steps."""
    stop_at: int | None = None
    """End this call at this step; the schedule stays as long as it is."""
    batch_size: int | None = None
    """Sequences a step, over all devices."""
    seq_len: int | None = None
    """Tokens a sequence."""
    stream: bool = False
    """Each row reads on where it stopped in the step before, from the state it had there."""
    lr: Annotated[float | None, tyro.conf.arg(aliases=["--peak-lr"])] = None
    """Peak learning rate."""
    warmup_steps: int | None = None
    """Steps of linear warm-up (default: the preset's, a tenth of the schedule at most)."""
    optimizer: Literal["adamw", "muon"] | None = None
    """muon: Muon for the matrices of the blocks, AdamW for the rest (default: adamw)."""
    momentum: float | None = None
    """Decay of Muon's momentum (default: 0.95)."""
    newton_schulz_dtype: Literal["float32", "bfloat16"] | None = None
    """What the operands of Muon's products are rounded to (default: float32)."""
    schedule: Literal["cosine", "wsd"] | None = None
    """After the warm-up: cosine, or wsd, a stable rate and a decay at the end (default: cosine)."""
    decay_steps: int | None = None
    """Steps of the decay that ends a wsd schedule; 0 is a fifth of all steps (default: 0)."""
    decay_shape: Literal["linear", "sqrt"] | None = None
    """Of that decay: linear, or sqrt, which falls as 1 - sqrt(progress) (default: linear)."""
    weight_decay: float | None = None
    """Decoupled weight decay of every matrix."""
    grad_clip: float | None = None
    """Largest global gradient norm; 0 turns clipping off."""
    seed: int | None = None
    """Seed of the initial weights and of the data order."""
    dtype: str | None = None
    """Dtype of the dense products: float32, bfloat16, float16 (torch alone) or float64."""
    method: str | None = None
    """Mixer method; a named one runs or raises (default: auto)."""
    remat: bool | None = None
    """Make each block's activations again in the backward pass: less memory, a third more work (default: False)."""
    compile: bool = False
    """Compile torch's step with torch.compile (default: on a CUDA GPU only); JAX always compiles."""
    no_compile: bool = False
    """Run torch's step as it is written, without torch.compile."""
    micro_batch_size: int | None = None
    """Sequences a device takes at a time, their gradients added up (default: all of its share)."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Whether each process of torchrun, or device of JAX, has a copy of the parameters (ddp) or a part (fsdp)."""
    context_parallel: int = 1
    """Processes of torchrun, or devices of JAX, that share each sequence, a stretch of time each."""
    mesh: str | None = None
    """JAX's devices along each axis, in place of the two before: data=2,fsdp=4,sequence=2."""
    rank_timeout: float = 600.0
    """Seconds to wait for another process before the run ends."""
    checkpoint_format: CheckpointFormat = "neutral"
    """neutral; or torch's dcp, JAX's orbax: each process writes its part while training goes on."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; one is always written at the end (default: 250)."""
    keep: int | None = None
    """Checkpoints to keep, besides the best (default: 3)."""
    eval_every: int | None = None
    """Steps between evaluations; one is always made at the end of the schedule (default: 250)."""
    eval_windows: int | None = None
    """Validation windows to read at most (default: 2048)."""
    init_from: Path | None = None
    """Start from the weights of this checkpoint, with fresh moments at step 0."""
    decay_from: Path | None = None
    """Go on from this checkpoint of a wsd run's stable part in a run of its own, which ends after a decay of
    --decay-steps (default: what that run was given); the stable run stays as it is."""
    profile: bool = False
    """Write a profiler trace of a few steps to RUN/profile."""
    tensorboard: bool = False
    """Write the metrics of this call to RUN/tensorboard besides, for `tensorboard --logdir`."""
    resume: bool = False
    """Go on from the newest checkpoint in --out, whichever backend wrote it; from the start where there is none."""

    def run(self) -> None:
        # From here on: what is imported first takes seconds.
        with signals.exit_if_terminated("run it again with --resume"):
            self._run()

    def _run(self) -> None:
        if self.stop_at is not None:
            require_integer("stop_at", self.stop_at, 1)
        require_format(self.backend, self.checkpoint_format, self.out)
        if self.tensorboard:
            require_tensorboard()
        parallel = backends.load(self.backend, "training.distributed")
        context = parallel.initialize(self.parallel, self.context_parallel, self.rank_timeout, self.mesh)
        run = RunDir(self.out, self.tensorboard)
        try:
            sys.exit(self._with_origin(context)._train(run, context))
        except (RuntimeError, ValueError) as error:
            if not context.is_peer_loss(error):
                raise
            # Without the file and line of gloo's that it comes from, and without its advice.
            reason = re.sub(r".*\.cc:\d+\] ?", "", str(error).splitlines()[0]).split(". ")[0]
            raise ConnectionError(
                f"process {context.rank} of {context.size} lost another one ({reason}); {run.last_good()}; "
                "start all of them again with --resume"
            ) from error

    def _with_origin(self, context: ParallelContext) -> Train:
        """These flags, --decay-from by the name of the checkpoint: the run that it is of may go on meanwhile."""
        if (path := self.decay_from) is None:
            return self
        return replace(self, decay_from=context.broadcast(lambda: stable_origin(path)))

    def _train(self, run: RunDir, context: ParallelContext) -> int:
        with context.raise_together():
            if self.out.resolve() == self.data.resolve():
                raise ValueError(f"--out {self.out} is the data's own directory; name another --out")
            data, existed = open_data(self.data), run.exists()
            if existed and not self.resume:
                raise ValueError(f"{self.out} already holds a run; add --resume to carry it on, or name another --out")
            run.require_files()
            initial, stored = None, run.settings() if existed else None
            if self.init_from is not None and self.decay_from is not None:
                raise ValueError("--init-from and --decay-from both say where a run begins; give one of them")
            if stored is None and self.decay_from is not None:
                initial, stored = begin_decay(self.decay_from, self.decay_steps)
            settings = self.resolve(data, stored)
            _require_memory(settings, self.micro_batch_size, context)
            if context.rank == 0:
                self._require_place(settings)
            initial = initial or self._initial(data, settings, run)
        with ExitStack() as held:
            # Before methods are tried out and compiled.
            with context.raise_together():
                if context.rank == 0:
                    held.enter_context(run.locked())
                    if run.exists() != existed:
                        raise ValueError(f"{self.out} was taken by another run just now; name another --out")
            engine = self._engine(settings, context)
            return Trainer(self, data, run, settings, engine).train(initial)

    def _require_place(self, settings: Settings) -> None:
        """Raises ValueError or OSError where no checkpoint could be written: weights and moments."""
        asked = {"tensorboard": self.tensorboard, "profile": self.profile}
        for place in (self.out, self.out / "checkpoints", *(self.out / name for name in asked if asked[name])):
            require_writable(place, "--out")
        numbers = num_parameters(settings.model) + num_moments(settings.model, settings.training)
        require_room(self.out / "checkpoints", 4 * numbers, "--out")

    def _initial(self, data: Dataset, settings: Settings, run: RunDir) -> Checkpoint | None:
        # Killed before its first checkpoint, a run begins again where it began.
        origin = settings.decay_from or settings.init_from
        if origin is None or list_checkpoints(run.path):
            return None
        source = Path(origin)
        initial = convert.read(source)
        require_same_tokenizer(initial, data, source)
        if replace(initial.config, max_seq_len=settings.model.max_seq_len) != settings.model:
            raise ValueError(f"{source} holds another model than asked for: {initial.config}")
        if settings.decay_from is not None and initial.state["step"] != settings.training.decay_start:
            raise ValueError(
                f"{source} is at step {initial.state['step']}, and this run was decayed from step "
                f"{settings.training.decay_start}; put that checkpoint back, or name another --out"
            )
        return initial

    def _engine(self, settings: Settings, context: ParallelContext) -> Engine[Any]:
        model, training, execution = settings.model, settings.training, settings.execution
        # The first process tries the methods out; were each to decide, they might differ.
        method = context.broadcast(lambda: trusted_method(self.backend, execution.method, model, training, _warn))
        plain = self.context_parallel > 1 or not backends.load(self.backend, "mixers").capabilities(model).compile
        compiled = _compiles(self.backend, execution.compile, plain)
        if context.rank == 0:
            _warn_if_emulated(self.backend, training.compute_dtype)
        engine = backends.load(self.backend, "training.engine").Engine
        with context.raise_together():
            return engine(model, training, method, execution.remat, compiled, self.micro_batch_size, context)

    def resolve(self, data: Dataset, stored: Settings | None) -> Settings:
        """The settings of this segment; raises ValueError where they cannot be, or a resumed run would be another."""
        name = "nano" if self.preset is None else self.preset
        if stored is None:
            model, training, execution = preset(name), RECIPES[name], ExecutionConfig()
        else:
            model, training, execution = stored.model, stored.training, stored.execution
            if self.preset is not None:
                model = replace(preset(self.preset), max_seq_len=model.max_seq_len)
        model = self._resized(replace(model, vocab_size=data.vocab_size))
        training = self._trained(training, stored is None)
        named = tuple(field.name for field in fields(ExecutionConfig) if field.name != "compile")
        execution = replace(execution, compile=self._asked_to_compile(execution.compile), **_given(self, named))
        if stored is None:
            model = replace(model, max_seq_len=training.seq_len)
        # Raises for a dtype that the backend does not train in.
        backends.load(self.backend, "layers").accumulate_dtype(training.compute_dtype)
        began = stored.init_from if stored is not None else None
        init_from = began if self.init_from is None else str(self.init_from.resolve())
        decayed = stored.decay_from if stored is not None else None
        decay_from = decayed if self.decay_from is None else str(self.decay_from)
        settings = Settings(model, training, execution, data_identity(data), init_from, decay_from)
        if stored is not None:
            stored.require_same_run(settings)
        # One row: nothing says yet that there is memory for more. The lanes of a stream are no longer than the data.
        next_batch(data, 0, training if training.stream else replace(training, batch_size=1))
        next(validation_batches(data, training.seq_len, 1, 1))
        return settings

    def _resized(self, model: ModelConfig) -> ModelConfig:
        return replace(model, **_given(self, ("d_model", "d_ff", "n_layers")), **mixer_sizes(self, model))

    def _trained(self, training: TrainingConfig, new: bool) -> TrainingConfig:
        """The flags over a recipe, or over what a run has been trained with."""
        training = replace(training, **_given(self, ("batch_size", "seq_len")))
        names = ("steps", "warmup_steps", "weight_decay", "grad_clip", "seed", "schedule", "decay_steps", "decay_shape")
        names += ("optimizer", "momentum", "newton_schulz_dtype")
        renamed = {"peak_lr": self.lr, "compute_dtype": self.dtype, "stream": self.stream or None}
        asked = _given(self, names) | {name: value for name, value in renamed.items() if value is not None}
        if self.total_tokens is not None:
            asked["steps"] = self._steps_of(training)
        if new and self.warmup_steps is None:
            asked["warmup_steps"] = min(training.warmup_steps, asked.get("steps", training.steps) // 10)
        # All at once: the parts of a schedule are checked against its length.
        training = replace(training, **asked)
        self._require_owner(
            "the wsd schedule", "--schedule wsd", training.schedule == "wsd", "decay_steps", "decay_shape"
        )
        # A run keeps its optimizer.
        muon = "--optimizer muon" if new else ""
        self._require_owner("Muon", muon, training.optimizer == "muon", "momentum", "newton_schulz_dtype")
        return training

    def _require_owner(self, owner: str, remedy: str, there: bool, *flags: str) -> None:
        """Raises ValueError where one of these flags is given, and what it belongs to is not."""
        for flag in flags:
            if not there and (value := getattr(self, flag)) is not None:
                name = flag.replace("_", "-")
                raise ValueError(
                    f"--{name} {value} is of {owner}; {f'add {remedy}, or ' if remedy else ''}leave --{name} out"
                )

    def _asked_to_compile(self, stored: bool | None) -> bool | None:
        if self.compile and self.no_compile:
            raise ValueError("--compile and --no-compile exclude each other; give one of them")
        if self.no_compile and self.backend == "jax":
            raise ValueError("JAX always compiles its steps; leave --no-compile out, or train with torch")
        return self.compile if self.compile or self.no_compile else stored

    def _steps_of(self, training: TrainingConfig) -> int:
        tokens, a_step = self.total_tokens or 0.0, training.batch_size * training.seq_len
        if self.steps is not None:
            raise ValueError("--steps and --total-tokens both give the length of the schedule; give one of them")
        if not a_step <= tokens < math.inf:
            raise ValueError(f"--total-tokens must be at least one step's {a_step} tokens, got {tokens}")
        return int(tokens // a_step)


def _compiles(backend: str, asked: bool | None, plain: bool = False) -> bool:
    """Whether the engine compiles: JAX always, torch where asked to or, where it can, by itself on CUDA with Triton."""
    if backend == "jax" or asked is not None:
        return backend == "jax" or bool(asked)
    devices = backends.load(backend, "ops.devices")
    return devices.default_device().type == "cuda" and devices.HAS_TRITON and not plain


def _warn_if_emulated(backend: str, dtype: str) -> None:
    """bfloat16 runs everywhere, but slowly where no hardware multiplies it."""
    if backend != "torch" or dtype != "bfloat16":
        return
    devices = backends.load(backend, "ops.devices")
    device = devices.default_device()
    if not devices.has_bfloat16(device):
        _warn(
            f"WARNING: this GPU ({devices.architecture(device)}) has no bfloat16 in hardware, its products are "
            "emulated, slowly; use --dtype float16"
        )


def _warn(text: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, style="bold red", markup=False)


def _given(flags: Train, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}


def _require_memory(settings: Settings, micro_batch: int | None, context: ParallelContext) -> None:
    """Weights, gradients, moments and one activation a layer are the least that each process of a machine holds."""
    model, training, shard = settings.model, settings.training, context.shard
    rows = min(micro_batch or training.batch_size, -(-training.batch_size // shard.rows))
    activations = 4 * rows * -(-training.seq_len // shard.columns) * model.d_model * model.n_layers
    numbers = 2 * num_parameters(model) + num_moments(model, training)
    held = 4 * numbers // (context.size if context.sharded else 1)
    needed = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) * (held + activations)
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > present:
        raise ValueError(
            f"{num_parameters(model):,} parameters and {training.batch_size} x {training.seq_len} tokens a step need "
            f"more than {needed / 2**30:,.0f} GiB, this machine has {present / 2**30:,.0f}; "
            "make the model or the batch smaller"
        )
