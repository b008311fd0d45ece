"""The operations whose bounds are theorems: scan, RMSNorm, SwiGLU, cross-entropy and an AdamW step."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from parity.proof import adapters
from parity.proof.bounds import scan_bounds, scan_truth
from parity.proof.bounds.adamw import adamw_truth_and_bounds
from parity.proof.bounds.layers import cross_entropy_bounds, rms_norm_bounds, swiglu_bounds
from parity.proof.operations.base import Arrays, Operation, cast, float32
from parity.proof.problems.cases import AdamWCase, LayerCase, ScanCase, draw_values
from spec.optimizer import MOMENTS, decayed_paths
from spec.reference import blocks
from spec.reference.model import cross_entropy


class Scan(Operation):
    name, choice = "scan", "scan"

    def truth(self, case: ScanCase) -> Arrays:
        return scan_truth(*case.arrays())

    def bounds(self, case: ScanCase, dtype: Any = np.float32) -> Arrays:
        return scan_bounds(*case.arrays(), dtype=dtype)

    def scale(self, exact: np.ndarray) -> float:
        """No limit: twice the proved bound is below 1e-12 of the absolute values behind each entry up to T = 1000."""
        return np.inf

    def run(self, adapter: ModuleType, case: ScanCase, method: str, dtype: str) -> Arrays:
        decay, drive, state, resets, padding, *gradients = (cast(x, dtype) for x in case.arrays())
        return adapter.vjp("scan", (decay, drive, state), (resets, padding), gradients, method=method)


class RMSNorm(Operation):
    name, choice, share = "rms_norm", "rowwise", 3.0

    def arrays(self, case: LayerCase) -> tuple[np.ndarray, ...]:
        random, shape = case.random, (*case.shape, case.config.d_model)
        x = draw_values(random, case.values, shape)
        x = np.sqrt(x) if case.values == "absorbed" else x
        return float32(x, 1.0 + 0.3 * random.standard_normal(shape[-1]), random.standard_normal(shape))

    def truth(self, case: LayerCase) -> Arrays:
        x, weight, grad_y = (array.astype(np.float64) for array in self.arrays(case))
        y, saved = blocks.rms_norm(x, weight, case.config.norm_eps)
        names = "y", "x gradient", "weight gradient"
        return dict(zip(names, (y, *blocks.rms_norm_adjoint(saved, grad_y)), strict=True))

    def bounds(self, case: LayerCase, dtype: Any = np.float32) -> Arrays:
        x, weight, grad_y = self.arrays(case)
        return rms_norm_bounds(x, weight, case.config.norm_eps, grad_y, dtype)

    def run(self, adapter: ModuleType, case: LayerCase, method: str, dtype: str) -> Arrays:
        x, weight, grad_y = self.arrays(case)
        (y,), (grad_x,), weights = adapter.layer_vjp(
            self.name, case.config, {"weight": weight}, (x,), (), (grad_y,), method, compute_dtype=dtype
        )
        return {"y": y, "x gradient": grad_x, "weight gradient": weights["weight"]}


class SwiGLU(Operation):
    name, choice = "swiglu", "rowwise"

    def arrays(self, case: LayerCase) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        random, d, f = case.random, case.config.d_model, case.config.d_ff
        r, grad_u = draw_values(random, case.values, (*case.shape, d)), random.standard_normal((*case.shape, d))
        enter, leave = random.standard_normal((2 * f, d)) / d**0.5, random.standard_normal((d, f)) / f**0.5
        if case.values == "absorbed":
            gain = draw_values(random, case.values, (f,))
            enter, leave = np.concatenate([np.ones(f), gain])[:, None] * np.ones(d), np.ones((d, f))
        r, grad_u, enter, leave = float32(r, grad_u, enter, leave)
        return r, grad_u, {"input.weight": enter, "output.weight": leave}

    def truth(self, case: LayerCase) -> Arrays:
        r, grad_u, weights = self.arrays(case)
        wide = {path: x.astype(np.float64) for path, x in weights.items()}
        u, saved = blocks.swiglu(r.astype(np.float64), wide)
        grad_r, gradients = blocks.swiglu_adjoint(saved, grad_u.astype(np.float64))
        return {"u": u, "r gradient": grad_r, **gradients}

    def bounds(self, case: LayerCase, dtype: Any = np.float32) -> Arrays:
        r, grad_u, weights = self.arrays(case)
        return {name: x.reshape(r.shape) if name in ("u", "r gradient") else x
                for name, x in swiglu_bounds(r, weights, grad_u, dtype).items()}  # fmt: skip

    def run(self, adapter: ModuleType, case: LayerCase, method: str, dtype: str) -> Arrays:
        r, grad_u, weights = self.arrays(case)
        (u,), (grad_r,), gradients = adapter.layer_vjp(
            self.name, case.config, weights, (r,), (), (grad_u,), method, compute_dtype=dtype
        )
        return {"u": u, "r gradient": grad_r, **gradients}


class CrossEntropy(Operation):
    name, choice = "cross_entropy", "loss"

    def scale(self, exact: np.ndarray) -> float:
        """At least 1: log(1 + x) and p - 1 are small differences of numbers of that size."""
        return max(1.0, super().scale(exact))

    def arrays(self, case: LayerCase) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        random, d, v = case.random, case.config.d_model, case.config.vocab_size
        hidden = draw_values(random, case.values, (*case.shape, d))
        embedding, labels = 0.3 * random.standard_normal((v, d)), random.integers(0, v, size=case.shape)
        if case.values == "absorbed":
            hidden, embedding = np.broadcast_to(np.eye(1, d)[0], hidden.shape), np.zeros((v, d))
            embedding[1:, 0], labels = np.log(0.9 * 2.0**-24), np.zeros_like(labels)
        if case.values == "peaked":
            hidden, embedding, labels = self.peaked(case)
        hidden, embedding = float32(hidden, embedding)
        return hidden, embedding, case.ignore(labels)

    def peaked(self, case: LayerCase) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One word of each row stands apart, the words in turn: by 120 or 1e4, far above the rest or below.

        exp is infinite in float32 from 88.7 on. Every second label is that word, the others its neighbours. A width of
        at least the vocabulary makes each product one exact term.
        """
        (d, v), rows = (case.config.d_model, case.config.vocab_size), np.arange(np.prod(case.shape)).reshape(case.shape)
        apart = rows % v
        hidden = (120.0, -120.0, 1e4, -1e4)[case.seed % 4] * np.eye(v, d)[apart]
        return hidden, np.eye(v, d), (apart + (rows + rows // v) % 2) % v

    def truth(self, case: LayerCase) -> Arrays:
        hidden, embedding, labels = self.arrays(case)
        hidden, embedding = hidden.astype(np.float64), embedding.astype(np.float64)
        count = max(1, int((labels >= 0).sum()))
        mean, grad_logits = cross_entropy(hidden @ embedding.T, labels)
        grad_hidden, grad_embedding = blocks.linear_adjoint(hidden, embedding, grad_logits * count)
        return dict(zip(adapters.LOSS_RESULTS, (np.asarray(mean * count), grad_hidden, grad_embedding), strict=True))

    def bounds(self, case: LayerCase, dtype: Any = np.float32) -> Arrays:
        hidden, embedding, labels = self.arrays(case)
        found = cross_entropy_bounds(hidden, embedding, labels, dtype)
        return {**found, "hidden gradient": found["hidden gradient"].reshape(hidden.shape)}

    def run(self, adapter: ModuleType, case: LayerCase, method: str, dtype: str) -> Arrays:
        hidden, embedding, labels = (cast(x, dtype) for x in self.arrays(case))
        # Seven rows a chunk, which divides few numbers of labels.
        one, chunk = np.ones((), hidden.dtype), 7 * len(embedding)
        return adapter.vjp("loss", (hidden, embedding), (labels,), (one,), chunk, method=method)


class AdamW(Operation):
    name, dtypes, share = "adamw", ("float32",), 0.5

    def both(self, case: AdamWCase) -> tuple[Arrays, Arrays]:
        """The state after all steps in float64 from zero moments, and the bounds carried along."""
        params, gradients = case.arrays()
        state = tuple({path: x.astype(np.float64) * one for path, x in params.items()} for one in (1.0, 0.0, 0.0))
        errors = tuple({path: np.zeros(x.shape) for path, x in params.items()} for _ in state)
        decayed = decayed_paths(case.config)
        for step, (arrays, rate) in enumerate(zip(gradients, case.rates, strict=True), start=1):
            wide = {path: g.astype(np.float64) for path, g in arrays.items()}
            state, errors = adamw_truth_and_bounds(state, errors, wide, step, rate, case.training, decayed)
        return self.flat(*state), self.flat(*errors)

    def flat(self, params: Arrays, *moments: Arrays) -> Arrays:
        named = {f"{name} {path}": x for name, one in zip(MOMENTS, moments, strict=True) for path, x in one.items()}
        return {**params, **named}

    def truth(self, case: AdamWCase) -> Arrays:
        return self.both(case)[0]

    def bounds(self, case: AdamWCase, dtype: Any = np.float32) -> Arrays:
        return self.both(case)[1]

    def run(self, adapter: ModuleType, case: AdamWCase, method: str, dtype: str) -> Arrays:
        params, gradients = case.arrays()
        found, moments, _ = adapter.adamw_steps(case.config, case.training, params, {}, 0, gradients, case.rates)
        return self.flat(found, *(moments[name] for name in MOMENTS))
