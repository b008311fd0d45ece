"""The command line as a person meets it: what works, and one clear line with exit code 2 for what does not."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spec.checkpoint.format import list_checkpoints, read_checkpoint
from tools.cli import backends
from tools.cli.main import main
from tools.training.run_dir import RunDir

TRAIN = ("--d-model", "16", "--d-ff", "24", "--n-layers", "2", "--eval-windows", "4", "--batch-size", "2")


class Bomb:
    """Unpickling this would make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def refused(capsys):
    """Run a command that must be refused; returns its one line."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        message = captured.err.strip().splitlines()[-1]
        assert stop.value.code == 2, message
        assert message.startswith("liquidnet: error: ") and captured.err.count("\n") <= 3, captured.err
        assert "Traceback" not in captured.err
        return message

    return run


def train(backend: str, data: Path, out: Path, *more: object) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", backend, "--data", str(data), "--out", str(out), *TRAIN, *map(str, more)])
    assert stop.value.code == 0


@pytest.fixture(scope="module")
def backend():
    return backends.default()


@pytest.fixture(scope="module")
def run(backend, small_data, tmp_path_factory):
    """A short finished run."""
    out = tmp_path_factory.mktemp("run") / "run"
    train(backend, small_data, out, "--steps", 6, "--checkpoint-every", 3, "--eval-every", 3)
    return out


@pytest.fixture
def damaged(run, tmp_path):
    """A copy of the run that a test may damage."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_a_run_writes_what_it_promises(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert {"step", "loss", "tokens", "lr", "grad_norm", "tokens_per_second"} <= set(steps[0])
    evaluations = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in evaluations] == [3, 6] and all("val_bpb" in line for line in evaluations)
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in list_checkpoints(run)] == ["step_00000003", "step_00000006"]


def test_evaluate_repeats_the_trainers_figure(run, small_data, capsys, backend):
    main(["evaluate", "--checkpoint", str(run), "--data", str(small_data), "--windows", "4", "--backend", backend])
    told = json.loads(capsys.readouterr().out)
    logged = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert told["step"] == 6 and told["val_loss"] == pytest.approx(logged["val_loss"], rel=1e-6)


def test_evaluate_computes_in_the_dtype_that_the_run_did(small_data, tmp_path, backend, capsys):
    out = tmp_path / "run"
    train(backend, small_data, out, "--steps", 3, "--dtype", "bfloat16")
    capsys.readouterr()
    rows = json.loads((out / "config.json").read_text())["training"]["batch_size"]
    shape = ("--windows", "4", "--batch-size", str(rows))
    main(["evaluate", "--checkpoint", str(out), "--data", str(small_data), *shape, "--backend", backend])
    logged = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    # As many windows at a time as the run took: another number would change the last bits; float32 products more.
    assert json.loads(capsys.readouterr().out)["val_loss"] == pytest.approx(logged["val_loss"], rel=1e-7)


def test_one_seed_writes_one_text_on_both_backends(run, capsys):
    pytest.importorskip("torch", reason="compares both backends")
    pytest.importorskip("jax", reason="compares both backends")
    texts = []
    for name in backends.BACKENDS:
        main(["generate", "--checkpoint", str(run), "--backend", name, "--prompt", "The ", "--max-tokens", "40"])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and texts[0].startswith("The ") and len(texts[0]) > 20


def test_a_run_is_carried_on_by_the_other_backend(small_data, tmp_path):
    pytest.importorskip("torch", reason="hands over between both backends")
    pytest.importorskip("jax", reason="hands over between both backends")
    out = tmp_path / "run"
    train("torch", small_data, out, "--steps", 6, "--stop-at", 3)
    train("jax", small_data, out, "--resume")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["backend"] for line in lines if "loss" in line] == ["torch"] * 3 + ["jax"] * 3


def test_init_from_takes_weights_only(run, small_data, tmp_path, backend):
    train(backend, small_data, tmp_path / "new", "--steps", 1, "--init-from", run)
    fresh, taken = (
        json.loads((path / "metrics.jsonl").read_text().splitlines()[0]) for path in (run, tmp_path / "new")
    )
    assert taken["step"] == 1 and taken["loss"] < fresh["loss"]


def test_a_resumed_run_takes_no_other_weights(refused, run, small_data, tmp_path, backend):
    command = ("train", backend, "--data", small_data, "--out", run, "--resume", "--init-from", tmp_path / "other")
    assert "this run began from fresh weights, not from" in refused(*command)


def test_a_resumed_run_keeps_its_execution_config(small_data, tmp_path, backend):
    out = tmp_path / "run"
    train(backend, small_data, out, "--steps", 6, "--stop-at", 2, "--method", "sequential", "--checkpoint-every", 1)
    with pytest.raises(SystemExit) as stop:
        main(["train", backend, "--data", str(small_data), "--out", str(out), "--resume"])
    assert stop.value.code == 0
    assert [path.name for path in list_checkpoints(out)] == [f"step_{step:08d}" for step in (4, 5, 6)]
    assert read_checkpoint(out).state["method"] == "sequential"


