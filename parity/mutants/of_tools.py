"""Faults around the model: sampling, checkpoints, conversion, evaluation, the trainer and its cursor."""

from parity.suite.mutants.mutant import Mutant

SAMPLING = ("parity/tests/generation/test_sampling.py", "-k", "filters or interval or sampled_model and torch")
CHECKPOINT = ("parity/tests/checkpoint/test_checkpoint_format.py", "-k", "pack or newest")
CONVERT = ("parity/tests/checkpoint/test_checkpoint_format.py", "-k", "any_format and bfloat16")
MOMENTS = ("parity/tests/training/test_trainer.py", "-k", "moments_keeps")
TRAINER = ("parity/tests/training/test_trainer.py", "-k", "trainer")
HABITS = ("parity/tests/cli/test_cli.py", "-k", "keeps_its_habits or carried_on")
EVALUATE = ("parity/tests/cli/test_cli.py", "-k", "dtype_that_the_run_did")
PREPARE = ("parity/tests/data/test_prepare.py",)

TOOLS = (
    Mutant(
        "the temperature multiplies",
        "spec/sampling.py",
        "below_best / sampling.temperature",
        "below_best * sampling.temperature",
        SAMPLING,
    ),
    Mutant(
        "top-p leaves out the token that crosses it",
        "spec/sampling.py",
        "before = np.cumsum(ranked, axis=-1) - ranked",
        "before = np.cumsum(ranked, axis=-1)",
        SAMPLING,
    ),
    Mutant(
        "a uniform of 0 draws a token of probability 0",
        "spec/sampling.py",
        "below = cumulative <= uniforms_b[:, None]",
        "below = cumulative < uniforms_b[:, None]",
        SAMPLING,
    ),
    Mutant(
        "every token of a text is drawn with one uniform",
        "spec/sampling.py",
        "        position += 1\n",
        "",
        SAMPLING,
    ),
    Mutant(
        "dtype widened on save",
        "spec/checkpoint/tensors.py",
        'np.asarray(arrays[name], order="C")',
        'np.asarray(arrays[name], np.float32, order="C")',
        CHECKPOINT,
    ),
    Mutant(
        "the newest checkpoint is the one written last",
        "spec/checkpoint/format.py",
        'key=lambda path: int(path.name.removeprefix("step_"))',
        "key=lambda path: path.stat().st_mtime_ns",
        CHECKPOINT,
    ),
    Mutant(
        "the moments of AdamW swapped on save",
        "spec/checkpoint/format.py",
        "for name, group in checkpoint.moments.items() for path, array in group.items()}\n    if sharded",
        "for name, group in zip(MOMENTS, map(checkpoint.moments.get, reversed(MOMENTS)))\n"
        "            for path, array in (group or {}).items()}\n    if sharded",
        MOMENTS,
    ),
    Mutant(
        "conversion drops the moments",
        "tools/convert.py",
        "write(self.target, checkpoint, target_format",
        "write(self.target, Checkpoint(checkpoint.config, checkpoint.parameters, {}, checkpoint.state, "
        "checkpoint.tokenizer, checkpoint.states), target_format",
        CONVERT,
    ),
    Mutant(
        "conversion starts the counters anew",
        "tools/convert.py",
        "write(self.target, checkpoint, target_format",
        "write(self.target, Checkpoint(checkpoint.config, checkpoint.parameters, checkpoint.moments, "
        "tokenizer=checkpoint.tokenizer, states=checkpoint.states), target_format",
        CONVERT,
    ),
    Mutant(
        "evaluation computes in float32 whatever the run did",
        "tools/training/evaluate.py",
        "training_from_json(stored) if stored else TrainingConfig(seq_len=checkpoint.config.max_seq_len)",
        "TrainingConfig(seq_len=checkpoint.config.max_seq_len)",
        EVALUATE,
    ),
    Mutant(
        "a short last batch weighs as much as a full one",
        "tools/training/evaluate.py",
        "        nats += mean * counted\n        count += counted\n",
        "        nats += mean\n        count += counted > 0\n",
        TRAINER,
    ),
    Mutant(
        "the schedule runs one step ahead",
        "tools/training/trainer.py",
        "learning_rate(self.step, training)",
        "learning_rate(self.step + 1, training)",
        TRAINER,
    ),
    Mutant(
        "the cursor counts steps, not samples",
        "tools/training/trainer.py",
        "self.samples_consumed += training.batch_size",
        "self.samples_consumed += 1",
        TRAINER,
    ),
    Mutant(
        "the count of tokens counts rows",
        "tools/training/trainer.py",
        "self.tokens += tokens\n",
        "self.tokens += training.batch_size\n",
        TRAINER,
    ),
    Mutant(
        "after a resume the cursor is off by one batch",
        "tools/training/trainer.py",
        'state["step"], state["samples_consumed"], state["tokens"]',
        'state["step"], state["samples_consumed"] + self.settings.training.batch_size, state["tokens"]',
        TRAINER,
    ),
    Mutant(
        "after a resume the tokens are counted from zero",
        "tools/training/trainer.py",
        'state["step"], state["samples_consumed"], state["tokens"]',
        'state["step"], state["samples_consumed"], 0',
        TRAINER,
    ),
    Mutant(
        "a resume takes the weights without the moments",
        "tools/training/trainer.py",
        'self.engine.load(newest.parameters, newest.moments, newest.state["step"])',
        'self.engine.load(newest.parameters, {}, newest.state["step"])',
        TRAINER,
    ),
    Mutant(
        "a resume forgets the best loss so far",
        "tools/training/trainer.py",
        'self.best = state.get("best")',
        "self.best = None",
        TRAINER,
    ),
    Mutant(
        "--init-from takes over the moments too",
        "tools/training/trainer.py",
        "self.engine.load(initial.parameters, {}, 0)",
        'self.engine.load(initial.parameters, initial.moments, initial.state["step"])',
        TRAINER,
    ),
    Mutant(
        "the best checkpoint is dropped with the old ones",
        "tools/training/run_dir.py",
        'if old.name != _name(best.get("step", -1)):',
        "if old.name != _name(-1):",
        TRAINER,
    ),
    Mutant(
        "one checkpoint more than asked for is kept",
        "tools/training/run_dir.py",
        "list_checkpoints(self.path)[:-keep]",
        "list_checkpoints(self.path)[: -keep - 1]",
        HABITS,
    ),
    Mutant(
        "a resume cuts the checkpoint's own step from the metrics",
        "tools/training/run_dir.py",
        'if line["step"] <= step]',
        'if line["step"] < step]',
        HABITS,
    ),
    Mutant(
        "bytes of the text counted as characters",
        "tools/data/prepare.py",
        "self.bytes += len(text.encode())",
        "self.bytes += len(text)",
        PREPARE,
    ),
    Mutant(
        "documents are not ended",
        "tools/data/prepare.py",
        'ids.tobytes() + (self._end if ends else b"")',
        "ids.tobytes()",
        PREPARE,
    ),
)
