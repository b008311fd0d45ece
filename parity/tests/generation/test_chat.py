"""`liquidnet chat`, over a pipe and at a terminal: turns, commands, and what a slip of the hand does."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from parity.proof.problems.cases import perturbed_parameters
from parity.suite.support.fixtures import HEED_SIGINT
from parity.tests.generation.test_session import BYTES, CONFIG
from spec.checkpoint.format import Checkpoint, write_checkpoint
from tools.cli import backends
from tools.cli.main import main
from tools.generation import chat
from tools.generation.chat import CHAT_STOP, CHAT_TURN, Chat, Dialogue
from tools.generation.session import open_model

HERE = backends.installed()
FLAGS = ("--max-tokens", "12", "--seed", "4")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("chat") / "checkpoint"
    write_checkpoint(path, Checkpoint(CONFIG, perturbed_parameters(CONFIG, 3), tokenizer=BYTES.to_json()))
    return path


def command(checkpoint, *flags: object) -> list[str]:
    program = HEED_SIGINT + "from tools.cli.main import main\nmain()"
    return [sys.executable, "-c", program, "chat", "--checkpoint", str(checkpoint), *map(str, flags)]


def piped(checkpoint, text: str | bytes, *flags: object) -> subprocess.CompletedProcess[bytes]:
    content = text.encode() if isinstance(text, str) else text
    return subprocess.run(command(checkpoint, *FLAGS, *flags), input=content, capture_output=True, timeout=120)


@pytest.fixture
def dialogue(checkpoint):
    return Dialogue(open_model(checkpoint), Chat(checkpoint, seed=4).sampling(), 12, "{}", ())


def said(dialogue, line: str) -> str:
    return "".join(dialogue.answer(line))


@pytest.mark.parametrize("name", HERE)
def test_over_a_pipe_each_line_is_a_turn(checkpoint, tmp_path, name):
    """The state is kept between two calls, and nothing but text comes out."""
    whole = piped(checkpoint, "Hello\n, you\n\n", "--backend", name)
    assert whole.returncode == 0, whole.stderr
    assert b"\x1b" not in whole.stdout and b"> " not in whole.stdout
    state = tmp_path / "state"
    first = piped(checkpoint, f"Hello\n/save {state}\n", "--backend", name)
    second = piped(checkpoint, ", you\n\n", "--backend", HERE[-1], "--state", state)
    assert first.returncode == second.returncode == 0, second.stderr
    told = b"the state after 16 tokens is in " + str(state).encode() + b"\n"
    assert first.stdout.replace(told, b"") + second.stdout == whole.stdout
    # Three replies of twelve tokens, a line break after each.
    assert len(whole.stdout) >= 36


def test_a_mistake_over_a_pipe_ends_it(checkpoint, monkeypatch, capsys):
    """One as a process of its own, the others in this one: a start costs two seconds."""
    ended = piped(checkpoint, "/sav x\n")
    assert ended.returncode == 2 and b"did you mean '/save'" in ended.stderr
    for text, message in (
        ("/sav x\n", "choose one of /help, /reset, /save, /load, /set, /quit; did you mean '/save'"),
        ("/save\n", "/save needs a file"),
        ("/save x\n", "there is no text yet"),
        ("/load nothing\n", "nothing cannot be read"),
        ("/set top_k 3 4\n", "top_k takes one value, got 3 4"),
        ("/set seed 1.5\n", "seed must be a whole number, got '1.5'"),
        ("/set temperature hot\n", "temperature must be a number, got 'hot'"),
        ("/set temperature -1\n", "temperature must be in [0, 1000], got -1.0"),
        (b"caf\xe9\n", "the text is not"),
    ):
        content = text if isinstance(text, bytes) else text.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
        error = ended_with(2, capsys, "chat", "--checkpoint", str(checkpoint), *FLAGS)
        assert message in error and error.count("\n") == 1, error
    assert "has no place for the line" in ended_with(2, capsys, "chat", "--checkpoint", str(checkpoint), "--turn", "Q:")


def ended_with(code: int, capsys, *arguments: str) -> str:
    """What a command that ends with this code says to stderr."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == code
    return capsys.readouterr().err


