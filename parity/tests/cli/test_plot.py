"""`liquidnet plot`: each picture as PNG and SVG, the same bytes twice, letters that stay letters, one-line refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from spec import LiquidNetConfig, LiquidSSMConfig, initial_parameters
from spec.checkpoint.format import Checkpoint, read_checkpoint, write_checkpoint
from spec.data import open_data
from tools.cli.main import main
from tools.plot import compute_half_lives, half_lives, loss
from tools.plot.loss import plot_loss
from tools.training.run_dir import RunDir

LIQUID = LiquidNetConfig(vocab_size=257, d_model=8, d_ff=12, n_layers=2, max_seq_len=16)
SSM = LiquidSSMConfig(257, d_model=8, d_ff=12, n_layers=2, max_seq_len=16, d_state=4, d_tau=4, state="diagonal")


def line(step: int, backend: str, processes: int = 1) -> dict[str, object]:
    return {"step": step, "loss": 6.0 / step, "lr": 0.001 * step, "backend": backend, "processes": processes}


WEIGHTS = ("initial weights, seed 4", "after 1,234 steps")
METRICS = [
    *(line(step, "torch") for step in (1, 2, 3)),
    {"step": 3, "val_loss": 2.0, "val_bpb": 3.0, "sample": "a"},
    *(line(step, "jax", 2) for step in (4, 5)),
]


@pytest.fixture(scope="module", params=[LIQUID, SSM], ids=["liquidnet", "liquid_ssm"])
def run(request, small_data, tmp_path_factory) -> Path:
    """A run as it would have been left, of each family."""
    out = tmp_path_factory.mktemp("run") / "run"
    random = np.random.default_rng(0)
    parameters = {
        path: (array + 0.2 * random.standard_normal(array.shape)).astype(np.float32)
        for path, array in initial_parameters(request.param, 4).items()
    }
    state = {"step": 1234, "samples_consumed": 9, "tokens": 99, "seed": 4}
    checkpoint = Checkpoint(request.param, parameters, {}, state, open_data(small_data).tokenizer)
    write_checkpoint(out / "checkpoints" / "step_00001234", checkpoint)
    (out / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in METRICS))
    return out


def letters(svg: Path) -> str:
    return "\n".join(re.findall(r"<(?:text|tspan)[^>]*>([^<]+)<", svg.read_text()))


def command(what: str, data: Path) -> tuple[str, ...]:
    more = {"loss": (), "half-lives": ("--data", str(data))}
    return ("--what", what, *more.get(what, ("--data", str(data), "--windows", "5", "--seq-len", "40")))


@pytest.mark.parametrize(
    "what, shown",
    [
        ("loss", ["optimizer step", "loss (nats a token)", "learning rate", "torch → jax x 2", "validation"]),
        ("half-lives", ["half-life (tokens)", "layer", *WEIGHTS, "on text", "alone"]),
        ("reach", ["distance", "nats", *WEIGHTS, "5 windows", "window, 16 tokens"]),
    ],
)  # fmt: skip
def test_each_picture_is_written_in_both_formats(run, small_data, tmp_path, capsys, what, shown):
    for name in ("a.svg", "b.svg", "a.png", "b.PNG"):
        main(["plot", str(run), *command(what, small_data), "--out", str(tmp_path / name)])
        out, err = capsys.readouterr()
        assert out == f"{tmp_path / name}\n" and err == ("measuring the reach ...\n" if what == "reach" else "")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.PNG").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert all(text in letters(tmp_path / "a.svg") for text in shown), letters(tmp_path / "a.svg")
    assert "date" not in (tmp_path / "a.svg").read_text()


def test_without_a_place_the_picture_goes_where_its_numbers_are(run, small_data, capsys):
    for what in ("loss", "half-lives", "reach"):
        main(["plot", str(run), *command(what, small_data)])
        assert capsys.readouterr().out == f"{run / what}.png\n"
        assert (run / f"{what}.png").is_file()
    step = run / "checkpoints" / "step_00001234"
    before = sorted(path.name for path in step.iterdir())
    main(["plot", str(step), "--what", "half-lives"])
    assert capsys.readouterr().out == f"{step}-half-lives.png\n"
    assert sorted(path.name for path in step.iterdir()) == before


def test_a_reference_is_drawn_behind(run, tmp_path):
    main(["plot", str(run), "--reference", str(run), "--out", str(tmp_path / "both.svg")])
    assert "training, another run" in letters(tmp_path / "both.svg")


def test_the_trainers_picture_needs_no_lines(tmp_path):
    plot_loss([], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_refused_in_one_line(run, small_data, tmp_path, refused):
    reach = ("plot", str(run), "--what", "reach", "--data", str(small_data))
    for arguments, message in (
        (("plot", str(run), "--out", "loss.pdf"), "--out loss.pdf must end in .png or .svg"),
        (("plot", str(run), "--what", "reach"), "name prepared data with --data"),
        (("plot", str(run), "--windows", "3"), "--windows does nothing for --what loss"),
        ((*reach, "--reference", str(run)), "--reference does nothing for --what reach"),
        ((*reach, "--windows", "0"), "windows must be an integer of at least 1, got 0"),
        ((*reach, "--seq-len", "1"), "seq_len must be an integer of at least 2, got 1"),
        ((*reach, "--seq-len", "1000000"), "shorten --seq-len"),
        (("plot", str(tmp_path), "--what", "loss"), "holds no metrics.jsonl of a run"),
        (("plot", str(tmp_path / "none"), "--what", "half-lives"), "does not exist"),
    ):
        assert message in refused(*arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tokenizer", ["bpe:300", "bpe:257"])
def test_other_tokens_are_refused(run, tmp_path, refused, capsys, tokenizer):
    """Of as many, too: the same ids would mean other bytes."""
    text, data = tmp_path / "text", tmp_path / "data"
    text.write_text("The fox ran home to the den. " * 400)
    main(["prepare", "--text", str(text), "--tokenizer", tokenizer, "--out", str(data)])
    capsys.readouterr()
    assert "have different tokenizers" in refused("plot", str(run), "--what", "half-lives", "--data", str(data))
    assert "have different tokenizers" in refused("evaluate", "--checkpoint", str(run), "--data", str(data))


def drawn(monkeypatch, module):
    """The figures that are not written."""
    figures = []
    monkeypatch.setattr(module, "write_picture", lambda figure, target: figures.append(figure))
    return figures


def test_axes_say_what_they_show(run, tmp_path, monkeypatch):
    figures = drawn(monkeypatch, loss)
    loss.plot_loss(RunDir(run).metrics(), tmp_path / "a.png")
    above, below = figures[0].axes
    assert above.get_ylabel() == "loss (nats a token)" and below.get_xlabel() == "optimizer step"
    # A learning rate is shown from zero.
    assert below.get_ylabel() == "learning rate" and below.get_ylim()[0] == 0.0


def test_every_half_life_and_the_window_lie_in_the_picture(run, tmp_path, monkeypatch):
    figures, checkpoint = drawn(monkeypatch, half_lives), read_checkpoint(run)
    half_lives.plot_half_lives(checkpoint, tmp_path / "a.png")
    values = [compute_half_lives.half_lives(arrays, checkpoint.config) for arrays in
              (checkpoint.parameters, initial_parameters(checkpoint.config, checkpoint.state["seed"]))]  # fmt: skip
    low, high = figures[0].axes[0].get_ylim()
    assert low <= np.nanmin(values) and max(np.nanmax(values), 1.5 * checkpoint.config.max_seq_len) <= high
