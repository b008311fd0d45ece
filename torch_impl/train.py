"""The training engine. Twin: jax_impl/train.py. Truth: spec/optimizer.py and spec/data.py."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spec.config import LiquidNetConfig, TrainingConfig
from spec.data import Batch
from spec.sampling import Step
from torch_impl.checkpoint import dump_parameters, load_parameters
from torch_impl.data import to_device
from torch_impl.devices import default_device
from torch_impl.generate import make_step
from torch_impl.model import LiquidNet
from torch_impl.optimizer import clip_by_global_norm, dump_moments, load_moments, make_optimizer
from torch_impl.scan import choose_method

LEAST_SCALE = 1.0
"""Gradients that overflow although they are scaled by no more than this are not finite."""

_MOST_SCALE = 2.0**127


class Engine:
    """What the trainer shell needs of a backend: init, step, evaluate, load, dump.

    Args:
        config: the model.
        training: the run.
        method: mixer method.
        remat: make activations again in the backward pass.
        compile: compile the loss and its gradient, without a graph break; evaluation and optimizer stay as they are.
    """

    name = "torch"

    def __init__(
        self,
        config: LiquidNetConfig,
        training: TrainingConfig,
        method: str = "auto",
        remat: bool = False,
        compile: bool = False,
    ):
        self.device = default_device()
        self.training, self.compile = training, compile
        shape = (training.batch_size, training.seq_len, config.d_model)
        self.method = choose_method(shape) if method == "auto" else method
        self.model = LiquidNet(config, training.seed, training.compute_dtype, method, remat).to(self.device)
        self.optimizer = make_optimizer(self.model, training)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=training.compute_dtype == "float16")
        # Every training batch has one shape: nothing is gained by a program that takes others too.
        loss = torch.compile(self.model.loss, fullgraph=True, dynamic=False) if compile else self.model.loss
        self._loss = loss

    def train_step(self, batch: Batch, lr: float) -> tuple[float, float]:
        """One optimizer step; the loss before it and the gradient norm before clipping.

        Where either is not finite the parameters are left as they were. In float16 a step whose gradients overflow is
        made again at half the scale: what it does depends on weights, batch and scale alone, and every step counts.
        """
        inputs = to_device(batch, self.device)
        while True:
            loss, norm = self._gradients(*inputs)
            if math.isfinite(loss) and math.isfinite(norm):
                for group in self.optimizer.param_groups:
                    group["lr"] = lr
                self.optimizer.step()
                self.scaler.update()
                return loss, norm
            scale = self.scaler.get_scale()
            self.scaler.update()
            halved = self.scaler.get_scale() < scale
            if not math.isfinite(loss) or scale <= LEAST_SCALE or not halved:
                return loss, norm

    def _gradients(self, tokens: Tensor, labels: Tensor, resets: Tensor) -> tuple[float, float]:
        """Leave clipped gradients with the parameters; the loss, and the norm before clipping."""
        loss, _ = self._loss(tokens, labels, resets=resets)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norm = clip_by_global_norm(gradients, self.training.grad_clip)
        # The one time a step that the host waits for the device.
        told = torch.stack([loss.detach(), norm]).tolist()
        return told[0], told[1]

    @torch.inference_mode()
    def evaluate(self, batch: Batch) -> float:
        """Mean nats a counted label, each row from a zero state."""
        tokens, labels, resets = to_device(batch, self.device)
        return self.model.loss(tokens, labels, resets=resets)[0].item()

    def load(self, parameters: dict[str, np.ndarray], moments: dict[str, dict[str, np.ndarray]], step: int) -> None:
        """Take over parameters and, where there are any, moments after `step` steps."""
        load_parameters(self.model, parameters)
        if moments:
            load_moments(self.model, self.optimizer, moments, step)

    def dump(self) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
        """Parameters and moments as NumPy."""
        return dump_parameters(self.model), dump_moments(self.model, self.optimizer)

    def extra_state(self) -> dict[str, Any]:
        """What else a checkpoint's state.json needs for the next step to repeat its bits."""
        return {"grad_scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `extra_state` gave, from the whole of state.json; what is not there stays as it is.

        Raises:
            ValueError: an entry that `extra_state` does not make.
        """
        stored = state.get("grad_scaler")
        if not self.scaler.is_enabled() or stored is None:
            return
        usual = self.scaler.state_dict()
        numbers = isinstance(stored, dict) and stored.keys() == usual.keys()
        if not numbers or not all(
            type(stored[name]) in (int, float) and 0 <= stored[name] <= _MOST_SCALE for name in usual
        ):
            raise ValueError(f"state.json: grad_scaler needs a number each for {', '.join(usual)}, got {stored!r}")
        self.scaler.load_state_dict(stored)

    def sampler(self) -> Step:
        """The current model as a step of generation."""
        return make_step(self.model)

    def environment(self) -> dict[str, Any]:
        """What bit-exact resume depends on besides the checkpoint."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        versions = {"torch": torch.__version__.split("+")[0], "numpy": np.__version__}
        how = {"method": self.method, "compile": self.compile}
        return {**versions, "device": name, "threads": torch.get_num_threads(), **how}

    @contextmanager
    def profile(self, directory: Path) -> Iterator[None]:
        """Write a trace of what runs inside to the directory, as Chrome and Perfetto read it."""
        with torch.profiler.profile() as profiler:
            yield
        directory.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(directory / "trace.json"))


if __name__ == "__main__":
    from tools.cli import main

    main(["train", "torch", *sys.argv[1:]])
