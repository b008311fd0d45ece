"""One token a row, replayed from a CUDA graph. No twin: JAX compiles. Truth: spec/reference/model.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from spec.inputs import FLOATING, require_array
from spec.mixers import state_shape
from spec.sampling import Step, check_tokens
from torch_impl.layers import accumulate_dtype
from torch_impl.ops.decode.eager import advance, eager_step
from torch_impl.protocols import LanguageModel


def graph_step(model: LanguageModel) -> Step:
    """One token a row replayed from a CUDA graph: one launch, whatever the number of layers; a prompt goes eagerly.

    Source: torch.cuda.CUDAGraph, in the form of its documentation, section "CUDA Graphs".

    Raises:
        NotImplementedError: the model is not on a GPU of NVIDIA or AMD.
    """
    device = model.embedding.weight.device
    if device.type != "cuda":
        raise NotImplementedError(f"decode method 'graph' records a CUDA graph, the model is on {device.type}")
    return buffered_step(model, _record)


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
        logits_bv, states_lbd = advance(self.model, self.tokens_bt, self.states_lbd)
        self.logits_bv.copy_(logits_bv)
        self.states_lbd.copy_(states_lbd)


def buffered_step(model: LanguageModel, record: Callable[[_OneToken], Callable[[], None]]) -> Step:
    """A step whose single tokens go through fixed buffers; `record` turns what runs on them into what is run again.

    What is returned as states is a copy, not to be written to: any earlier one can be gone on from. Where the newest
    comes back, the buffer still holds it and nothing is copied in. Another number of rows, or parameters that have
    moved, record anew.
    """
    eager, parameters = eager_step(model), tuple(model.parameters())
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
            require_array("states", states, "lbn", tuple(buffers.states_lbd.shape), FLOATING)
            buffers.states_lbd.copy_(torch.as_tensor(states, device=buffers.states_lbd.device))
        buffers.tokens_bt.copy_(torch.as_tensor(tokens_bt, dtype=torch.long, device="cpu"))
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
