"""Each flag of each command has a row in a table of this folder, which says where its value must be seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import tyro

from parity.suite.support.flags import Row, command_class, flags_of
from parity.tests.flags import test_tool_flags, test_train_flags, test_training_numbers, test_writing_flags
from tools.bench.gpu_check import GpuCheck
from tools.cli.commands import COMMANDS

ROWS = {**test_tool_flags.ROWS, **test_writing_flags.ROWS, "train": test_train_flags.ROWS}
CLASSES = {**{name: command_class(name) for name in COMMANDS}, "gpu_check": GpuCheck}


def test_every_command_has_a_table():
    assert ROWS.keys() == CLASSES.keys()


@pytest.mark.parametrize("command", CLASSES)
def test_every_flag_has_a_row_and_every_row_a_flag(command):
    # tyro's own spelling of a flag that is on by default.
    rows = {row.flag.replace("--no-", "--") if command == "gpu_check" else row.flag for row in ROWS[command]}
    mixers = {one.flag for one in test_training_numbers.MIXER_FLAGS.values()} if command == "train" else set()
    assert flags_of(CLASSES[command]) == rows | mixers


def test_no_row_says_what_the_command_does_without_it():
    for command, rows in ROWS.items():
        usual = {f"--{name.replace('_', '-')}": value for name, value in vars(CLASSES[command]).items()}
        for row in rows:
            if isinstance(row, Row) and row.typed:
                assert row.typed != (str(usual.get(row.flag)),), row.flag


def test_a_new_flag_is_seen():
    """Were the walk to miss one, its absence from the table would show nowhere."""

    @dataclass(frozen=True)
    class Command:
        source: Annotated[str, tyro.conf.Positional]
        old_name: Annotated[int, tyro.conf.arg(aliases=["--older"])] = 1
        quiet: bool = False

    assert flags_of(Command) == {"source", "--old-name", "--older", "--quiet"}