def test_a_run_of_an_earlier_version_keeps_its_execution_config(small_data, tmp_path, backend):
    """It wrote the entry under another name, and with no entry of what came later."""
    out = tmp_path / "run"
    train(backend, small_data, out, "--steps", 6, "--stop-at", 2, "--method", "sequential", "--checkpoint-every", 1)
    path = out / "config.json"
    written = json.loads(path.read_text())
    assert "habits" not in written and written["execution"]["method"] == "sequential"
    old = {name: value for name, value in written.items() if name not in ("execution", "init_from")}
    old["habits"] = {name: value for name, value in written["execution"].items() if name != "compile"}
    path.write_text(json.dumps(old))
    with pytest.raises(SystemExit) as stop:
        main(["train", backend, "--data", str(small_data), "--out", str(out), "--resume"])
    assert stop.value.code == 0 and read_checkpoint(out).state["method"] == "sequential"
    assert [path.name for path in list_checkpoints(out)] == [f"step_{step:08d}" for step in (4, 5, 6)]
    assert json.loads(path.read_text()) == written


def test_what_is_left_of_a_run_is_not_taken_over(refused, damaged, small_data, backend):
    (damaged / "config.json").unlink()
    assert "already holds a run" in refused("train", backend, "--data", small_data, "--out", damaged)
    assert "config.json is damaged" in refused("train", backend, "--data", small_data, "--out", damaged, "--resume")


def test_a_checkpoint_under_another_steps_name_is_refused(refused, damaged, small_data, backend):
    newest = list_checkpoints(damaged)[-1]
    newest.rename(newest.with_name("step_00000007"))
    assert "rename it" in refused("train", backend, "--data", small_data, "--out", damaged, "--resume", "--steps", 9)


def test_unknown_names_get_the_nearest_one(refused, small_data, tmp_path, backend):
    out = tmp_path / "out"
    assert "did you mean 'nano'?" in refused("train", backend, "--preset", "nanno", "--data", small_data, "--out", out)
    message = refused("train", backend, "--data", small_data, "--out", out, "--seq-lenn", 3)
    assert "there is no flag --seq-lenn; did you mean '--seq-len'?; see liquidnet train --help" in message
    assert "there is no command 'trian'; choose one of prepare, train" in refused("trian")
    assert "backend takes one of torch, jax, got 'tensorflow'" in refused(
        "train", "tensorflow", "--data", small_data, "--out", out
    )
    message = refused("train", backend, "--data", small_data, "--out", out, "--method", "chunkd", *TRAIN)
    assert "did you mean 'chunked'?" in message
    message = refused("train", backend, "--data", small_data, "--out", out, "--dtype", "bfloat61")
    assert "did you mean 'bfloat16'?" in message
    assert not (out / "config.json").exists()


def test_values_out_of_range_are_named(refused, small_data, tmp_path, backend):
    command = ("train", backend, "--data", small_data, "--out", tmp_path / "out")
    for flag, value, message in (
        ("--seq-len", 10**7, "sequence length 10000000 needs at least"),
        ("--batch-size", 0, "batch_size must be an integer of at least 1, got 0"),
        ("--batch-size", 10**22, "batch_size must be at most"),
        ("--batch-size", 2**31 - 1, "tokens a step need more than"),
        ("--d-model", 10**9, "make the model or the batch smaller"),
        ("--lr", "nan", "peak_lr must be a number"),
        ("--keep", 0, "keep must be an integer of at least 1"),
        ("--seed", -1, "seed must be an integer of at least 0"),
        ("--stop-at", 0, "stop_at must be an integer of at least 1"),
        ("--total-tokens", "inf", "--total-tokens must be at least"),
    ):
        assert message in refused(*command, flag, value)
    assert not (tmp_path / "out").exists()


def test_missing_or_changed_data_is_refused(refused, small_data, tmp_path, backend):
    assert "prepare" in refused("train", backend, "--data", tmp_path / "none", "--out", tmp_path / "out")
    changed = Path(shutil.copytree(small_data, tmp_path / "changed"))
    content = bytearray((changed / "train.bin").read_bytes())
    content[100] ^= 1
    (changed / "train.bin").write_bytes(content)
    assert "train.bin does not match" in refused("train", backend, "--data", changed, "--out", tmp_path / "out")


def test_a_resumed_run_must_be_the_same_run(refused, run, small_data, tmp_path, backend, capsys):
    main(["prepare", "--stories", "40", "--stories-seed", "9", "--out", str(tmp_path / "other")])
    capsys.readouterr()
    command = ("train", backend, "--out", run, "--resume")
    assert "data differs" in refused(*command, "--data", tmp_path / "other")
    assert "seq_len 64, not 32" in refused(*command, "--data", small_data, "--seq-len", 32)
    assert "this run's model has d_model 16 (not 32); " in refused(*command, "--data", small_data, "--d-model", 32)
    assert "beyond its schedule" in refused(*command, "--data", small_data, "--steps", 2)
    assert "already holds a run" in refused(*command[:-1], "--data", small_data)


