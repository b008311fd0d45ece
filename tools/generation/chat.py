"""A text that grows by turns, in the terminal or over a pipe; all that is kept of it is one state."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from spec.checkpoint.quantization import Weights
from spec.config import require_integer, require_known
from spec.parameters import num_parameters
from spec.sampling import Sampling
from tools.cli import backends
from tools.cli.errors import os_error_message
from tools.generation.session import OpenModel, Session, open_model

HELP = """A line of yours is appended to the text as it is (begin it with a space where you want one), and the model
goes on; an empty line lets it go on by itself.
/reset        forget everything
/save FILE    keep the state: some kilobytes, however long the text
/load FILE    go on from a state that was kept, on either backend
/set NAME X   temperature, top_k, top_p, seed or max_tokens; without X: what they are
/quit         end, as Ctrl-D does; Ctrl-C stops a reply
//...         a line that begins with a single /"""
CHAT_TURN = "\nUser: {}\nAssistant:"
CHAT_STOP = ("\nUser:",)


@dataclass(frozen=True)
class Chat:
    """Write a text together with a model, turn by turn; its memory is one state, however long the text.

    Reads lines from the terminal or from a pipe; /help lists what else can be typed. One seed and the same lines write
    the same text on either backend, near-ties aside.
    """

    checkpoint: Path
    """A run (its newest checkpoint), a checkpoint directory, a .pt or a .msgpack file."""
    backend: backends.Backend | None = None
    """Backend to compute with; by default the first one installed."""
    weights: Weights = "float32"
    """Round the matrices to bfloat16, or to int8 with a scale a row, and write with these: less to read a token."""
    mode: Literal["completion", "chat"] = "completion"
    """completion: the model goes on where a line ends; chat: lines are turns of a dialogue, see --turn and --stop."""
    turn: str | None = None
    """How a line becomes text; {} is the line, \\n a line break (default in chat: "\\nUser: {}\\nAssistant:")."""
    stop: tuple[str, ...] | None = None
    """Strings that end a reply and are no part of it (default in chat: "\\nUser:")."""
    state: Path | None = None
    """Go on from a state that /save wrote."""
    max_tokens: int = 200
    """Tokens a reply has at most; an end-of-text token ends it earlier."""
    temperature: float = 0.8
    """Divides the logits; 0 takes the most likely token."""
    top_k: int = 0
    """Keep only the k most likely tokens; 0 keeps all."""
    top_p: float = 0.95
    """Keep the smallest set of most likely tokens that holds this probability."""
    seed: int = 0
    """Seed of the sampling."""

    def run(self) -> None:
        require_integer("--max-tokens", self.max_tokens, 1)
        sampling = self.sampling()
        is_chat = self.mode == "chat"
        turn = _unescaped(self.turn) if self.turn is not None else CHAT_TURN if is_chat else "{}"
        if "{}" not in turn:
            raise ValueError(f"--turn {self.turn!r} has no place for the line; write {{}} there")
        stop = CHAT_STOP if self.stop is None and is_chat else tuple(map(_unescaped, self.stop or ()))
        model = open_model(self.checkpoint, self.backend, self.weights)
        dialogue = Dialogue(model, sampling, self.max_tokens, turn, stop)
        if self.state is not None:
            dialogue.session.load(self.state, model)
        _at_terminal(dialogue) if sys.stdin.isatty() else _over_pipe(dialogue)

    def sampling(self) -> Sampling:
        """How tokens are drawn, until /set; raises ValueError for a value out of range."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.seed)


class Dialogue:
    """What lines do: text to go on from, or commands.

    Args:
        model: that writes.
        sampling: how tokens are drawn, until /set.
        max_tokens: of a reply.
        turn: the text of a line, which takes the place of {}.
        stop: strings that end a reply.
    """

    def __init__(self, model: OpenModel, sampling: Sampling, max_tokens: int, turn: str, stop: tuple[str, ...]):
        self.model, self.sampling, self.max_tokens, self.turn, self.stop = model, sampling, max_tokens, turn, stop
        self.session: Session = model.session()

    def answer(self, line: str) -> Iterator[str]:
        """Pieces of the text that a line leads to: the model's, or what a command says.

        Raises:
            EOFError: the line ends the dialogue.
            ValueError: an unknown command, or a value that cannot be.
            OSError: a file that cannot be read or written.
        """
        if line.startswith("/") and not line.startswith("//"):
            yield self._command(*line[1:].split(maxsplit=1))
            return
        if line:
            self.session.append(self.turn.replace("{}", line.removeprefix("/") if line.startswith("//") else line))
        if not self.session.is_empty:
            yield from self.session.write(self.sampling, self.max_tokens, self.stop)

    def _command(self, name: str = "", argument: str = "") -> str:
        require_known("command", f"/{name}", ("/help", "/reset", "/save", "/load", "/set", "/quit"))
        if name == "quit":
            raise EOFError
        if name == "help":
            return HELP
        if name == "set":
            return self._set(*argument.split())
        if name == "reset":
            self.session.reset()
            return "forgotten"
        if not argument:
            raise ValueError(f"/{name} needs a file; for example /{name} state.safetensors")
        path = Path(argument.strip()).expanduser()
        if name == "save":
            self.session.save(path, self.model)
            return f"the state after {self.session.position:,} tokens is in {path}"
        self.session.load(path, self.model)
        return f"going on after {self.session.position:,} tokens"

    def _set(self, name: str = "", value: str = "", *more: str) -> str:
        known = {setting: getattr(self.sampling, setting) for setting in ("temperature", "top_k", "top_p", "seed")}
        known["max_tokens"] = self.max_tokens
        if name:
            name = name.replace("-", "_")
            require_known("setting", name, known)
        if more:
            raise ValueError(f"{name} takes one value, got {' '.join((value, *more))}")
        if not value:
            return "  ".join(f"{key} {known[key]}" for key in ([name] if name else known))
        try:
            number = type(known[name])(value)
        except ValueError as error:
            raise ValueError(
                f"{name} must be a {'whole ' * isinstance(known[name], int)}number, got {value!r}"
            ) from error
        if name == "max_tokens":
            require_integer(name, number, 1)
            self.max_tokens = number
        else:
            self.sampling = replace(self.sampling, **{name: number})
        return f"{name} {number}"


def _unescaped(text: str) -> str:
    """A shell hands over backslash and n where a line break was meant."""
    return text.replace("\\n", "\n")


def _say(pieces: Iterator[str]) -> None:
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()


def _over_pipe(dialogue: Dialogue) -> None:
    try:
        for line in sys.stdin:
            with contextlib.suppress(EOFError):
                _say(dialogue.answer(line.rstrip("\r\n")))
                sys.stdout.write("\n")
                continue
            return
    except UnicodeDecodeError as error:
        raise ValueError("the text is not UTF-8; convert it first, for example with iconv") from error


def _at_terminal(dialogue: Dialogue) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  history and editing of input()
    console = Console(stderr=True, highlight=False)
    checkpoint = dialogue.model.checkpoint
    console.print(
        f"{num_parameters(checkpoint.config) / 1e6:.1f}M parameters, step {checkpoint.state['step']}, "
        f"{dialogue.model.backend}. Enter alone goes on, /help lists more, Ctrl-C stops a reply, Ctrl-D ends.",
        style="dim",
    )
    while True:
        try:
            line = input("> ")
            if not line and dialogue.session.is_empty:
                console.print("there is no text yet; type its beginning", style="dim")
                continue
            _say(dialogue.answer(line))
            print()
            if dialogue.session.ended:
                console.print("(the text ends here; a line goes on, /reset begins anew)", style="dim")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(Enter goes on, Ctrl-D ends)")
        except (ValueError, OSError) as error:
            message = os_error_message(error) if isinstance(error, OSError) else str(error)
            console.print(message, style="bold red", markup=False)
