"""What families of one gated linear recurrence share: matrices, masks, scan and their adjoints.

    pre = W_in z       decay, drive = gates(pre)       h_t = decay_t h_{t-1} + drive_t       y = W_out read_out(h, pre)

A family of this kind says what its gates and its read-out are, and the adjoint of each. Source of the common form:
Martin & Cundy 2018, section 2; its members differ in how decay and drive follow from the input.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np

from spec.mixers.base import Arrays, C, Masks, Mixed, MixerFamily, Side
from spec.reference.blocks import linear_adjoint
from spec.reference.scan import mask, scan, scan_adjoint


class Saved(NamedTuple):
    """What the adjoint of a linear recurrence needs; `gates` and `read_out` are what the family's own adjoints need."""

    z: np.ndarray
    weights: Arrays
    gates: Any
    masked_decay: np.ndarray
    states: np.ndarray
    state: np.ndarray | None
    masks: Masks
    read_out: Any
    gated: np.ndarray


class LinearRecurrence(MixerFamily[C]):
    """A family whose parameters are `input.weight`, the pre-activations, `output.weight`, and what its gates have."""

    activations: tuple[str, ...] = ("input", "gated", "output")
    recurrence = "gated"

    @abstractmethod
    def gates(self, pre_btx: np.ndarray, weights: Arrays, config: C) -> tuple[np.ndarray, np.ndarray, Any]:
        """Decay in [0, 1] and drive, [b, t, n] each, of the pre-activations, and what `gates_adjoint` needs."""

    @abstractmethod
    def gates_adjoint(
        self, saved: Any, grad_decay_btn: np.ndarray, grad_drive_btn: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Gradients of the pre-activations, and of the weights that the gates have, by path."""

    def read_out(
        self, states_btn: np.ndarray, pre_btx: np.ndarray, weights: Arrays, config: C
    ) -> tuple[np.ndarray, Any, dict[str, np.ndarray]]:
        """What `output` takes of the states; what the adjoint needs; activations on the way. The states by default."""
        return states_btn, None, {}

    def read_out_adjoint(
        self, saved: Any, grad_gated_btn: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | float, dict[str, np.ndarray]]:
        """Gradients of the states, of the pre-activations, and of the weights that the read-out has, by path."""
        return grad_gated_btn, 0.0, {}

    def forward(
        self, z_btd: np.ndarray, weights: Arrays, config: C, state_bn: np.ndarray | None, masks: Masks, side: Side
    ) -> Mixed:
        pre_btx = z_btd @ weights["input.weight"].T
        decay_btn, drive_btn, gates = self.gates(pre_btx, weights, config)
        masked_decay_btn, drive_btn = mask(decay_btn, drive_btn, *masks)
        states_btn, last_bn = scan(masked_decay_btn, drive_btn, state_bn)
        gated_btn, read_out, inside = self.read_out(states_btn, pre_btx, weights, config)
        y_btd = gated_btn @ weights["output.weight"].T
        saved = Saved(z_btd, weights, gates, masked_decay_btn, states_btn, state_bn, masks, read_out, gated_btn)
        return Mixed(y_btd, last_bn, saved, {"input": pre_btx, **inside, "gated": gated_btn, "output": y_btd})

    def adjoint(
        self, saved: Saved, grad_y_btd: np.ndarray, grad_last_bn: np.ndarray | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        grad_gated, grad_output = linear_adjoint(saved.gated, saved.weights["output.weight"], grad_y_btd)
        grad_states, grad_pre, read_out_gradients = self.read_out_adjoint(saved.read_out, grad_gated)
        grad_decay, grad_drive, grad_state = scan_adjoint(
            saved.masked_decay, saved.states, saved.state, grad_states, grad_last_bn
        )
        grad_decay, grad_drive = masked_gradients(grad_decay, grad_drive, saved.masks)
        grad_pre_gates, gate_gradients = self.gates_adjoint(saved.gates, grad_decay, grad_drive)
        grad_z, grad_input = linear_adjoint(saved.z, saved.weights["input.weight"], grad_pre + grad_pre_gates)
        gradients = {"input.weight": grad_input, **gate_gradients, **read_out_gradients, "output.weight": grad_output}
        return grad_z, gradients, grad_state

    def each_alone(
        self, z_btd: np.ndarray, weights: Arrays, config: C, given: Arrays
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        decay_btn, drive_btn, _ = self.gates(given["input"], weights, config)
        states_btn, last_bn = scan(decay_btn, drive_btn)
        gated_btn, _, inside = self.read_out(states_btn, given["input"], weights, config)
        pre_btx, y_btd = z_btd @ weights["input.weight"].T, given["gated"] @ weights["output.weight"].T
        return {"input": pre_btx, **inside, "gated": gated_btn, "output": y_btd}, last_bn, given["output"]

    def decay_rates(
        self, weights: Arrays, config: C, inside: Arrays | None = None, resets_bt: np.ndarray | None = None
    ) -> np.ndarray:
        """-ln decay."""
        x = weights["input.weight"].shape[0]
        pre_btx = np.zeros((1, 1, x)) if inside is None else inside["input"]
        return -np.log(self.gates(pre_btx, weights, config)[0])


def masked_gradients(
    grad_decay_btn: np.ndarray, grad_drive_btn: np.ndarray, masks: Masks
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of decay and drive as they were before the masks: zero where a mask has put a constant there."""
    if masks.resets is not None:
        grad_decay_btn = np.where(masks.resets[..., None], 0.0, grad_decay_btn)
    if masks.padding is not None:
        grad_decay_btn = np.where(masks.padding[..., None], 0.0, grad_decay_btn)
        grad_drive_btn = np.where(masks.padding[..., None], 0.0, grad_drive_btn)
    return grad_decay_btn, grad_drive_btn
