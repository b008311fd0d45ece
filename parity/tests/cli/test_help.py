"""What the command line says: what it can do, what it does not understand, and nothing that a file could not hold."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys

import pytest

from parity.proof.environment import ROOT
from parity.suite.support.ui import wandering
from spec.checkpoint.files import require_file
from spec.checkpoint.format import write_checkpoint
from spec.data import open_data
from tools.cli import backends, errors
from tools.cli.commands import COMMANDS, GROUPS, show_overview
from tools.cli.main import main, parse
from tools.cli.progress import progress, track, working
from tools.plot.command import Plot

LIQUIDNET = (sys.executable, "-c", "from tools.cli.main import main\nmain()")
# In place of a package: as if it were not installed.
ABSENT = 'raise ModuleNotFoundError(f"No module named {__name__!r}", name=__name__)\n'


def told(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """A command that is run as from a shell, nothing of which is a terminal."""
    given = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "timeout": 120, **options}
    return subprocess.run([*LIQUIDNET, *map(str, arguments)], **given)


@pytest.fixture
def decoys(tmp_path):
    """A working directory that has packages of our names, which end whatever imports them."""
    for name in ("tools", "spec", "parity"):
        (tmp_path / "work" / name).mkdir(parents=True)
        (tmp_path / "work" / name / "__init__.py").write_text(f"raise SystemExit('not ours: {name}')\n")
    return tmp_path / "work"


@pytest.mark.parametrize("program", ["torch_impl.train", "jax_impl.train", "liquidnet"])
def test_packages_of_the_working_directory_are_not_taken_for_ours(program, decoys):
    if program != "liquidnet" and program.partition("_")[0] not in backends.installed():
        pytest.skip(f"{program} needs its framework")
    # As pip installs it: what is beside a script comes first, not the working directory.
    script = decoys.parent / "liquidnet"
    script.write_text("from tools.cli.main import main\nmain()\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    options = {"cwd": decoys, "env": environment, "capture_output": True, "text": True, "timeout": 120}
    ended = subprocess.run([sys.executable, "-c", "import spec"], **options)
    assert ended.returncode == 1 and ended.stderr == "not ours: spec\n"
    command = [str(script), "train"] if program == "liquidnet" else ["-m", program]
    ended = subprocess.run([sys.executable, *command, "--help"], **options)
    assert ended.returncode == 0 and "usage: liquidnet train" in ended.stdout, ended.stderr


def test_a_program_that_imports_a_backend_keeps_its_path(tmp_path):
    backend = backends.default()
    (tmp_path / "program.py").write_text(
        f"import sys\nbefore = [*sys.path]\nimport {backend}_impl\nassert sys.path == before\n"
    )
    # A package of the user's whose __init__ imports ours, before Python has found the module to run.
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text(f"import {backend}_impl\n")
    (package / "main.py").write_text("import program\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for command in (["program.py"], ["-m", "program"], ["-m", "package.main"]):
        subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, check=True, timeout=120)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_the_overview_names_every_command_with_an_example(arguments, capsys):
    main(arguments)
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        at = next(i for i, line in enumerate(lines) if line.split()[:1] == [name])
        assert command.summary in lines[at] and lines[at + 1].strip() == command.example
    titles = [lines.index(title) for title in GROUPS]
    assert titles == sorted(titles)


def test_the_overview_is_no_wider_than_a_terminal(capsys):
    show_overview()
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_is_understood(name, capsys):
    program, *arguments = shlex.split(COMMANDS[name].example)
    assert (program, arguments[0]) == ("liquidnet", name)
    module, _, kind = COMMANDS[name].target.partition(":")
    assert type(parse(arguments)) is getattr(importlib.import_module(module), kind)
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0 and f"Example: {COMMANDS[name].example}" in " ".join(capsys.readouterr().out.split())


def test_a_run_is_not_written_into_its_data(refused, small_data):
    before = sorted(small_data.iterdir())
    assert "is the data's own directory; name another --out" in refused(
        "train", backends.default(), "--data", str(small_data), "--out", f"{small_data}/../{small_data.name}"
    )
    assert sorted(small_data.iterdir()) == before


def test_what_is_named_in_place_of_another_is_said(refused, small_data, tmp_path):
    message = refused("generate", "--checkpoint", str(small_data))
    assert f"{small_data} is prepared text, not a run; name what --out of `liquidnet train` was" in message
    with pytest.raises(ValueError, match=r"meta\.json holds no prepared data .*; name what"):
        open_data(small_data / "meta.json")
    with pytest.raises(ValueError, match="is a directory, no regular file; name a file"):
        require_file(small_data)
    assert "unknown suffix .msgpak of" in refused("convert", "run", str(tmp_path / "run.msgpak"))
    assert "run does not exist" in refused("convert", str(tmp_path / "run"), str(tmp_path / "run-0.5"))


def test_a_misspelt_flag_of_an_example_is_found(refused):
    assert "did you mean '--stories'?" in refused(*shlex.split("prepare --storys 20000 --out data"))


def test_the_version(capsys):
    main(["--version"])
    assert re.fullmatch(r"liquidnet (\d+\.\d+\.\d+\S*|not installed)\n", capsys.readouterr().out)


def test_the_overview_starts_at_once():
    program = "import sys\nfrom tools.cli.main import main\nmain([])\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
    loaded = loaded.splitlines()[-1].split()
    assert (
        not {"torch", "jax", "numpy", "tyro", "matplotlib", "tools.training.train"} & {*loaded}
        and "tools.cli.commands" in loaded
    )


@pytest.mark.parametrize(
    "line, message",
    [
        ("trian", "there is no command 'trian'"),
        ("train", r"still needed: {torch,jax} (Backend to train with), --data PATH (Directory"),
        ("train torhc --data a --out b", "backend takes one of torch, jax, got 'torhc'; did you mean 'torch'?"),
        ("train torch --data a --out b --steps many", "--steps takes a whole number, got 'many'"),
        ("train torch --data a --out b --lr fast", "--lr takes a number, got 'fast'"),
        ("train torch --data a --out b --parallel dpd", "--parallel takes one of ddp, fsdp, got 'dpd'"),
        ("prepare --out", "--out needs a value"),
        ("prepare --stories 3 --outt data --out b", "there is no flag --outt; did you mean '--out'?"),
        ("compare a b c", "one argument too many: 'c'"),
        ("generate tools", "one argument too many: 'tools'; did you mean --checkpoint tools?"),
        ("generate --checkpoint run --prompt Once upon a time", "'upon'; put quotes around a text with spaces"),
        ("generate --checkpoint a --backend numpy", ", got 'numpy'"),
        ("ui", "still needed: --checkpoint [PATH [PATH ...]] (Runs, whose"),
        ("bench --rounds 1e400", "--rounds takes a whole number, got '1e400'"),
        ("bench --rounds nan", "--rounds takes a whole number, got 'nan'"),
        ("doctor --jsonn a/very/long/path/that/no/narrow/box/would/hold.json", "there is no flag --jsonn; did you"),
    ],
)
@pytest.mark.parametrize("columns", ["20", "200"])
def test_what_is_not_understood_is_named(line, message, columns, refused, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    given = refused(*line.split())
    assert message in given and "None" not in given and len(given) < 250 and os.environ["COLUMNS"] == columns
    assert line.startswith("trian") or given.endswith(f"; see liquidnet {line.split()[0]} --help\n")


def test_words_of_tyro_that_are_not_known_are_kept():
    assert errors.short("╭─ New words ─╮\n│ of tyro     │\n╰───╯", "liquidnet plot", [], Plot) == "New words of tyro"


@pytest.mark.parametrize("name", COMMANDS)
def test_no_escape_code_leaves_a_pipe(name):
    for arguments in ((name, "--help"), (name, "--no-such-flag")):
        ended = told(*arguments, env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "20"})
        assert not set("\x1b\r") & {*ended.stdout, *ended.stderr}, arguments
        assert ended.returncode == (2 if arguments[1] == "--no-such-flag" else 0), ended.stderr


def test_commands_at_work_write_no_escape_code(small_data, tmp_path):
    run, size = tmp_path / "run", ("--d-model", 16, "--d-ff", 24, "--n-layers", 1, "--steps", 2, "--eval-windows", 2)
    from tools.cli import backends

    for arguments in (
        (),
        ("--version",),
        ("prepare", "--stories", 20, "--out", tmp_path / "data"),
        ("train", backends.default(), "--data", small_data, "--out", run, *size),
        ("evaluate", "--checkpoint", run, "--data", small_data, "--windows", 3),
        ("convert", run, tmp_path / "copy"),
        ("bench", "--model"),
    ):
        ended = told(*arguments)
        assert ended.returncode == 0, ended.stderr
        # What the model writes is its own affair.
        shown = "".join(line for line in (ended.stderr + ended.stdout).split("\n") if "sample: " not in line)
        assert not set("\x1b\r") & {*shown}, arguments


@pytest.mark.parametrize(
    "package, extra", {"torch": "torch", "jax": "jax", "hypothesis": "parity", "gradio": "ui"}.items()
)
def test_a_missing_package_is_named_with_its_remedy(package, extra, small_data, tmp_path):
    (tmp_path / f"{package}.py").write_text(ABSENT)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), str(ROOT)])
    model = tmp_path / "model"
    write_checkpoint(model, wandering())
    commands = {"parity": ("parity",), "ui": ("ui", "--checkpoint", model)}
    command = commands.get(extra, ("train", package, "--data", small_data, "--out", tmp_path / "run"))
    ended = told(*command, env={**os.environ, "PYTHONPATH": path})
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
    assert f"pip install 'liquidnet-dual[{extra}]'" in ended.stderr


def test_a_closed_or_full_stdout(small_data):
    shell = " ".join(map(shlex.quote, LIQUIDNET))
    for line, code, message in (
        (f"{shell} prepare --help | head -1", 0, ""),
        (f"set -o pipefail; {shell} prepare --help | true", None, ""),
        (f"{shell} bench --model > /dev/full", 2, "No space left on device"),
        (f"{shell} >&- 2>&- <&-", 0, ""),
        (f"{shell} train >&- <&-", 2, "still needed"),
    ):
        ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
        assert code in (None, ended.returncode) and message in ended.stderr, line
        assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr, line
        assert ended.stderr.count("\n") <= 1, line


def test_text_that_the_terminal_cannot_show(tmp_path):
    ended = told("plot", tmp_path / "né", env={**os.environ, "PYTHONIOENCODING": "ascii:strict"})
    assert ended.returncode == 2 and "n\\xe9 holds no metrics.jsonl" in ended.stderr


@pytest.mark.parametrize("command", ["doctor", "compare none", "bench", "plan"])
def test_a_result_that_cannot_be_written_is_refused_before_the_work(command, refused, tmp_path):
    (tmp_path / "file").touch()
    message = refused(*command.split(), "--json", str(tmp_path / "file" / "result.json"))
    assert "--json needs a directory that can be written" in message and "name a directory" in message
    assert "is a directory; name a file in it" in refused(*command.split(), "--json", str(tmp_path))


def test_a_refusal_of_the_system_names_path_and_remedy(refused, tmp_path, monkeypatch):
    from tools.plot import command as plot

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / ".unfinished-12-loss.png"))

    monkeypatch.setattr(plot.Plot, "run", refuse)
    assert refused("plot", "run") == (
        f"liquidnet: error: {tmp_path}: Permission denied; choose a place that you may read and write\n"
    )


def test_lack_of_memory_has_one_message(refused, monkeypatch):
    from tools.plot import command as plot

    for error in (
        MemoryError(),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
        RuntimeError("can't allocate memory"),
    ):
        monkeypatch.setattr(plot.Plot, "run", lambda self, error=error: (_ for _ in ()).throw(error))
        assert "not enough memory; make the batch" in refused("plot", "run")
    monkeypatch.setattr(plot.Plot, "run", lambda self: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["plot", "run"])


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr("tools.cli.progress._SECONDS_BETWEEN_LINES", 0.0)
    assert list(track(range(4), "counting")) == [0, 1, 2, 3]
    with progress("reading", 10, done=5) as bar:
        bar.expect(20)
        bar.advance(5)
    with working("compiling") as now:
        now("linking")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["counting ...", "counting: 25%, 0 s left"] and lines[-2:] == [
        "reading ...",
        "reading: 50%, 0 s left",
    ]
