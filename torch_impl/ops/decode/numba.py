"""One token a row on a CPU, a whole step compiled as one. No twin: JAX compiles. Truth: spec/reference/model.py."""

from __future__ import annotations

import copy
import math
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from spec.checkpoint.quantization import quantize, rounded
from spec.inputs import FLOATING, require_array
from spec.mixers import family, state_shape
from spec.sampling import Step, check_tokens
from torch_impl.checkpoint.native import dump_parameters, load_parameters, named_parameters
from torch_impl.kernels.numba import decode, numba, one_at_a_time, threads
from torch_impl.mixers import capabilities
from torch_impl.ops.decode.eager import eager_step
from torch_impl.protocols import LanguageModel

#: Rows up to which one row of weights after the other is faster than a matrix product, on two cores.
MOST_ROWS = 16

#: Matmuls of a layer in order: kind, matrix, norm of what it reads, bias.
_MATMULS = (
    (decode.GATES, "mixer.input", "mixer_norm", "mixer.decay_bias"),
    (decode.ADD, "mixer.output", None, None),
    (decode.SWIGLU, "mlp.input", "mlp_norm", None),
    (decode.ADD, "mlp.output", None, None),
)
_NONE = np.empty(0, np.float32)


def refusal(model: LanguageModel) -> str | None:
    """Why the compiled step cannot compute a model where it is now; None where it can."""
    weight: Any = model.embedding.weight
    if not capabilities(model.config).fused_decode:
        own = family(model.config)
        return f"steps a LiquidNet, the model is {own.article} {own.title}"
    if model.compute_dtype != "float32":
        return f"computes in float32, the model in {model.compute_dtype}"
    if any(parameter.dtype != torch.float32 or not parameter.is_contiguous() for parameter in model.parameters()):
        return "reads contiguous float32, and not all parameters are"
    if weight.device.type != "cpu":
        return f"runs on processors, the model is on {weight.device.type}"
    if hasattr(weight, "full_tensor"):
        return "needs whole parameters, each process has a part of these"
    return None


def numba_step(model: LanguageModel, weights: str = "float32") -> Step:
    """One token a row by a compiled function, for up to MOST_ROWS rows; more rows, or more tokens, go eagerly.

    float32 weights are read at each step where they lie; others are packed now, and the model is read no more.

    Args:
        model: of a family with a fused decode step. Prompts go through a copy that is rounded, where it is not.
        weights: one of spec.checkpoint.quantization.WEIGHTS, how the matrices are stored.

    Raises:
        NotImplementedError: the step does not know the mixer, or the model is not in float32 on a processor.
        ValueError: a weight cannot be rounded.
    """
    why = refusal(model)
    if why is not None:
        raise NotImplementedError(f"decode by Numba {why}")
    if weights != "float32":
        model = _of_rounded(model, weights)
    eager, compiled = eager_step(model), _Compiled(model, weights)

    @torch.inference_mode()
    def step(tokens_bt: np.ndarray, states: Any) -> tuple[np.ndarray, Any]:
        if tokens_bt.shape[1:] != (1,) or not 1 <= len(tokens_bt) <= MOST_ROWS:
            return eager(tokens_bt, states)
        return compiled(tokens_bt[:, 0], states)

    return step


def _of_rounded(model: LanguageModel, weights: str) -> LanguageModel:
    parameters = dump_parameters(model)
    fit = rounded(parameters, weights)
    if all(np.array_equal(fit[path], array) for path, array in parameters.items()):
        return model
    model = copy.deepcopy(model)
    load_parameters(model, fit)
    return model


class _Compiled:
    """What the compiled step reads, and the memory that it works in."""

    def __init__(self, model: LanguageModel, weights: str):
        self.model, self.weights = model, weights
        self.parameters = named_parameters(model)
        self.places = tuple(self.parameters.values()) if weights == "float32" else ()
        c: Any = model.config
        kept = math.exp(-c.delta_min), -math.expm1(-c.delta_min)
        self.constants = np.asarray([*kept, c.residual_scale, c.norm_eps], np.float32)
        self.work: dict[int, tuple[np.ndarray, ...]] = {}
        self.read: Any = None
        self.stored = self._stored()

    def __call__(self, tokens_b: np.ndarray, states: Any) -> tuple[np.ndarray, Tensor]:
        c: Any = self.model.config
        b = len(tokens_b)
        check_tokens(tokens_b, c.vocab_size)
        shape = state_shape(c, b)
        if states is not None:
            require_array("states", states, "lbn", shape, FLOATING)
        # A program may have set other defaults, of the dtype and of the device.
        place: Any = {"dtype": torch.float32, "device": "cpu"}
        states = torch.zeros(shape, **place) if states is None else torch.as_tensor(states, **place)
        last, logits_bv = torch.empty(shape, **place), np.empty((b, c.vocab_size), np.float32)
        count = threads()
        with one_at_a_time:  # the memory to work in is one step's, and of Numba's pools one bears one kernel alone
            if count > 1:
                numba.set_num_threads(count)
            decode.step(
                count, tokens_b.astype(np.int64), *self._stored(), self.constants, states.contiguous().numpy(),
                last.numpy(), logits_bv, *self._work(b),
            )  # fmt: skip
        return logits_bv, last

    def _work(self, b: int) -> tuple[np.ndarray, ...]:
        if b not in self.work:
            d, f = self.model.config.d_model, self.model.config.d_ff
            self.work[b] = tuple(np.empty((b, width), np.float32) for width in (d, d, 3 * d, d, 2 * f, f))
        return self.work[b]

    def _stored(self) -> tuple[np.ndarray, ...]:
        """Table of matmuls, embedding and its scales; anew where a parameter has moved."""
        read = [parameter.data_ptr() for parameter in self.places]
        if read == self.read:
            return self.stored
        # Kept as long as their addresses are.
        self.arrays = {path: self._matrix(path, p) for path, p in self.parameters.items()}
        rows = [self._matmul_row(f"blocks.{i}.", *row) for i in range(self.model.config.n_layers) for row in _MATMULS]
        rows.append(self._matmul_row("", decode.LM_HEAD, "embedding", "final_norm", None))
        self.stored = np.array(rows, np.uint64), *self.arrays["embedding.weight"]
        self.read = read
        return self.stored

    def _matmul_row(self, block: str, kind: int, matrix: str, norm: str | None, bias: str | None) -> tuple[int, ...]:
        """A row of decode.step's table."""
        weight_oi, scale_o = self.arrays[f"{block}{matrix}.weight"]
        norm_d = self.arrays[f"{block}{norm}.weight"][0] if norm else _NONE
        bias_d = self.arrays[f"{block}{bias}"][0] if bias else _NONE
        return *(array.ctypes.data if len(array) else 0 for array in (weight_oi, scale_o, norm_d, bias_d)), kind

    def _matrix(self, path: str, parameter: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """A parameter as it is stored, and the scales of its rows where it has any."""
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu" or not parameter.is_contiguous():
            raise NotImplementedError(f"decode by Numba reads contiguous float32 on a processor; {path} is not")
        array = parameter.detach().numpy()
        if array.ndim == 1 or self.weights == "float32":
            return array, _NONE
        if self.weights == "int8":
            return quantize(array)
        return array.astype(ml_dtypes.bfloat16).view(np.uint16), _NONE
