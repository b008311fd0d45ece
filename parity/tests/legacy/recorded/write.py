"""How the files beside this one were written: with commit 2aa1efa, and never with a later one.

They are there to show that later sources read what that commit wrote and go on from it to the same bits. Written anew
with the sources that are tested, they would show nothing; so this program refuses any other commit:

    git worktree add ../before 2aa1efa
    export PYTHONPATH=../before OMP_NUM_THREADS=1 JAX_PLATFORMS=cpu
    python parity/tests/legacy/recorded/write.py files OUT      # runs, checkpoints, sessions and expected.json, in OUT
    python parity/tests/legacy/recorded/write.py bits    # this environment's bits, into bits.json beside this file

`files` has been done, once. `bits` may be run on other machines, and with other versions of the libraries: it carries
on the files as they are here, and makes `test_resume_legacy.py` demand those bits in that environment too.
Orbax writes the path of OUT into its files, so choose one that says nothing.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file

import spec
from parity.environment import commit
from parity.perturbed import FACTOR, RUNS, Rounding, estimate
from spec import sampling
from spec.checkpoint import Checkpoint
from spec.config import TrainingConfig, training_from_json
from spec.data import IGNORED_LABEL, Batch, Dataset, next_batch, open_data, validation_batches, validation_stream
from spec.noise import with_noise
from spec.optimizer import MOMENTS, decayed_paths
from spec.reference import adamw_step, clip_by_global_norm, forward, loss_and_gradients
from spec.sampling import Sampling
from spec.schedule import learning_rate
from tools import convert
from tools.chat import Dialogue
from tools.cli import main
from tools.session import open_model

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import test_resume_legacy as shared


class Talk(NamedTuple):
    """A session: whose model it is, which backend began it, the seed of its draws, and what matrices are rounded to."""

    run: str
    backend: str
    seed: int
    weights: Any = "float32"

    @property
    def arguments(self) -> list[str]:
        flags = [text for name, value in DRAWN.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        return [*flags, "--seed", str(self.seed), "--weights", self.weights]


COMMIT = "2aa1efa5e562"
STOP, STEPS = 3, 6
# A large rate: after three steps no output that begins at zero hides what is before it.
LEARN = f"--batch-size 4 --seq-len 16 --steps {STEPS} --lr 0.03 --grad-clip 0.5 --eval-windows 4"
SSM = "--preset ssm-nano --d-model 8 --d-ff 16 --n-layers 1 --d-state 6 --exploration-rate 20"
RUNS_WRITTEN = {
    "torch_liquidnet": ("data", "--d-model 16 --d-ff 16 --n-layers 2"),
    "torch_stream": ("data", "--d-model 8 --d-ff 16 --n-layers 1 --stream --checkpoint-format dcp"),
    "torch_liquid_ssm": ("data", f"{SSM} --state dense"),
    "torch_float16": ("data", "--d-model 8 --d-ff 16 --n-layers 1 --dtype float16"),
    "jax_liquidnet": ("data_bpe", "--d-model 16 --d-ff 16 --n-layers 2"),
    "jax_stream": ("data", "--d-model 8 --d-ff 16 --n-layers 1 --stream --checkpoint-format orbax"),
    "jax_liquid_ssm": ("data", f"{SSM} --state diagonal"),
}
CONVERTED = {
    "files/stream.pt": ("torch_stream", "pt"),
    "files/stream.msgpack": ("jax_stream", "msgpack"),
    "files/dcp": ("torch_liquid_ssm", "dcp"),
    "files/orbax": ("jax_liquid_ssm", "orbax"),
}
# A low temperature lets small changes of the state be seen; with --top-p the margin below would have no short proof.
DRAWN = {"temperature": 0.1, "top_p": 1.0, "max_tokens": 24}
TALKS = {
    "liquidnet": Talk("torch_liquidnet", "torch", 16),
    "liquidnet_bpe": Talk("jax_liquidnet", "jax", 19),
    "liquid_ssm_int8": Talk("torch_liquid_ssm", "torch", 2, "int8"),
}
FIRST, LATER = "Once upon a time", [" and then", ""]
PRODUCT_UNITS = {"float32": None, "float16": 2.0**-11}
# So many times its bound the reference must be off where a part of what was stored is lost.
LEAST_SEEN = 10.0
# So many times more than rounding may must a logit change before another token is drawn.
LEAST_MARGIN = 10.0


def command(*arguments: str) -> None:
    """Run a command of `liquidnet`; raises SystemExit where it fails."""
    try:
        main(list(arguments))
    except SystemExit as stop:
        if stop.code:
            raise


def write_files(out: Path) -> None:
    """Data, runs, converted checkpoints, sessions, and expected.json."""
    command("prepare", "--stories", "10", "--out", str(out / "data"))
    command("prepare", "--stories", "10", "--tokenizer", "bpe:300", "--out", str(out / "data_bpe"))
    for run, (data, flags) in RUNS_WRITTEN.items():
        where = ["--data", str(out / data), "--out", str(out / "runs" / run)]
        leg = ["--stop-at", str(STOP), "--eval-every", str(STOP), "--keep", "1"]
        command("train", run.partition("_")[0], *where, *flags.split(), *LEARN.split(), *leg)
        for name in (".lock", "loss.png"):
            (out / "runs" / run / name).unlink()
    (out / "files").mkdir()
    for target, (run, form) in CONVERTED.items():
        command("convert", str(out / "runs" / run), str(out / target), "--format", form)
    (out / "sessions").mkdir()
    for name, talk in TALKS.items():
        checkpoint = ["--checkpoint", str(out / "runs" / talk.run), "--backend", talk.backend]
        shared.talk([*checkpoint, *talk.arguments], [FIRST, f"/save {out / 'sessions' / name}.safetensors"])
    told = {
        "commit": COMMIT,
        "checkpoints": {name: found_in(out, name) for name in shared.CHECKPOINTS},
        "runs": {run: continued(out, run) for run in RUNS_WRITTEN},
        "texts": {name: said(out, name) for name in TALKS},
    }
    (out / "expected.json").write_text(json.dumps(told, indent=1) + "\n")


def found_in(out: Path, name: str) -> dict[str, Any]:
    """What other readers than ours find in a checkpoint."""
    run = CONVERTED[name][0] if name in CONVERTED else Path(name).name
    (source,) = (out / "runs" / run / "checkpoints").iterdir()
    path = out / name if name in CONVERTED else source
    state, config = (json.loads((source / f"{part}.json").read_text()) for part in ("state", "config"))
    tensors = {tensor: shared.digest(array) for tensor, array in sorted(read(path).items())}
    if name in CONVERTED:
        assert tensors == {tensor: shared.digest(array) for tensor, array in read(source).items()}
    kept = {key: state[key] for key in (*shared.COUNTERS, "training", "data", "best", "grad_scaler") if key in state}
    return {"data": RUNS_WRITTEN[run][0], "state": kept, "config": config, "tensors": tensors}


def read(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint by kind and path, read by whoever's format it is."""
    if path.suffix in (".pt", ".msgpack"):
        return flat(torch_tree(path) if path.suffix == ".pt" else flax_tree(path))
    if (path / "model.safetensors").is_file():
        return shared.tensors_of(path)
    states = load_file(path / "states.safetensors") if (path / "states.safetensors").is_file() else {}
    if (path / "orbax").is_dir():
        from orbax.checkpoint import PyTreeCheckpointer

        restored = PyTreeCheckpointer().restore((path / "orbax").absolute())
        return {**{name: np.asarray(array) for name, array in restored.items()}, **states}
    # Of a single process: every tensor is whole.
    (shard,) = path.glob("shard-*.safetensors")
    return {**load_file(shard), **states}