def test_commands(dialogue, tmp_path):
    assert said(dialogue, "") == ""
    hello = said(dialogue, "Hello")
    assert hello and dialogue.session.position == 16
    assert said(dialogue, "/reset") == "forgotten" and dialogue.session.is_empty
    assert said(dialogue, "Hello") == hello
    assert "/reset" in said(dialogue, "/help")
    assert said(dialogue, "/set top-k") == "top_k 0"
    assert said(dialogue, "/set") == "temperature 0.8  top_k 0  top_p 0.95  seed 4  max_tokens 12"
    assert said(dialogue, "/set seed 9") == "seed 9" and said(dialogue, "/set max_tokens 3") == "max_tokens 3"
    said(dialogue, "/reset")
    other = said(dialogue, "Hello")
    assert dialogue.session.position == 7 and not hello.startswith(other)
    said(dialogue, "/reset")
    said(dialogue, "//slash")
    assert dialogue.session.position == len("/slash") + 2
    said(dialogue, "/reset")
    said(dialogue, "//see //all")
    assert dialogue.session.position == len("/see //all") + 2
    with pytest.raises(EOFError):
        said(dialogue, "/quit")


def test_in_chat_a_line_is_a_turn(checkpoint):
    """What is absorbed is the template with the line in it, whatever the line holds."""
    model = open_model(checkpoint)
    dialogue = Dialogue(model, Chat(checkpoint).sampling(), 1, CHAT_TURN, CHAT_STOP)
    appended = []
    dialogue.session.append = appended.append
    dialogue.session.pending = [65]
    said(dialogue, "a {} b")
    assert appended == ["\nUser: a {} b\nAssistant:"]


@pytest.mark.parametrize("way", ["pipe", "terminal"])
def test_a_line_is_appended_as_it_is(dialogue, monkeypatch, capsys, way):
    """Spaces and tabs at its ends are text; what is absorbed tells."""
    lines, absorbed, step = [" x", "\tand  ", " "], [], dialogue.session._step
    dialogue.session._step = lambda tokens, states: (absorbed.extend(tokens[0].tolist()), step(tokens, states))[1]
    dialogue.max_tokens = 1
    if way == "pipe":
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        chat._over_pipe(dialogue)
    else:
        typed = iter(lines)
        monkeypatch.setattr("builtins.input", lambda _: next(typed, None) or fail(EOFError))
        chat._at_terminal(dialogue)
    capsys.readouterr()
    # The model's byte follows each line, and is absorbed with the next one.
    session, wanted = dialogue.session, b""
    given = [*absorbed, *session.pending]
    for line in lines:
        wanted += line.encode() + bytes(given[len(wanted) + len(line) :][:1])
    assert bytes(given) == wanted


def test_an_empty_line_before_any_text_asks_for_one(dialogue, monkeypatch, capsys):
    lines = ["", "a"]
    monkeypatch.setattr("builtins.input", lambda _: lines.pop(0) if lines else fail(EOFError))
    chat._at_terminal(dialogue)
    assert "type its beginning" in capsys.readouterr().err and not dialogue.session.is_empty


def fail(error: type[Exception]) -> str:
    raise error


class Terminal:
    """A chat on a pseudo-terminal."""

    def __init__(self, *flags):
        master, slave = pty.openpty()
        self.master, self.seen = master, ""
        self.process = subprocess.Popen(
            command(*flags), stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**os.environ, "TERM": "dumb"},
        )  # fmt: skip
        os.close(slave)

    def until(self, text: str) -> str:
        """What came since the last call, up to `text`."""
        limit = time.monotonic() + 60
        while text not in self.seen:
            assert time.monotonic() < limit, f"no {text!r} in {self.seen!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 4096).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


def test_at_a_terminal(checkpoint):
    """Greeting, a reply, a mistake that ends nothing, Ctrl-C in a reply of a million tokens, Ctrl-D."""
    terminal = Terminal(checkpoint, "--max-tokens", "12", "--temperature", "0")
    assert "Ctrl-D ends" in terminal.until("> ")
    terminal.type("Hello\n")
    terminal.until("> ")
    terminal.type("/lod x\n")
    assert "did you mean '/load'" in re.sub(r"\s+", " ", terminal.until("> "))
    terminal.type("/set max_tokens 1000000\n")
    terminal.until("> ")
    terminal.type("on and on\n")
    time.sleep(1.0)
    os.killpg(terminal.process.pid, signal.SIGINT)
    assert "Traceback" not in terminal.until("Ctrl-D ends)")
    terminal.until("> ")
    terminal.type("/set max_tokens\n")
    assert "max_tokens 1000000" in terminal.until("> ")
    terminal.type("\x04")
    assert terminal.process.wait(60) == 0
    os.close(terminal.master)