def test_damaged_checkpoints_are_refused(refused, damaged, tmp_path):
    newest = list_checkpoints(damaged)[-1]
    weights = newest / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    assert "model.safetensors does not match" in refused("generate", "--checkpoint", damaged)
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "model.safetensors does not match" in refused("convert", newest, tmp_path / "a.pt")
    weights.unlink()
    assert "model.safetensors is missing" in refused("convert", newest, tmp_path / "a.msgpack")
    (newest / "SHA256SUMS").unlink()
    assert "SHA256SUMS is missing" in refused("convert", newest, tmp_path / "a")
    assert not list(tmp_path.glob("a*")) and not list(tmp_path.glob(".unfinished*"))


def test_what_to_take_in_place_of_a_damaged_checkpoint_is_named(refused, damaged, small_data, backend):
    older, newest = list_checkpoints(damaged)
    (newest / "model.safetensors").write_bytes(b"")
    remedy = f"the checkpoint before it is {older}: name that, or remove this one and --resume"
    assert refused("generate", "--checkpoint", damaged).endswith(remedy)
    assert refused("train", backend, "--data", small_data, "--out", damaged, "--resume").endswith(remedy)
    shutil.copytree(newest, newest.with_name("step_99999999"))
    assert refused("generate", "--checkpoint", newest).endswith(remedy)
    (older / "model.safetensors").write_bytes(b"")
    assert "the checkpoint before it" not in refused("generate", "--checkpoint", older)


def test_a_pickle_is_never_run(refused, tmp_path):
    pytest.importorskip("torch", reason=".pt files are PyTorch's")
    for name in ("bomb.pt", "bomb.pth"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "fired")))
        assert "was not loaded" in refused("generate", "--checkpoint", tmp_path / name)
    assert not (tmp_path / "fired").exists()


def test_prompts_and_sampling_values_are_checked(refused, run, backend):
    command = ("generate", "--checkpoint", run, "--backend", backend)
    assert "prompt is empty" in refused(*command, "--prompt", "")
    assert "top_p" in refused(*command, "--top-p", 0)
    assert "temperature" in refused(*command, "--temperature", -1)
    assert "does not exist" in refused("generate", "--checkpoint", run / "nothing")


def test_a_tokenizer_that_cannot_encode_is_refused(refused, tmp_path):
    words = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"<|endoftext|>": 0, "a": 1}, "unk_token": "?"}}
    (tmp_path / "words.json").write_text(
        json.dumps({**words, "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}})
    )
    (tmp_path / "text.txt").write_text("a b c " * 200)
    command = ("prepare", "--text", tmp_path / "text.txt", "--tokenizer", tmp_path / "words.json")
    assert refused(*command, "--out", tmp_path / "data").endswith("or a tokenizer with an unknown token")
    assert {path.name for path in tmp_path.iterdir()} == {"words.json", "text.txt"}


def test_text_that_cannot_be_prepared_leaves_nothing(refused, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1") * 100)
    assert "empty.txt" in refused("prepare", "--text", tmp_path / "empty.txt", "--out", tmp_path / "data")
    assert "UTF-8" in refused("prepare", "--text", tmp_path / "latin.txt", "--out", tmp_path / "data")
    assert {path.name for path in tmp_path.iterdir()} == {"empty.txt", "latin.txt"}


def test_a_full_disk_leaves_no_half_of_a_conversion(run, tmp_path):
    pytest.importorskip("torch", reason=".pt files are PyTorch's")
    program = "import resource, sys\nfrom tools.cli.main import main\n"
    program += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({2**13}, {resource.RLIM_INFINITY}))\nmain(sys.argv[1:])"
    for target in ("a", "a.pt"):
        command = [sys.executable, "-c", program, "convert", str(run), str(tmp_path / target)]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode == 2 and ended.stderr.startswith("liquidnet: error:"), ended.stderr
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_old_checkpoint(damaged, small_data, backend):
    before = [path.name for path in list_checkpoints(damaged)]
    arguments = ["train", backend, "--data", str(small_data), "--out", str(damaged), "--resume", "--steps", "9"]
    program = "import resource, sys\nfrom tools.cli.main import main\n"
    program += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({2**15}, {resource.RLIM_INFINITY}))\nmain(sys.argv[1:])"
    ended = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert ended.returncode == 2 and "liquidnet: error:" in ended.stderr.splitlines()[-1], ended.stderr
    assert [path.name for path in list_checkpoints(damaged)] == before
    assert not list((damaged / "checkpoints").glob(".*"))


def test_two_live_runs_are_kept_off_one_directory(refused, damaged, small_data, backend):
    fcntl = pytest.importorskip("fcntl")  # how earlier versions held the file
    with (damaged / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        message = refused("train", backend, "--data", small_data, "--out", damaged, "--resume")
    assert "in use" in message


def test_a_dead_process_lets_go_of_its_directory(tmp_path):
    """Killed with the lock in its hands, which stays as a file: nobody has to remove it."""
    program = "import sys, time\nfrom pathlib import Path\nfrom tools.training.run_dir import RunDir\n"
    program += "with RunDir(Path(sys.argv[1])).locked():\n    print('held', flush=True)\n    time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="is in use by another live run"), RunDir(tmp_path).locked():
            pass
        holder.kill()
    with RunDir(tmp_path).locked():
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
