"""What this machine does, as ratios measured side by side in one run."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from spec.config import ModelConfig, TrainingConfig, require_integer
from spec.mixers import family
from spec.presets import PRESETS, RECIPES, preset
from tools.bench import liquid_ssm_solvers, measure, results, roofline, serving, sizes
from tools.cli.destination import require_new_or_file, require_writable
from tools.cli.json_file import write_json

LIQUID_SSM = liquid_ssm_solvers.Sizes()
SERVING = serving.Sizes()
CPU_FLAGS = ("full", "compiled", "sections", "history")


@dataclass(frozen=True)
class Bench:
    """Measure this machine's processor: memory, scan, mixer, train step, decoding, growth with length; and a GPT-2.

    All candidates are timed in turn, round after round, and each is reported by its median: a busy moment of
    the machine hits all of them. Only the ratios mean something on another machine. The last table holds them against
    the project's limits; a limit that is missed is a result, not an error. About two and a half minutes on
    two cores; --full takes about ten, --compiled a minute more.

    With --liquid-ssm: the two methods for the states of a Liquid SSM, over the length of a row. With --serving:
    `liquidnet serve` over HTTP against the steps alone, and the time to a first token. With --device cuda:
    everything there is on one GPU, in GB/s against a measured copy and in tokens a second, beside the peers that are
    installed. With --roofline: nothing is timed; the least time a train step can take on known devices, from counted
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
    roofline: Annotated[bool, tyro.conf.arg(aliases=["--model"])] = False
    """Print the modelled step time and where each number comes from; needs no backend and no GPU."""
    liquid_ssm: bool = False
    """Compare the methods for the states of a Liquid SSM instead: minutes."""
    serving: bool = False
    """Compare the server with the steps alone instead, 1, 4 and 16 clients: a minute or two."""
    preset: str | None = None
    """Of the model that --roofline or --device cuda is about; small by default."""
    batch_size: int | None = None
    """Sequences a step there; the preset's by default."""
    seq_len: int | None = None
    """Tokens a sequence there; the preset's by default."""

    def run(self) -> None:
        self._check()
        name, config, recipe = self._recipe()
        if self.roofline:
            result = roofline.modelled(name, config, recipe.batch_size, recipe.seq_len)
            roofline.show(result)
        elif self.liquid_ssm:
            result = liquid_ssm_solvers.compare(self.rounds, LIQUID_SSM, lambda line: print(line, file=sys.stderr))
            liquid_ssm_solvers.show(result, LIQUID_SSM)
        elif self.serving:
            result = serving.compare(self.rounds, SERVING, lambda line: print(line, file=sys.stderr))
            serving.show(result, SERVING)
        else:
            result = self._measured(config, recipe)
        if self.json is not None:
            write_json(self.json, result)
        if result.get("errors"):
            sys.exit(1)

    def _check(self) -> None:
        """Raises ValueError for flags that mean nothing together, before minutes are spent."""
        require_new_or_file(self.json, "--json")
        if self.rounds < 1:
            raise ValueError(f"--rounds must be at least 1, got {self.rounds}")
        if self.roofline and self.device != "cpu":
            raise ValueError("--roofline times nothing: leave out --device, or --roofline")
        for name in ("liquid_ssm", "serving"):
            others = self.roofline or self.device != "cpu" or (self.liquid_ssm and self.serving)
            if getattr(self, name) and others:
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(
                    f"{flag} is a comparison of its own: leave out --roofline, --device and others like it"
                )
        elsewhere = self.roofline or self.liquid_ssm or self.serving or self.device != "cpu"
        for name in CPU_FLAGS if elsewhere else ():
            if getattr(self, name):
                raise ValueError(
                    f"--{name} goes with the measurements of a processor; "
                    "leave out --device, --roofline, --liquid-ssm and --serving"
                )
        if not self.roofline:
            measure.require_device(self.device)
        measure.chosen(self.sections)
        if self.history is not None:
            require_writable(self.history, "--history")

    def _measured(self, config: ModelConfig, recipe: TrainingConfig) -> results.Result:
        if self.device == "cuda":
            result = measure.measured("cuda", self.rounds, sizes.on_gpu(config, recipe))
        else:
            asked = sizes.full(sizes.CPU) if self.full else sizes.CPU
            asked = replace(asked, compiled=(False, True)) if self.compiled else asked
            result = measure.measured("cpu", self.rounds, asked, measure.chosen(self.sections))
        results.show(result)
        if self.history is not None:
            print(results.append(self.history, result))
        return result

    def _recipe(self) -> tuple[str, ModelConfig, TrainingConfig]:
        """The preset, and its recipe with the batch that was asked for."""
        asked = {"batch_size": self.batch_size, "seq_len": self.seq_len}
        given = {name: value for name, value in asked.items() if value is not None}
        if not self.roofline and self.device == "cpu" and (given or self.preset is not None):
            raise ValueError("--preset, --batch-size and --seq-len go with --roofline or --device cuda")
        name = "small" if self.preset is None else self.preset
        config = preset(name)
        measured, own = family(PRESETS["small"]), family(config)
        if own is not measured:
            told = f", of which --{own.name.replace('_', '-')} tells" if hasattr(self, own.name) else ""
            instead = f"choose one of {measured.article} {measured.title}"
            raise ValueError(f"preset {name} is {own.article} {own.title}{told}; {instead}")
        for flag, value in given.items():
            require_integer(flag, value, 1)
        return name, config, replace(RECIPES[name], **given)
