"""The model as a step of generation. Twin: jax_impl. Truth: spec/sampling.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spec.checkpoint.quantization import WEIGHTS
from spec.mixers import state_shape
from spec.sampling import Sampling, Step, check_tokens, complete
from spec.validation import require_known
from torch_impl.layers import COMPUTE, accumulate_dtype
from torch_impl.mixers import capabilities
from torch_impl.ops.cross_entropy import lm_head
from torch_impl.protocols import LanguageModel


def _eager(model: LanguageModel) -> Step:
    """Each operation on its own, for any number of tokens a row."""

    @torch.inference_mode()
    def step(tokens_bt: np.ndarray, states: Any) -> tuple[np.ndarray, Any]:
        check_tokens(tokens_bt, model.config.vocab_size)
        device = model.embedding.weight.device
        if isinstance(states, np.ndarray):
            states = torch.as_tensor(states, device=device)
        logits_bv, states = _advance(model, torch.as_tensor(tokens_bt, dtype=torch.long, device=device), states)
        return logits_bv.float().cpu().numpy(), states

    return step


def _advance(model: LanguageModel, tokens_bt: Tensor, states_lbd: Tensor | None) -> tuple[Tensor, Tensor]:
    hidden_btd, states_lbd = model.hidden(tokens_bt, states_lbd)
    return lm_head(hidden_btd[:, -1], model.embedding.weight, COMPUTE[model.compute_dtype]), states_lbd


def _graph(model: LanguageModel) -> Step:
    """One token a row replayed from a CUDA graph: one launch, whatever the number of layers; a prompt goes eagerly.

    Raises:
        NotImplementedError: the model is not on a GPU of NVIDIA or AMD.
    """
    device = model.embedding.weight.device
    if device.type != "cuda":
        raise NotImplementedError(f"decode method 'graph' records a CUDA graph, the model is on {device.type}")
    return _buffered(model, _record)


class _OneToken:
    """One token a row with everything at a fixed place: what a graph records.

    Replaying it reads tokens [b, 1] and states [l, b, n], writes logits [b, v], and leaves the new states where the old
    ones were. It reads the parameters where they lie as well, so that training them in place is seen.
    """

    def __init__(self, model: LanguageModel, b: int):
        weight, c = model.embedding.weight, model.config
        place = {"device": weight.device, "dtype": accumulate_dtype(model.compute_dtype)}
        self.model = model
        self.tokens_bt = torch.zeros((b, 1), device=weight.device, dtype=torch.long)
        self.states_lbd = torch.zeros(state_shape(c, b), **place)
        self.logits_bv = torch.zeros((b, c.vocab_size), **place)

    def __call__(self) -> None:
        logits_bv, states_lbd = _advance(self.model, self.tokens_bt, self.states_lbd)
        self.logits_bv.copy_(logits_bv)
        self.states_lbd.copy_(states_lbd)


def _buffered(model: LanguageModel, record: Callable[[_OneToken], Callable[[], None]]) -> Step:
    """A step whose single tokens go through fixed buffers; `record` turns what runs on them into what is run again.

    What is returned as states is a copy, not to be written to: any earlier one can be gone on from. Where the newest
    comes back, the buffer still holds it and nothing is copied in. Another number of rows, or parameters that have
    moved, record anew.
    """
    eager, parameters = _eager(model), tuple(model.parameters())
    recorded: dict[Any, tuple[_OneToken, Callable[[], None]]] = {}
    newest: Any = None

    @torch.inference_mode()
    def step(tokens_bt: np.ndarray, states: Any) -> tuple[np.ndarray, Any]:
        nonlocal newest
        if states is None or tokens_bt.shape[1] != 1:
            return eager(tokens_bt, states)
        check_tokens(tokens_bt, model.config.vocab_size)
        key = len(tokens_bt), *(parameter.data_ptr() for parameter in parameters)
        if key not in recorded:
            recorded.clear()  # one graph's memory at a time
            buffers = _OneToken(model, len(tokens_bt))
            recorded[key], newest = (buffers, record(buffers)), None
        buffers, run = recorded[key]
        if states is not newest:
            if tuple(states.shape) != tuple(buffers.states_lbd.shape):
                shapes = tuple(buffers.states_lbd.shape), tuple(states.shape)
                raise ValueError(f"the states need shape {shapes[0]}, got {shapes[1]}")
            buffers.states_lbd.copy_(torch.as_tensor(states))
        buffers.tokens_bt.copy_(torch.as_tensor(tokens_bt, dtype=torch.long))
        newest = None  # where this step fails the buffer holds no one's states
        run()
        newest = buffers.states_lbd.clone()
        return buffers.logits_bv.to("cpu", torch.float32, copy=True).numpy(), newest

    return step


def _record(run: _OneToken) -> Callable[[], None]:
    """Capture what `run` does on its buffers, after warming it up beside the current stream, as CUDA asks for."""
    with torch.cuda.device(run.tokens_bt.device):
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    return graph.replay


def _numba(model: LanguageModel, weights: str) -> Step:
    return _compiled(model, weights, _eager)


METHODS: dict[str, Callable[[LanguageModel], Step]] = {"eager": _eager, "graph": _graph}
_OF_NUMBA = {weights: "numba" if weights == "float32" else f"numba_{weights}" for weights in WEIGHTS}
try:
    from torch_impl.ops.decode.numba import compiled as _compiled
    from torch_impl.ops.decode.numba import refusal as _refusal
except ImportError:

    def _refusal(model: LanguageModel) -> str | None:
        return "needs Numba"
else:
    METHODS |= {method: partial(_numba, weights=weights) for weights, method in _OF_NUMBA.items()}


def choose_method(model: LanguageModel, weights: str = "float32") -> str:
    """The method that `auto` takes to generate from a model where it is now."""
    require_known("weights", weights, WEIGHTS)
    if _refusal(model) is None:
        return _OF_NUMBA[weights]
    blocks: Any = model.blocks
    captured = all(capabilities(model.config, block.mixer.method).graph_capture for block in blocks)
    return "graph" if model.embedding.weight.device.type == "cuda" and captured else "eager"


def make_step(model: LanguageModel, method: str = "auto", weights: str = "float32") -> Step:
    """(tokens [b, t], states or None) -> (logits of the last position [b, v], states), NumPy outside.

    States may come as a NumPy array [l, b, n], and leave as the framework's own. The logits of the positions before the
    last are never made. Rows are independent streams.

    Args:
        model: read at each step: parameters that change in place between two steps count from the next on. Methods
            that store weights in fewer bytes read it once.
        method: a key of METHODS, or `auto`.
        weights: what the matrices have been rounded to: `auto` stores them so where it can.

    Raises:
        ValueError: an unknown method or weights, or a weight that cannot be rounded.
        NotImplementedError: the method does not run where the model is.
    """
    method = choose_method(model, weights) if method == "auto" else method
    require_known("decode method", method, METHODS)
    return METHODS[method](model)


def generate(
    model: LanguageModel, prompt_bt: np.ndarray, max_length: int, sampling: Sampling, method: str = "auto"
) -> np.ndarray:
    """The prompt and what follows it, [b, max_length]."""
    return complete(make_step(model, method), prompt_bt, max_length, sampling)
