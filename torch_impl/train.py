"""The training engine. Twin: jax_impl/train.py. Truth: spec/optimizer.py and spec/data.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spec.config import LiquidNetConfig, TrainingConfig
from spec.data import Batch
from spec.sampling import Step
from torch_impl.checkpoint import dump_parameters, load_parameters
from torch_impl.data import to_device
from torch_impl.generate import make_step
from torch_impl.model import LiquidNet
from torch_impl.optimizer import clip_by_global_norm, dump_moments, load_moments, make_optimizer
from torch_impl.scan import choose_method


class Engine:
    """What the trainer shell needs of a backend: init, step, evaluate, load, dump."""

    name = "torch"

    def __init__(
        self,
        config: LiquidNetConfig,
        training: TrainingConfig,
        method: str = "auto",
        remat: bool = False,
    ):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.training = training
        shape = (training.batch_size, training.seq_len, config.d_model)
        self.method = choose_method(shape) if method == "auto" else method
        self.model = LiquidNet(config, training.seed, training.compute_dtype, method, remat).to(self.device)
        self.optimizer = make_optimizer(self.model, training)

    def train_step(self, batch: Batch, lr: float) -> tuple[float, float]:
        """One optimizer step; the loss before it and the gradient norm before clipping.

        Where either is not finite the parameters are left as they were.
        """
        tokens, labels, resets = to_device(batch, self.device)
        loss, _ = self.model.loss(tokens, labels, resets=resets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norm = clip_by_global_norm(gradients, self.training.grad_clip)
        if torch.isfinite(loss) and torch.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        return loss.item(), norm.item()

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

    def sampler(self) -> Step:
        """The current model as a step of generation."""
        return make_step(self.model)

    def environment(self) -> dict[str, Any]:
        """What bit-exact resume depends on besides the checkpoint."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        versions = {"torch": torch.__version__.split("+")[0], "numpy": np.__version__}
        return {**versions, "device": name, "threads": torch.get_num_threads(), "method": self.method}

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
