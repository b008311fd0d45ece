"""Where a model leaves the reference: each tensor of its forward pass beside the truth, in units of an estimate.

Each is judged twice. From the tokens on: against the float64 reference of the whole model, the errors of all layers so
far in it. The layer alone: against one step of the reference on the tensors that this very model gave before, where a
fault shows in its own layer only and later layers are not blamed for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from parity.proof.bounds import in_units, unit
from parity.proof.bounds.monte_carlo_arithmetic import estimate
from spec.config import ModelConfig
from spec.mixers import family
from spec.reference import activations
from spec.reference.blocks import rms_norm, within
from spec.reference.scan import sigmoid

RUNS, MANY, CLOSE = 4, 32, 10.0
"""Perturbed runs an estimate, and those before a tensor is called outside by less than CLOSE: on a few dozen entries
the largest change of four runs is a matter of luck."""

Arrays = Mapping[str, np.ndarray]


class Error(NamedTuple):
    """The largest error of a tensor, in units of its bound (monte_carlo_arithmetic.py), and the entry that has it."""

    units: float
    at: tuple[int, ...]
    got: float
    expected: float
    bound: float


class Row(NamedTuple):
    """One tensor: the error of each model from the tokens on and by the layer alone, and their largest difference."""

    tensor: str
    whole: tuple[Error, ...]
    alone: tuple[Error, ...]
    difference: float

    @property
    def outside(self) -> list[int]:
        """The models whose tensor is outside its bound: by the layer alone where any is, else from the tokens on."""
        for errors in (self.alone, self.whole):
            found = [i for i, error in enumerate(errors) if error.units > 1.0]
            if found:
                return found
        return []

    def worst(self, model: int) -> Error:
        """The error that `outside` speaks of, or the larger one."""
        alone = self.alone[model]
        return alone if alone.units > 1.0 else max(alone, self.whole[model])


def locate(params: Arrays, config: ModelConfig, tokens: np.ndarray, traces: Sequence[Arrays]) -> list[Row]:
    """Every tensor in the order of the forward pass, each model's beside the reference of one set of weights.

    Args:
        params: float32, by path.
        config: the reference's.
        tokens: integers, [b, t].
        traces: what `activations` of activations_torch.py or activations_jax.py gave for each model.
    """
    rows = judge(params, config, tokens, traces, RUNS)
    first = first_outside(rows)
    if first is not None and all(first.worst(i).units < CLOSE for i in first.outside):
        rows = judge(params, config, tokens, traces, MANY)
    return rows


def first_outside(rows: Sequence[Row]) -> Row | None:
    """The first tensor that is outside its bound in any model."""
    return next((row for row in rows if row.outside), None)


def judge(params: Arrays, config: ModelConfig, tokens: np.ndarray, traces: Sequence[Arrays], runs: int) -> list[Row]:
    """The same by estimates of so many perturbed runs."""
    params = {path: _double(x) for path, x in params.items()}

    def of_whole(make, given):
        return activations({path: make(x) for path, x in params.items()}, config, tokens)

    def of_layers(make, given):
        made = {name: make(x) for name, x in given.items()}
        return layers_alone({path: make(x) for path, x in params.items()}, config, tokens, made)

    def beside_truth(compute, given):
        truth = compute(_double, given)
        return truth, estimate(lambda make: compute(make, given), truth, unit(), runs=runs)

    # A model that is far off may overflow; its entries that are not finite say so themselves.
    with np.errstate(all="ignore"):
        truth, bounds = beside_truth(of_whole, None)
        whole = [_errors(trace, truth, bounds) for trace in traces]
        alone = [_errors(trace, *beside_truth(of_layers, trace), given=trace) for trace in traces]
        apart = {name: _largest([trace[name] for trace in traces]) for name in truth}
    return [Row(n, tuple(e[n] for e in whole), tuple(e[n] for e in alone), apart[n]) for n in truth]


def layers_alone(params: Arrays, config: ModelConfig, tokens: np.ndarray, given: Arrays) -> dict[str, np.ndarray]:
    """Each tensor of a trace by one step of the reference, from the tensors before it in `given`."""
    x_btd, found = given["embedding"], {"embedding": params["embedding.weight"][tokens]}
    for i in range(config.n_layers):
        weights, inside = (within(arrays, f"blocks.{i}.") for arrays in (params, given))
        of_block = _block_alone(x_btd, weights, family(config).of_block(config, i)[1], inside)
        found |= {f"blocks.{i}{name}": array for name, array in of_block.items()}
        x_btd = given[f"blocks.{i}"]
    found["final_norm"] = rms_norm(x_btd, params["final_norm.weight"], config.norm_eps)[0]
    return found | {"logits": given["final_norm"] @ params["embedding.weight"].T}


def _block_alone(x_btd: np.ndarray, weights: Arrays, config: ModelConfig, given: Arrays) -> dict[str, np.ndarray]:
    scale, f = config.residual_scale, config.d_ff
    of_mixer, last_bn, y_btd = family(config).each_alone(
        given["mixer_norm"], within(weights, "mixer."), config, within(given, "mixer.")
    )
    middle_btd = x_btd + scale * y_btd
    gate_btf, up_btf = given["mlp.input"][..., :f], given["mlp.input"][..., f:]
    return {
        ".mixer_norm": rms_norm(x_btd, weights["mixer_norm.weight"], config.norm_eps)[0],
        **{f".mixer.{name}": array for name, array in of_mixer.items()},
        ".mixer.state": last_bn,
        ".mlp_norm": rms_norm(middle_btd, weights["mlp_norm.weight"], config.norm_eps)[0],
        ".mlp.input": given["mlp_norm"] @ weights["mlp.input.weight"].T,
        ".mlp.product": gate_btf * sigmoid(gate_btf) * up_btf,
        ".mlp.output": given["mlp.product"] @ weights["mlp.output.weight"].T,
        "": middle_btd + scale * given["mlp.output"],
    }


def _errors(trace: Arrays, truth: Arrays, bounds: Arrays, given: Arrays | None = None) -> dict[str, Error]:
    """The largest error of each tensor; a step from `given` that is not finite blames nobody."""
    found = {}
    for name, expected in truth.items():
        got, bound = np.asarray(trace[name], np.float64), bounds[name]
        if got.shape != expected.shape:
            raise AssertionError(f"{name}: shape {got.shape}, expected {expected.shape}")
        units = in_units(got, expected, bound)
        if given is not None and not np.isfinite(expected).all():
            units = np.zeros_like(units)
        at = tuple(int(i) for i in np.unravel_index(units.argmax(), units.shape))
        found[name] = Error(float(units[at]), at, float(got[at]), float(expected[at]), float(bound[at]))
    return found


def _double(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float64)


def _largest(arrays: Sequence[np.ndarray]) -> float:
    """The largest difference to the first."""
    return max(float(np.abs(_double(x) - _double(arrays[0])).max()) for x in arrays)