def torch_tree(path: Path) -> dict[str, Any]:
    import torch

    return torch.load(path, weights_only=True)


def flax_tree(path: Path) -> dict[str, Any]:
    import flax.serialization

    return flax.serialization.msgpack_restore(path.read_bytes())


def flat(tree: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a native file, by kind and path."""
    groups = {kind: tree[kind] for kind in ("parameters", *MOMENTS)}
    found = {f"{kind}.{path}": np.asarray(array) for kind, arrays in groups.items() for path, array in arrays.items()}
    return found | ({"states": np.asarray(tree["states"])} if "states" in tree else {})


def continued(out: Path, run: str) -> dict[str, Any]:
    """How a run goes on: its tokens, and where the float64 reference comes to, with the bound of float32 or float16."""
    data_name = RUNS_WRITTEN[run][0]
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(out / "runs" / run, Path(scratch) / run))
        leg = shared.go_on(run.partition("_")[0], copy, out / data_name)
    assert len(leg.batches) == STEPS - STOP
    data, checkpoint = open_data(out / data_name), convert.read(out / "runs" / run)
    training = training_from_json(checkpoint.state["training"])
    truth = reference(checkpoint, data, training, lambda x: np.asarray(x, np.float64))
    changes: dict[str, list[np.ndarray]] = {name: [] for name in truth}
    for seed in range(RUNS):
        lift = Rounding(seed, 2.0**-24, PRODUCT_UNITS[training.compute_dtype])
        for name, numbers in reference(checkpoint, data, training, lift).items():
            changes[name].append(np.abs(numbers - truth[name]))
    # Each number is stored in float32: where no run has moved it, it is still off by its own rounding.
    bound = {
        name: FACTOR * np.maximum.accumulate(np.maximum(np.max(changes[name], axis=0), 2.0**-24 * truth[name]))
        for name in truth
    }
    numbers = {"loss": [line["loss"] for line in leg.steps], "grad_norm": [line["grad_norm"] for line in leg.steps]}
    numbers["val_loss"] = [leg.evaluation["val_loss"]]
    units = {name: float((np.abs(numbers[name] - truth[name]) / bound[name]).max()) for name in truth}
    print(run, "is off by so many bounds:", units)
    assert max(units.values()) <= 1.0
    seen = {}
    for part, damaged in damages(checkpoint, training).items():
        with without_noise(part == "noise"):
            wrong = reference(*damaged[:1], data, *damaged[1:], lambda x: np.asarray(x, np.float64))
        seen[part] = max(float((np.abs(wrong[name] - truth[name]) / bound[name]).max()) for name in truth)
    print(run, "would be off, without:", seen)
    assert min(seen.values()) >= LEAST_SEEN
    prompt = leg.evaluation["sample"][:8]
    assert prompt.isascii()
    return {
        "data": data_name,
        "batches": leg.batches,
        "counters": {name: leg.state[name] for name in shared.COUNTERS},
        "lr": [line["lr"] for line in leg.steps],
        "prompt": prompt,
        **{name: [truth[name].tolist(), bound[name].tolist()] for name in truth},
        "bounds_off_without": seen,
    }


def damages(checkpoint: Checkpoint, training: TrainingConfig) -> dict[str, tuple[Checkpoint, TrainingConfig]]:
    """The checkpoint with a part of it lost, by the name of the part."""
    first, second = (checkpoint.moments[kind] for kind in MOMENTS)
    zeros = {path: np.zeros_like(array) for path, array in first.items()}
    parts = {
        "first_moment": replace(checkpoint, moments=dict(zip(MOMENTS, (zeros, second), strict=True))),
        "second_moment": replace(checkpoint, moments=dict(zip(MOMENTS, (first, zeros), strict=True))),
        "step": replace(checkpoint, state={**checkpoint.state, "step": checkpoint.state["step"] - 1}),
        "cursor": replace(checkpoint, state={**checkpoint.state, "samples_consumed": 0}),
    }
    if checkpoint.states is not None:
        parts["states"] = replace(checkpoint, states=None)
    if getattr(checkpoint.config, "exploration_rate", 0.0):
        parts["noise"] = checkpoint
    return {part: (damaged, training) for part, damaged in parts.items()}


@contextmanager
def without_noise(silent: bool) -> Iterator[None]:
    """Let the reference train without exploration noise."""
    with pytest.MonkeyPatch.context() as patch:
        if silent:
            patch.setitem(globals(), "with_noise", lambda batch, *rest: batch)
        yield


def reference(
    checkpoint: Checkpoint, data: Dataset, training: TrainingConfig, lift: Callable[[np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    """Loss and gradient norm of each step from the checkpoint to the end, and the validation loss there.

    Args:
        checkpoint: to go on from.
        data: trained on.
        training: the run.
        lift: makes an array one of the kind that is computed with.
    """
    t, model, decayed = training, checkpoint.config, decayed_paths(checkpoint.config)
    params = {path: lift(x) for path, x in checkpoint.parameters.items()}
    moments = [{path: lift(x) for path, x in checkpoint.moments[kind].items()} for kind in MOMENTS]
    states = None if checkpoint.states is None else lift(checkpoint.states)
    step, samples = checkpoint.state["step"], checkpoint.state["samples_consumed"]
    told: dict[str, list[float]] = {"loss": [], "grad_norm": []}
    for _ in range(STEPS - STOP):
        batch = with_noise(next_batch(data, samples, t), model, t, samples)
        of_ssm = {} if batch.noise is None else {"noise": lift(batch.noise.transpose(2, 0, 1, 3))}
        inputs = states, batch.resets
        loss, gradients, _ = loss_and_gradients(params, model, batch.tokens, batch.labels, *inputs, **of_ssm)
        if t.stream:
            states = forward(params, model, batch.tokens, *inputs, **of_ssm)[1]
        gradients, norm = clip_by_global_norm(gradients, t.grad_clip)
        params, *moments = adamw_step(params, gradients, *moments, step + 1, learning_rate(step, t), t, decayed)
        step, samples = step + 1, samples + t.batch_size
        told["loss"].append(float(loss))
        told["grad_norm"].append(float(norm))
    told["val_loss"] = [validated(params, checkpoint, validation(data, t), t.stream)]
    return {name: np.array(numbers) for name, numbers in told.items()}


def validation(data: Dataset, t: TrainingConfig) -> Iterator[Batch]:
    """What a run is evaluated on."""
    most = int(LEARN.split()[-1])
    if t.stream:
        return validation_stream(data, t.batch_size * t.seq_len, most * t.seq_len)
    return validation_batches(data, t.seq_len, t.batch_size, most)


def validated(params: dict[str, Any], checkpoint: Checkpoint, batches: Iterator[Batch], carry: bool) -> float:
    """Mean nats a counted label."""
    nats, count, states = 0.0, 0, None
    for batch in batches:
        inputs = params, checkpoint.config, batch.tokens
        loss, *_ = loss_and_gradients(*inputs, batch.labels, states, batch.resets)
        if carry:
            states = forward(*inputs, states, batch.resets)[1]
        counted = int((batch.labels != IGNORED_LABEL).sum())
        nats, count = nats + float(loss) * counted, count + counted
    return nats / count


def said(out: Path, name: str) -> dict[str, Any]:
    """What a session goes on to say, the same in both backends, and the state that it comes to, within a bound."""
    talk, session = TALKS[name], out / "sessions" / f"{name}.safetensors"
    text, margin, states, bound = certain(out, talk, session)
    print(name, "draws with a margin of", margin)
    assert margin >= LEAST_MARGIN
    forgotten, _, lost, _ = went_on(out, talk, session, forgotten=True)
    seen = float(np.abs(lost - states).max() / bound)
    print(name, "would be off, without its state:", seen)
    assert forgotten != text and seen >= LEAST_SEEN
    told = {"checkpoint": f"runs/{talk.run}", "session": f"sessions/{name}.safetensors", "lines": LATER}
    after = []
    with tempfile.TemporaryDirectory() as scratch:
        for backend in shared.BACKENDS:
            saved = Path(scratch) / backend
            checkpoint = ["--checkpoint", str(out / "runs" / talk.run), "--backend", backend]
            answers = shared.talk([*checkpoint, *talk.arguments], [f"/load {session}", *LATER, f"/save {saved}"])
            assert answers.startswith(text)
            after.append(shared.session_in(saved)[0])
            units = float(np.abs(shared.session_in(saved)[1] - states).max() / bound)
            print(name, "is off by so many bounds:", units)
            assert units <= 1.0
    assert after[0] == after[1]
    found, kept = shared.session_in(session)
    told |= {"arguments": talk.arguments, "answers": text, "found": {**found, "states": shared.digest(kept)}}
    return {**told, "after": after[0], "states": [states.tolist(), bound], "margin": margin, "off_without": seen}


def certain(out: Path, talk: Talk, session: Path) -> tuple[str, float, np.ndarray, float]:
    """What the float64 reference goes on to say, how surely, the last states, and how far float32 may lie from them.

    A token is drawn where the cumulative distribution F passes a uniform. Where each logit is off by d at most, the
    odds F / (1 - F) are off by exp(2 d / T) at most, T the temperature, and so F by tanh(d / 2T) <= d / 2T. The margin
    is 2 T |F - uniform| / d, the least of any draw and any token.
    """
    text, distance, states, tokens_bt = went_on(out, talk, session)
    checkpoint = open_model(out / "runs" / talk.run, "torch", talk.weights).checkpoint
    start = load_file(session)["states"]

    def compute(lift: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
        lifted = {path: lift(array) for path, array in checkpoint.parameters.items()}
        logits_btv, last = forward(lifted, checkpoint.config, tokens_bt, lift(start))
        return {"logits": logits_btv, "states": last}

    bound = estimate(compute, compute(lambda x: np.asarray(x, np.float64)), 2.0**-24)
    return text, distance / float(bound["logits"].max()), states, float(bound["states"].max())


def went_on(out: Path, talk: Talk, session: Path, forgotten: bool = False) -> tuple[str, float, np.ndarray, np.ndarray]:
    """A session as the float64 reference goes on with it.

    Args:
        out: where the runs are.
        talk: the session.
        session: its file.
        forgotten: the state is set to zero first.

    Returns:
        the answers, the least 2 T |F - uniform| of any draw and token, the last states, the tokens absorbed.
    """
    model = open_model(out / "runs" / talk.run, "torch", talk.weights)
    config, parameters = model.checkpoint.config, model.checkpoint.parameters
    absorbed: list[np.ndarray] = []
    distances: list[float] = []

    def step(tokens_bt: np.ndarray, states: Any) -> tuple[np.ndarray, Any]:
        states = None if forgotten and not absorbed else states
        absorbed.append(tokens_bt)
        logits_btv, states = forward(parameters, config, tokens_bt, states)
        return logits_btv[:, -1], states

    def draw(logits_bv: np.ndarray, how: Sampling, uniforms_b: np.ndarray) -> np.ndarray:
        weight_v = np.exp((logits_bv[0] - logits_bv.max()) / how.temperature)
        cumulative_v = np.cumsum(weight_v) / weight_v.sum()
        distances.append(float(np.abs(cumulative_v[:-1] - uniforms_b[0]).min() * 2 * how.temperature))
        return usual(logits_bv, how, uniforms_b)

    usual, how = sampling.sample, Sampling(DRAWN["temperature"], 0, DRAWN["top_p"], talk.seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "sample", draw)
        dialogue = Dialogue(replace(model, step=step), how, DRAWN["max_tokens"], "{}", ())
        answers = ["".join(dialogue.answer(line)) + "\n" for line in (f"/load {session}", *LATER)]
    last, last_position = dialogue.session.states, dialogue.session.position
    # No end of text was drawn, which would have been taken back.
    assert sum(tokens.shape[1] for tokens in absorbed) == last_position - shared.session_in(session)[0]["position"]
    return "".join(answers), min(distances), last, np.concatenate(absorbed, axis=1)


def write_bits() -> None:
    """This environment's bits, one entry a backend, into bits.json."""
    path = HERE / "bits.json"
    entries = json.loads(path.read_text()) if path.is_file() else []
    for backend in shared.BACKENDS:
        here = shared.environment(backend)
        entry = {"environment": here, "runs": {}, "texts": {}}
        with tempfile.TemporaryDirectory() as scratch:
            legacy = Path(shutil.copytree(HERE, Path(scratch) / "legacy"))
            for run in (run for run, by in shared.RESUMED if by == backend):
                copy = Path(shutil.copytree(legacy / "runs" / run, Path(scratch) / run))
                leg = shared.go_on(backend, copy, legacy / RUNS_WRITTEN[run][0])
                entry["runs"][f"{run}/{backend}"] = {**leg.numbers(), "bits": leg.bits}
            for name in (name for name, by in shared.TEXTS if by == backend):
                saved = Path(scratch) / name
                shared.talk(*shared.talk_of(name, backend, legacy, saved))
                entry["texts"][f"{name}/{backend}"] = shared.digest(shared.session_in(saved)[1])
        entries = [other for other in entries if other["environment"] != here] + [entry]
    entries.sort(key=lambda entry: json.dumps(entry["environment"], sort_keys=True))
    path.write_text(json.dumps(entries, indent=1) + "\n")


if __name__ == "__main__":
    found = commit(Path(spec.__file__).resolve().parents[1])
    if found != COMMIT:
        sys.exit(f"the sources that PYTHONPATH names are commit {found}, not {COMMIT}; see the top of {__file__}")
    if sys.argv[1:2] == ["files"] and len(sys.argv) == 3:
        write_files(Path(sys.argv[2]).absolute())
    elif sys.argv[1:] == ["bits"]:
        write_bits()
    else:
        sys.exit(__doc__)
