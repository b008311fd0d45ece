"""What this machine does, as ratios measured side by side in one run."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spec.checkpoint.files import new_file
from spec.config import ModelConfig, TrainingConfig
from spec.mixers import family
from spec.presets import PRESETS, RECIPES, preset
from spec.validation import require_integer
from tools.bench import (
    cpu,
    gpu,
    roofline_table,
    ssm_solvers,
)
from tools.bench import (
    history as bench_history,
)
from tools.bench import (
    sizes as bench_sizes,
)
from tools.bench.sections import Sizes
from tools.cli.errors import require_new_or_file, require_writable

STATES = ssm_solvers.Sizes()
CPU = bench_sizes.Sizes()
OF_CPU = ("full", "compiled", "sections", "history")


@dataclass(frozen=True)
class Bench:
    """Measure this machine's processor: memory, scan, mixer, train step, decoding, growth with length; and a GPT-2.

    All candidates are timed in turn, round after round, and each is reported by its median: a busy moment of
    the machine hits all of them. Only the ratios mean something on another machine. The last table holds them against
    the project's limits; a limit that is missed is a result, not an error. About two and a half minutes on
    two cores; --full takes about ten, --compiled a minute more.

    With --liquid-ssm: the two methods for the states of a Liquid SSM, over the length of a row. With --device cuda:
    everything there is on one GPU, in GB/s against a measured copy and in tokens a second, beside the peers that are
    installed. With --model: nothing is timed; the least time a train step can take on known devices, from counted
    bytes and FLOPs. Exit code 1 where something failed.
    """

    rounds: int = 15
    """Rounds to take medians over."""
    json: Path | None = None
    """Write the result to this file too."""
    device: str = "cpu"
    """cpu, or cuda: everything on the GPU."""
    full: bool = False
    """Measure more: streams of 4 and 16 rows, a million tokens of context, every length, models of transformers."""
    compiled: bool = False
    """Train steps of torch compiled too, ours and GPT-2's; compiling takes a minute."""
    sections: str | None = None
    """Only these, separated by commas: machine, scan, mixer, train, decode, growth."""
    history: Path | None = None
    """Keep this run as one more file in DIRECTORY/MACHINE; `liquidnet plot DIRECTORY --what bench` draws them all."""
    model: bool = False
    """Print the modelled step time and where each number comes from; needs no backend and no GPU."""
    liquid_ssm: bool = False
    """Compare the methods for the states of a Liquid SSM instead: minutes."""
    preset: str | None = None
    """Of the model that --model or --device cuda is about; small by default."""
    batch_size: int | None = None
    """Sequences a step there; the preset's by default."""
    seq_len: int | None = None
    """Tokens a sequence there; the preset's by default."""

    def run(self) -> None:
        self._check()
        name, config, training = self._recipe()
        if self.model:
            result = roofline_table.modelled(name, config, training.batch_size, training.seq_len)
            roofline_table.show(result)
        elif self.liquid_ssm:
            result = ssm_solvers.compare(self.rounds, STATES, lambda line: print(line, file=sys.stderr))
            ssm_solvers.show(result, STATES)
        elif self.device == "cuda":
            sizes = Sizes(config, replace(training, compute_dtype="bfloat16"))
            result = gpu.measured("cuda", self.rounds, sizes, lambda section: print(section, file=sys.stderr))
            gpu.show(result)
        else:
            result = self._of_the_processor()
        if self.json is not None:
            with new_file(self.json) as temporary:
                temporary.write_text(json.dumps(result, indent=1) + "\n")
        if result.get("errors"):
            sys.exit(1)

    def _check(self) -> None:
        """Raises ValueError for flags that mean nothing together, before minutes are spent."""
        require_new_or_file(self.json, "--json")
        if self.rounds < 1:
            raise ValueError(f"--rounds must be at least 1, got {self.rounds}")
        if self.model and self.device != "cpu":
            raise ValueError("--model times nothing: leave out --device, or --model")
        if self.liquid_ssm and (self.model or self.device != "cpu"):
            raise ValueError("--liquid-ssm is a comparison of its own: leave out --model and --device")
        elsewhere = self.model or self.liquid_ssm or self.device != "cpu"
        for name in OF_CPU if elsewhere else ():
            if getattr(self, name):
                raise ValueError(
                    f"--{name} goes with the measurements of a processor; leave out --device, --model and --liquid-ssm"
                )
        if not self.model:
            gpu.require_device(self.device)
        cpu.chosen(self.sections)
        if self.history is not None:
            require_writable(self.history, "--history")

    def _of_the_processor(self) -> dict[str, Any]:
        sizes = bench_sizes.full(CPU) if self.full else CPU
        sizes = replace(sizes, compiled=(False, True)) if self.compiled else sizes
        result = cpu.measured(self.rounds, sizes, cpu.chosen(self.sections))
        cpu.show(result)
        if self.history is not None:
            print(bench_history.append(self.history, result))
        return result

    def _recipe(self) -> tuple[str, ModelConfig, TrainingConfig]:
        """The preset, and its recipe with the batch that was asked for."""
        asked = {"batch_size": self.batch_size, "seq_len": self.seq_len}
        given = {name: value for name, value in asked.items() if value is not None}
        if not self.model and self.device == "cpu" and (given or self.preset is not None):
            raise ValueError("--preset, --batch-size and --seq-len go with --model or --device cuda")
        name = "small" if self.preset is None else self.preset
        config = preset(name)
        measured, own = family(PRESETS["small"]), family(config)
        if own is not measured:
            told = f", of which --{own.name.replace('_', '-')} tells" if hasattr(self, own.name) else ""
            raise ValueError(f"preset {name} is a {own.title}{told}; choose one of a {measured.title}")
        for flag, value in given.items():
            require_integer(flag, value, 1)
        return name, config, replace(RECIPES[name], **given)
