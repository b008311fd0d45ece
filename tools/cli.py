"""`liquidnet`: an umbrella over the commands."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import tyro

from tools.bench import Bench
from tools.compare import Compare
from tools.convert import Convert
from tools.doctor import Doctor
from tools.evaluate import Evaluate
from tools.generate import Generate
from tools.parity_report import Parity
from tools.plan import Plan
from tools.plot import Plot
from tools.prepare import Prepare
from tools.train import Train

COMMANDS = {
    "prepare": Prepare,
    "train": Train,
    "evaluate": Evaluate,
    "convert": Convert,
    "compare": Compare,
    "generate": Generate,
    "plot": Plot,
    "parity": Parity,
    "bench": Bench,
    "plan": Plan,
    "doctor": Doctor,
}
DESCRIPTION = """One language model, defined once, implemented in PyTorch and in JAX, and proved equal.

Try:  liquidnet prepare --stories 20000 --out data
      liquidnet train torch --preset nano --data data --out run --stop-at 1000
      liquidnet train jax --data data --out run --resume
      liquidnet generate --checkpoint run --prompt "Once upon a time"
"""
_BOX = re.compile(r"[\u2500-\u257f]+")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a user's mistake ends in one line on stderr and exit code 2, never in a traceback."""
    try:
        _run(arguments)
    except SystemExit as stop:
        _leave(int(stop.code or 0))
        raise
    except BaseException:
        # Nobody expected it. The others must not wait for this process, whose interpreter may not come to its end.
        if any(parallel.has_joined() for parallel in _joined()):
            traceback.print_exc()
            _leave(1)
        raise


def _joined() -> list[Any]:
    """The modules of the backends in use that know of other processes."""
    return [sys.modules[name] for name in ("torch_impl.parallel", "jax_impl.parallel") if name in sys.modules]


def _leave(code: int) -> None:
    for parallel in _joined():
        parallel.leave(code)


def _run(arguments: Sequence[str] | None) -> None:
    command = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        if command is not None:
            command.run()
    except FloatingPointError as error:
        fail(error, 1)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except MemoryError:
        fail("not enough memory; make the batch, the window or the model smaller", 2)
    except ConnectionError as error:
        fail(error, 1)
    except (ValueError, OSError, NotImplementedError) as error:
        if "LIQUIDNET_DEBUG" in os.environ:
            raise
        fail(error, 2)


def parse(arguments: Sequence[str]):
    """The command that the arguments name, ready to run; tyro's boxed message becomes one line."""
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return tyro.extras.subcommand_cli_from_dict(
                COMMANDS,
                prog="liquidnet",
                description=DESCRIPTION,
                args=list(arguments),
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff),
            )
    except SystemExit as stop:
        if stop.code != 2:
            raise
        fail(" ".join(_BOX.sub(" ", message.getvalue()).split()), 2)


def fail(reason: object, code: int) -> None:
    """Say why on stderr, in one line, and exit."""
    print(f"liquidnet: error: {' '.join(str(reason).split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
