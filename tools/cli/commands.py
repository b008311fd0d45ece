"""What the commands are: the table that the command line, its overview and --help are made from."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """What is said of a command, and where its class is.

    Args:
        target: module and class.
        summary: what it does, in a line.
        example: works as typed, after those above it.
        after_interrupt: how to go on after Ctrl-C.
    """

    target: str
    summary: str
    example: str
    after_interrupt: str = "nothing was written; run it again"


GROUPS = {
    "Train a model": {
        "prepare": Command(
            "tools.data.prepare:Prepare",
            "turn text into token files",
            "liquidnet prepare --stories 20000 --out data",
            "nothing half-written is left; run it again",
        ),
        "train": Command(
            "tools.training.train:Train",
            "train, or carry a run on, in PyTorch or in JAX",
            "liquidnet train torch --preset nano --data data --out run --steps 1000",
            "run it again with --resume",
        ),
        "evaluate": Command(
            "tools.training.evaluate:Evaluate",
            "the validation loss of a checkpoint",
            "liquidnet evaluate --checkpoint run --data data",
            "nothing was written; run it again, or read less of the text with --windows",
        ),
    },
    "Use it": {
        "generate": Command(
            "tools.generation.generate:Generate",
            "continue a prompt",
            'liquidnet generate --checkpoint run --prompt "Once upon a time"',
            "run it again, the same --seed writes the same text; or ask for less with --max-tokens",
        ),
        "chat": Command(
            "tools.generation.chat:Chat",
            "write a text together with the model",
            "liquidnet chat --checkpoint run",
            "run it again",
        ),
        "ui": Command(
            "tools.ui.command:Ui",
            "the same in the browser, on one backend or on both side by side",
            "liquidnet ui --checkpoint run",
            "run it again",
        ),
        "plot": Command(
            "tools.plot.command:Plot",
            "draw the loss of a run, its half-lives, or how far back it looks",
            "liquidnet plot run",
        ),
    },
    "Move it, and trust it": {
        "convert": Command(
            "tools.convert:Convert",
            "checkpoints from any format to any other, bit for bit",
            "liquidnet convert run model.pt",
            "nothing half-written is left; run it again",
        ),
        "compare": Command(
            "tools.compare.command:Compare",
            "one checkpoint in both backends, or two, layer by layer",
            "liquidnet compare torch:run jax:run",
        ),
        "parity": Command(
            "parity.suite.report.command:Parity",
            "prove both backends equal on this machine",
            "liquidnet parity --draws 20 --no-trajectories",
            "no report was written; run it again, or a quick look: liquidnet parity --draws 20 --no-trajectories",
        ),
    },
    "Know the machine": {
        "bench": Command(
            "tools.bench.command:Bench",
            "what this machine does, in ratios",
            "liquidnet bench",
            "nothing was written; run it again, or shorter with --rounds 3",
        ),
        "plan": Command(
            "tools.plan.command:Plan",
            "size a TPU run from a machine without one",
            "liquidnet plan --topology v6e:4x4 --preset base",
            "nothing was written; run it again, or shorter with --largest-batch skip",
        ),
        "doctor": Command(
            "tools.doctor:Doctor",
            "what is installed, what runs here, and whether it is right",
            "liquidnet doctor",
        ),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def show_overview() -> None:
    """Print every command with a line and an example, in the order in which a newcomer needs them."""
    from rich.console import Console

    # Styles on a terminal alone; an example is never broken, so that it can be copied.
    console = Console(highlight=False, soft_wrap=True)
    console.print("LiquidNet: one language model, defined once, written in PyTorch and in JAX, and proved equal.")
    for title, commands in GROUPS.items():
        console.print(f"\n{title}", style="bold")
        for name, command in commands.items():
            console.print(f"  [cyan]{name:10}[/]{command.summary}")
            console.print(f"{'':12}{command.example}", style="dim", markup=False)
    console.print("\nEvery flag of a command:   liquidnet COMMAND --help")
    console.print("The version:               liquidnet --version")
