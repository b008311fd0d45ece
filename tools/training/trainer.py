"""The training loop, one for both backends: a backend's engine does what differs, everything else is here."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from parity.proof.environment import processor
from spec.checkpoint.format import Checkpoint
from spec.config import TrainingConfig, training_from_json
from spec.data import Dataset, next_batch, validation_batches, validation_stream, with_side_inputs
from spec.runtime.engine import Engine
from spec.sampling import Sampling, Step
from spec.schedule import learning_rate
from tools.cli import signals
from tools.cli.errors import first_line
from tools.generation.session import Session
from tools.plot.loss import plot_loss
from tools.tokenizer import parse_tokenizer
from tools.training.checkpoint_manager import OWN_FORMAT, CheckpointFormat, make_checkpoint_manager
from tools.training.evaluate import mean_loss
from tools.training.records import BestCheckpoint, MetricsLine, TrainerState
from tools.training.run_dir import RunDir, Settings

EXIT_SIGTERM, EXIT_SIGINT = signals.EXIT_SIGTERM, signals.EXIT_SIGINT
SAMPLE_PROMPT_TOKENS = 32
SAMPLE_TOKENS = 96
PROFILED_STEPS = range(10, 13)


class SegmentFlags(Protocol):
    """The flags of `liquidnet train` that hold for one segment of a run alone."""

    @property
    def backend(self) -> str: ...
    @property
    def checkpoint_format(self) -> CheckpointFormat: ...
    @property
    def micro_batch_size(self) -> int | None: ...
    @property
    def profile(self) -> bool: ...
    @property
    def resume(self) -> bool: ...
    @property
    def stop_at(self) -> int | None: ...


class Trainer:
    """One segment of a run: from a checkpoint, or from the start, to the end, to --stop-at, or to a signal.

    Args:
        flags: of the command.
        data: the opened data.
        run: the locked RUN directory.
        settings: of the run, resolved.
        engine: of the backend, with the initial weights.
    """

    def __init__(self, flags: SegmentFlags, data: Dataset, run: RunDir, settings: Settings, engine: Engine[Any]):
        self.flags, self.data, self.run, self.settings, self.engine = flags, data, run, settings, engine
        self.context, self.first_process = engine.context, engine.context.rank == 0
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=not self.first_process)
        self.checkpoint_manager = make_checkpoint_manager(flags.checkpoint_format, run, engine, settings.execution.keep)
        self.step = self.samples_consumed = self.tokens = 0
        self.best: BestCheckpoint | None = None

    def train(self, initial: Checkpoint | None) -> int:
        """Train from the newest checkpoint, else from the weights of `initial`, else from the start; the exit code."""
        training, execution, flags = self.settings.training, self.settings.execution, self.flags
        self._restore(initial)
        last = training.steps if flags.stop_at is None else min(training.steps, flags.stop_at)
        todo = f"steps {self.step} to {last} of {training.steps}"
        if self.step >= last:
            todo = (
                f"at step {self.step} of {training.steps} already, nothing to do without a larger --steps or --stop-at"
            )
        self._say(
            f"{flags.backend}: {todo}, {training.batch_size} x {training.seq_len} tokens each, "
            f"{training.compute_dtype}, {self.engine.layout()}"
        )
        metrics = self.run.metrics_writer(self.step) if self.first_process else nullcontext(lambda line: None)
        with metrics as self.write, signals.collected() as caught, self._bar(last) as self.advance:
            while self.step < last and not self.context.any(bool(caught) or self.run.is_lost()):
                self._train_step()
                is_best = self.best is not None and self.best["step"] == self.step
                if self.step % execution.checkpoint_every == 0 or is_best:
                    self._save()
                self.checkpoint_manager.poll()
            with self.context.raise_together():
                self.run.require_held()
            if self.step != self.saved:
                self._save()
            self.checkpoint_manager.finish()
            # Each process may have got another one; the first of these that any has got is the reason for all.
            order = (*signals.TERMINATING, signal.SIGINT)
            code = self._finish(next((number for number in order if self.context.any(number in caught)), None))
            # torchrun ends whoever is left once one has gone: nobody goes before all of this is done.
            self.context.any(False)
        return code

    def _finish(self, stopped_by: signal.Signals | None) -> int:
        with self.context.raise_together():
            curve = self._draw() if self.first_process else ""
        if stopped_by is not None:
            self._say(f"liquidnet: stopped by {stopped_by.name} at step {self.step}; add --resume to carry on")
            return EXIT_SIGINT if stopped_by == signal.SIGINT else EXIT_SIGTERM
        self._say(f"reached step {self.step} of {self.settings.training.steps}{curve}")
        return 0

    def _draw(self) -> str:
        """Draw loss.png; where it is. The run is complete without it, whatever keeps it from being drawn."""
        self.run.require_held()
        picture = self.run.path / "loss.png"
        try:
            plot_loss(self.run.metrics(), picture)
        except Exception as error:  # of matplotlib, of its fonts and files, of the disk
            why = f"{type(error).__name__}: {first_line(error)}"
            self._say(f"the loss curve could not be drawn ({why}); `liquidnet plot {self.run.path}` draws it")
            return ""
        return f"; the loss curve is in {picture}"

    def _restore(self, initial: Checkpoint | None) -> None:
        with self.context.raise_together():
            # Where each has a part of the model, none needs to hold all of it to read shards.
            readers = (self.context.rank, self.context.size) if self.context.sharded else None
            own = self.run.newest_checkpoint(readers, OWN_FORMAT.get(self.engine.name, "dcp"))
            newest = own
            if own is None and initial is not None and self.settings.decay_from is not None:
                # All of it is carried on, as from a checkpoint of this run; which has none yet that is the best.
                newest = replace(initial, state={**initial.state, "best": None})
            in_shards = newest is not None and not newest.parameters
            if newest is not None:
                self._require_same_run(newest)
                if not in_shards:
                    self.engine.load(newest.parameters, newest.moments, newest.state["step"])
                self.engine.load_extra_state(newest.state)
                self.engine.load_states(newest.states)
                self._restore_counters(newest)
            elif self.flags.resume:
                self._say(f"{self.run.path} holds no checkpoint: a new run")
            if newest is None and initial is not None:
                self.engine.load(initial.parameters, {}, 0)
        if in_shards:
            with self.context.raise_together():
                self.engine.load_shards(self.run.checkpoint_path(self.step), self.step)
        with self.context.raise_together():
            if self.first_process:
                self.run.write_settings(self.settings)
                self.run.cut_metrics(self.step)
        if own is None and initial is not None:
            # From here on --resume finds these weights, whatever becomes of where they were taken from.
            self._save()
            self.checkpoint_manager.finish()
        self.first = self.saved = self.step

    def _train_step(self) -> None:
        training, started = self.settings.training, time.perf_counter()
        batch = next_batch(self.data, self.samples_consumed, training, self.context.shard)
        batch = with_side_inputs(batch, self.settings.model, training, self.samples_consumed, self.context.shard)
        lr = learning_rate(self.step, training)
        try:
            with self._profiler():
                loss, norm = self.engine.train_step(batch, lr)
        except ValueError as error:
            first, count = self.samples_consumed, training.batch_size
            raise ValueError(f"step {self.step + 1}, samples {first} to {first + count - 1}: {error}") from error
        if not (np.isfinite(loss) and np.isfinite(norm)):
            self.checkpoint_manager.finish()
            # All processes have the same numbers; one message will do.
            self.context.exit_unless_first(1)
            raise FloatingPointError(self._not_finite(loss, norm))
        self.step += 1
        self.samples_consumed += training.batch_size
        tokens = training.batch_size * training.seq_len
        self.tokens += tokens
        rate = tokens / (time.perf_counter() - started)
        line: MetricsLine = {
            "step": self.step,
            "loss": loss,
            "tokens": self.tokens,
            "lr": lr,
            "grad_norm": norm,
            "tokens_per_second": round(rate, 1),
            "backend": self.engine.name,
            "processes": self.context.size,
        }
        self.write(line)
        self.advance(loss, rate)
        if self.step % self.settings.execution.eval_every == 0 or self.step == training.steps:
            self._evaluate()

    def _evaluate(self) -> None:
        training, most = self.settings.training, self.settings.execution.eval_windows
        # No more at a time than a device takes in a step: it may have memory for that alone.
        parts = self.context.shard.rows * self.context.local_row_shards
        rows = self.flags.micro_batch_size or -(-training.batch_size // parts)
        if training.stream:
            batches = validation_stream(self.data, rows * training.seq_len, most * training.seq_len)
        else:
            batches = validation_batches(self.data, training.seq_len, rows * parts, most)
        nats = mean_loss(self.engine, batches, carry=training.stream)
        bits = self.data.nats_to_bits_per_byte(nats)
        if self.best is None or nats < self.best["val_loss"]:
            self.best = {"step": self.step, "val_loss": nats}
        sampler = self.engine.sampler()
        if not self.first_process:
            return
        prompt, text = self._sample(sampler)
        self.write({"step": self.step, "val_loss": nats, "val_bpb": bits, "sample": prompt + text})
        self._say(
            f"step {self.step}: validation loss {nats:.4f}, {bits:.4f} bits a byte; sample: {prompt!r} -> {text!r}"
        )

    def _sample(self, sampler: Step) -> tuple[str, str]:
        """A prompt from the validation text, another at each step, and how the model goes on."""
        tokenizer = parse_tokenizer(self.data.tokenizer)
        start = 997 * self.step % max(len(self.data.val) - SAMPLE_PROMPT_TOKENS, 1)
        prompt = np.asarray(self.data.val[start : start + SAMPLE_PROMPT_TOKENS], np.int64)
        sampling = Sampling(temperature=0.8, top_p=0.95, seed=self.settings.training.seed)
        session = Session(sampler, tokenizer)
        session.pending = prompt.tolist()
        return tokenizer.decode(prompt), "".join(session.write(sampling, SAMPLE_TOKENS))

    def _save(self) -> None:
        state: TrainerState = {
            "step": self.step,
            "samples_consumed": self.samples_consumed,
            "tokens": self.tokens,
            "seed": self.settings.training.seed,
            "training": asdict(self.settings.training),
            "data": self.settings.data,
            "best": self.best,
            "backend": self.engine.name,
            "method": self.engine.method,
            "environment": self._environment(),
            **self.engine.extra_state(),
        }
        self.checkpoint_manager.save(self.settings.model, state, self.data.tokenizer)
        self.saved = self.step

    def _require_same_run(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        if checkpoint.config != self.settings.model or checkpoint.tokenizer != self.data.tokenizer:
            raise ValueError(
                f"the newest checkpoint in {self.run.path} belongs to another model or tokenizer than the run; "
                "name another --out"
            )
        if state["seed"] != self.settings.training.seed or state.get("data", self.settings.data) != self.settings.data:
            raise ValueError(
                f"the newest checkpoint in {self.run.path} was trained on other data or with another seed; "
                "resume with those, or name another --out"
            )
        if checkpoint.parameters and not checkpoint.moments:
            raise ValueError(
                f"the newest checkpoint in {self.run.path} has no optimizer state; start with --init-from it"
            )
        if state["step"] > self.settings.training.steps:
            raise ValueError(
                f"the run is at step {state['step']}, beyond its schedule of {self.settings.training.steps} steps; "
                "raise --steps"
            )
        rows = None if checkpoint.states is None else checkpoint.states.shape[1]
        streams = self.settings.training.stream and state["step"] > 0
        if rows != (self.settings.training.batch_size if streams else None):
            raise ValueError(
                f"the newest checkpoint in {self.run.path} has the states of {rows or 'no'} rows, and the run "
                f"{f'streams {self.settings.training.batch_size}' if streams else 'does not stream'}; start anew"
            )

    def _restore_counters(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        self.step, self.samples_consumed, self.tokens = state["step"], state["samples_consumed"], state["tokens"]
        self.best = state.get("best")
        if "training" in state:
            self._say_if_the_rate_jumps(training_from_json(state["training"]))
        if state.get("backend") == self.engine.name:
            # Checkpoints without these entries are older than compiled steps, several processes, kernels for a CPU.
            before = {"compile": False, "layout": "1 process", "products": "torch.mm", "numba": "none"}
            now, then = self._environment(), {**before, **(state.get("environment") or {})}
            changed = [f"{name} {then.get(name)} -> {now[name]}" for name in now if then.get(name) != now[name]]
            if changed:
                self._say(f"resuming will not repeat the same bits, since these changed: {', '.join(changed)}")

    def _say_if_the_rate_jumps(self, before: TrainingConfig) -> None:
        """Where the last step had another rate than it has by the schedule now: in a stable part it has the same."""
        now, last = self.settings.training, self.step - 1
        names = ("steps", "schedule", "decay_steps", "decay_shape")
        changed = [
            f"{x} {getattr(before, x)} -> {getattr(now, x)}" for x in names if getattr(before, x) != getattr(now, x)
        ]
        if changed and 0 < self.step < now.steps and learning_rate(last, before) != learning_rate(last, now):
            self._say(f"the learning rate jumps, since the schedule changed: {', '.join(changed)}")

    def _environment(self) -> dict[str, str | int | bool]:
        # Another processor may take other vector instructions, and give other bits.
        return {**self.engine.environment(), "remat": self.settings.execution.remat, "processor": processor()}

    def _not_finite(self, loss: float, norm: float) -> str:
        first, count = self.samples_consumed, self.settings.training.batch_size
        # In JAX a method that finds no states cannot say so itself.
        settle = ", or leave out --method parallel" if self.settings.execution.method == "parallel" else ""
        return (
            f"loss {loss}, gradient norm {norm} at step {self.step + 1}, samples {first} to {first + count - 1}: "
            f"stopped; {self.run.last_good()}; lower --lr or --grad-clip and --resume{settle}"
        )

    @contextmanager
    def _profiler(self) -> Iterator[None]:
        """Record a few steps of the segment, past compilation, on request."""
        wanted = self.flags.profile and self.first_process and self.step - self.first in PROFILED_STEPS
        with self.engine.profile(self.run.path / "profile" / f"step_{self.step + 1:08d}") if wanted else nullcontext():
            yield

    @contextmanager
    def _bar(self, last: int) -> Iterator[Callable[[float, float], None]]:
        """A progress bar on a terminal; elsewhere a line now and then."""
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[status]}"))
        plain = not (self.console.is_terminal and self.first_process)
        bar = Progress(*columns, TimeRemainingColumn(), console=self.console, disable=plain)
        task = bar.add_task("train", total=last, completed=self.step, status="")
        every = max(1, (last - self.step) // 20)

        def advance(loss: float, rate: float) -> None:
            status = f"loss {loss:.4f}  {rate:,.0f} tokens/s"
            bar.update(task, completed=self.step, status=status)
            if bar.disable and (self.step % every == 0 or self.step == last):
                self._say(f"step {self.step}/{last}  {status}")

        with bar:
            yield advance

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False)
