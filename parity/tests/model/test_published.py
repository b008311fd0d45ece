"""Mixers from the literature beside numbers that their published implementations gave; published/*.json names which."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from spec.mixers import family
from spec.mixers.base import NO_MASKS
from spec.mixers.hgrn import forget_gates
from spec.mixers.rg_lru import gates_of, softplus
from spec.presets import PRESETS
from spec.reference.scan import scan, scan_adjoint

PUBLISHED = Path(__file__).parent / "published"


def read(name: str) -> dict:
    """Arrays by name, those inside `weights` and `grad_weights` by path."""
    stored = json.loads((PUBLISHED / f"{name}.json").read_text("utf-8"))
    inner = {"weights", "grad_weights"}
    return {
        key: {path: np.array(x) for path, x in value.items()} if key in inner else np.array(value)
        for key, value in stored.items()
        if key not in ("source", "config")
    } | {"config": stored.get("config")}


def close(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    """Within 1e-12 of the largest entry."""
    assert found.shape == expected.shape, name
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max(), err_msg=name)


def test_rg_lru_is_the_recurrent_block_of_recurrentgemma():
    """Output, last state with the convolution's inputs, and every gradient."""
    told = read("rg_lru")
    own, config = family("rg_lru"), replace(PRESETS["rglru-nano"], **told["config"])
    assert {row.path: row.shape for row in own.parameters(config)} == {k: x.shape for k, x in told["weights"].items()}
    mixed = own.forward(told["z"], told["weights"], config, None, NO_MASKS, {})
    close(mixed.y, told["y"], "y")
    close(mixed.last, told["last"], "last")
    grad_z, gradients, _ = own.adjoint(mixed.saved, told["grad_y"])
    close(grad_z, told["grad_z"], "grad z")
    for path, expected in told["grad_weights"].items():
        close(gradients[path], expected, path)


def test_hgrn_is_the_recurrence_of_flash_linear_attention():
    """States and gradients of its naive recurrence, its inputs formed as its layer forms them."""
    told = read("hgrn")
    own, config = family("hgrn"), replace(PRESETS["hgrn-nano"], d_model=4)
    pre = np.concatenate([told["value"], told["forget"], np.zeros_like(told["value"])], axis=-1)
    decay, drive, saved = own.gates(pre, {"lower_bound": told["lower_bound"]}, config)
    states, last = scan(decay, drive, told["state"])
    close(states, told["states"], "states")
    close(last, told["last"], "last")
    grad_decay, grad_drive, grad_state = scan_adjoint(
        decay, states, told["state"], told["grad_states"], told["grad_last"]
    )
    grad_pre, gradients = own.gates_adjoint(saved, grad_decay, grad_drive)
    close(grad_state, told["grad_state"], "grad state")
    close(grad_pre[..., :4], told["grad_value"], "grad value")
    close(grad_pre[..., 4:8], told["grad_forget"], "grad forget")
    close(gradients["lower_bound"], told["grad_lower_bound"], "grad lower bound")


def test_nothing_is_lost_where_a_decay_is_almost_one():
    """1 - f and 1 - a^2 to full relative accuracy where a subtraction would keep no digit."""
    forget, one_minus_forget = forget_gates(np.array([40.0]), np.array([0.0]))
    assert forget == 1.0
    np.testing.assert_allclose(one_minus_forget, 0.5 * np.exp(-40.0), rtol=1e-15)
    gates = gates_of(np.array([-30.0, 0.0]), np.array([7.0]))
    np.testing.assert_allclose(gates.scale**2, -np.expm1(2.0 * gates.log_decay), rtol=1e-14)
    assert 0.0 < gates.scale < 1e-6
    own, weights = family("rg_lru"), {"gates.bias": np.array([-30.0, 0.0]), "decay_logit": np.array([7.0])}
    rate = own.decay_rates(weights, PRESETS["rglru-nano"])
    np.testing.assert_allclose(rate, 8.0 * np.log1p(np.exp(-7.0)) * np.exp(-30.0), rtol=1e-12)
    np.testing.assert_allclose(
        softplus(np.array([-700.0, 0.0, 700.0])), [np.exp(-700.0), np.log(2.0), 700.0], rtol=1e-15
    )
