"""Faults in what a run reads and carries on: shares, lanes, states from step to step, micro-batches."""

from parity.suite.mutants.mutant import Mutant

ORDER = ("parity/tests/training/test_stream_order.py",)
CARRIED = {
    name: ("parity/tests/training/test_stream.py", "-k", f"{name} and takes_the_steps") for name in ("torch", "jax")
}
FINITE = {name: ("parity/tests/training/test_stream.py", "-k", f"{name} and not_finite") for name in ("torch", "jax")}
RESUMED = {name: ("parity/tests/training/test_stream.py", "-k", f"{name} and resumes") for name in ("torch", "jax")}
MICRO = {
    name: ("parity/tests/training/test_stream.py", "-k", f"{name} and micro_batches_are") for name in ("torch", "jax")
}
PIECES = ("parity/tests/training/test_stream.py", "-k", "torch and pieces")
VALIDATION = ("parity/tests/training/test_trainer.py", "-k", "validation")

STREAMS = (
    Mutant(
        "streams: lanes are not cleared where they start",
        "spec/data.py",
        "window == 0 or data.train[starts - 1] == data.end_of_text_id",
        "data.train[starts - 1] == data.end_of_text_id",
        ORDER,
    ),
    Mutant(
        "streams: an end of text at the border of two windows clears nothing",
        "spec/data.py",
        "window == 0 or data.train[starts - 1] == data.end_of_text_id",
        "window == 0",
        ORDER,
    ),
    Mutant(
        "streams: the lanes of every epoch start alike",
        "spec/data.py",
        'stream(seed, f"lanes, epoch {epoch}")',
        'stream(seed, "lanes, epoch 0")',
        ORDER,
    ),
    Mutant(
        "streams: each lane starts a window after the one before",
        "spec/data.py",
        "(lanes * windows + window) * seq_len",
        "(lanes + window) * seq_len",
        ORDER,
    ),
    Mutant(
        "streams: a share's rows are cut twice",
        "spec/data.py",
        "== data.end_of_text_id\n    return batch.part(share.of_all_rows())",
        "== data.end_of_text_id\n    return batch.part(share)",
        ORDER,
    ),
    Mutant(
        "streams: every process reads the rows of the first",
        "spec/data.py",
        "np.arange(batch_size)[share.of_rows(batch_size)]",
        "np.arange(batch_size)[Share(0, share.rows).of_rows(batch_size)]",
        ORDER,
    ),
    Mutant(
        "the shares of windows are dealt out from the last",
        "spec/data.py",
        "np.arange(samples_consumed, samples_consumed + batch_size)[share.",
        "np.arange(samples_consumed, samples_consumed + batch_size)[Share(share.rows - 1 - share.row, share.rows).",
        ORDER,
    ),
    Mutant(
        "processes that share a row have the same stretch of time",
        "spec/data.py",
        "share.of_columns(self.tokens.shape[1])",
        "Share(columns=share.columns).of_columns(self.tokens.shape[1])",
        ORDER,
    ),
    Mutant(
        "streams: an end of text at the border of two pieces of validation text clears nothing",
        "spec/data.py",
        "        batch.resets[:, 0] = low > 0 and data.val[low - 1] == data.end_of_text_id\n",
        "",
        ORDER,
    ),
    Mutant(
        "torch: a step starts from zero instead of the carried states",
        "torch_impl/training/engine.py",
        "self._loss(**to_device(part, self.device), states=state)",
        "self._loss(**to_device(part, self.device), states=None)",
        CARRIED["torch"],
    ),
    Mutant(
        "jax: a step starts from zero instead of the carried states",
        "jax_impl/training/step.py",
        '.loss(**{**batch, "noise": noise}, states=states)',
        '.loss(**{**batch, "noise": noise}, states=None)',
        CARRIED["jax"],
    ),
    Mutant(
        "torch: gradients go back into the step before",
        "torch_impl/training/engine.py",
        "[*last_states, last.detach()]",
        "[*last_states, last]",
        CARRIED["torch"],
    ),
    Mutant(
        "torch: a step that is not finite leaves its states",
        "torch_impl/training/engine.py",
        "            loss, norm, states = self._gradients(batch)\n",
        "            loss, norm, states = self._gradients(batch)\n"
        "            self.states = states if self.training.stream else None\n",
        FINITE["torch"],
    ),
    Mutant(
        "jax: a step that is not finite leaves its states",
        "jax_impl/training/step.py",
        "return *kept, loss, norm",
        "return *kept[:2], made[2], loss, norm",
        FINITE["jax"],
    ),
    Mutant(
        "torch: a resumed stream forgets its states",
        "torch_impl/training/engine.py",
        "self.states = None if states is None else from_numpy(states[:, rows]).to(self.device)",
        "self.states = None",
        RESUMED["torch"],
    ),
    Mutant(
        "jax: a resumed stream forgets its states",
        "jax_impl/training/engine.py",
        "self.states = placed(array, self.world.sharding(None, ROWS))",
        "self.states = placed(np.zeros_like(array), self.world.sharding(None, ROWS))",
        RESUMED["jax"],
    ),
    Mutant(
        "torch: micro-batches weigh alike, whatever labels they count",
        "torch_impl/training/engine.py",
        "mean * (_counted(part) / counted)",
        "mean / len(parts)",
        MICRO["torch"],
    ),
    Mutant(
        "jax: micro-batches weigh alike, whatever labels they count",
        "jax_impl/training/step.py",
        "return mean * (_counted(batch).astype(mean.dtype) / counted), last",
        'return mean * (batch["labels"].size / counted), last',
        MICRO["jax"],
    ),
    Mutant(
        "evaluation of a stream forgets its state between pieces",
        "tools/training/evaluate.py",
        "states = last if carry else None",
        "states = None",
        PIECES,
    ),
    Mutant(
        "evaluation of a stream counts its labels once a process",
        "tools/training/evaluate.py",
        "times = share.rows if carry else 1",
        "times = 1",
        VALIDATION,
    ),
    Mutant(
        "a process without a validation row counts the one it fills up with",
        "tools/training/evaluate.py",
        "np.full_like(batch.labels[:1], IGNORED_LABEL)",
        "batch.labels[:1]",
        VALIDATION,
    ),
)
