"""The model in plain NumPy: the forward pass, the loss and every gradient, by hand.

    x      = E[tokens]
    x     += s Mixer(RMSNorm(x));  x += s SwiGLU(RMSNorm(x))        s = 1 / sqrt(2 l), l blocks, a mixer of any family
    logits = RMSNorm(x) E^T

The states are [l, b, n], n the largest state of a block: a block that has fewer numbers reads and writes the first
ones, and the rest stays zero. Read this file first: both backends compute exactly this.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spec.config import ModelConfig
from spec.inputs import (
    IGNORED_LABEL,
    INEXACT,
    check_call,
    check_label_values,
    check_labels,
    check_least,
    check_token_values,
    require_types,
)
from spec.mixers import family
from spec.mixers.base import Arrays, Masks
from spec.parameters import check_parameters
from spec.reference.blocks import block, block_adjoint, rms_norm, rms_norm_adjoint, within


def forward(
    params: Arrays,
    config: ModelConfig,
    tokens: np.ndarray,
    states: np.ndarray | None = None,
    resets: np.ndarray | None = None,
    padding: np.ndarray | None = None,
    dtype: Any = np.float64,
    **side: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits and final states.

    Args:
        params: every parameter by path.
        config: the model.
        tokens: integers, [b, t].
        states: initial states, [l, b, n]; None is zero.
        resets: true clears the state before token t is absorbed, [b, t].
        padding: true at positions that change nothing, [b, t].
        dtype: of the computation; float64 is the truth.
        side: what the family's mixer reads besides, by name, see its `side_inputs`; None is left out.

    Returns:
        logits [b, t, v], states [l, b, n].

    Raises:
        ValueError: a parameter, token, state, mask or side input that does not fit the configuration (spec/inputs.py).
    """
    logits_btv, states_lbd, *_ = _forward(params, config, tokens, states, resets, padding, dtype, **side)
    return logits_btv, states_lbd


def activations(
    params: Arrays,
    config: ModelConfig,
    tokens: np.ndarray,
    states: np.ndarray | None = None,
    resets: np.ndarray | None = None,
    padding: np.ndarray | None = None,
    dtype: Any = np.float64,
    **side: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """What each module gives, in the order of the forward pass.

    The key is the module's path (`blocks.0.mixer.input`, `blocks.0`), and besides: what a mixer's recurrence gives,
    the input of `mixer.output`; `mixer.state`, the last state; `mlp.product`, the input of `mlp.output`; `logits`.

    Args:
        params, config, tokens, states, resets, padding, dtype, side: as in `forward`.
    """
    return _forward(params, config, tokens, states, resets, padding, dtype, **side)[2]


def loss_and_gradients(
    params: Arrays,
    config: ModelConfig,
    tokens: np.ndarray,
    labels: np.ndarray,
    states: np.ndarray | None = None,
    resets: np.ndarray | None = None,
    padding: np.ndarray | None = None,
    final_state_gradient: np.ndarray | None = None,
    dtype: Any = np.float64,
    **side: np.ndarray | None,
) -> tuple[float, dict[str, np.ndarray], np.ndarray]:
    """Mean cross-entropy in nats and its gradient to every parameter and to the initial states.

    Args:
        labels: target of each position, [b, t]; -100 is ignored, all ignored gives loss 0; others are refused.
        final_state_gradient: [l, b, n], added at the final states, for a loss that also depends on them.
        params, config, tokens, states, resets, padding, dtype, side: as in `forward`.

    Returns:
        loss, gradients by path, gradient of the initial states [l, b, n].
    """
    logits_btv, _, _, saved = _forward(params, config, tokens, states, resets, padding, dtype, **side)
    loss, logits_gradient = cross_entropy(logits_btv, labels)
    return loss, *_adjoint(params, config, tokens, saved, logits_gradient, final_state_gradient)


def input_gradients(
    params: Arrays, config: ModelConfig, tokens: np.ndarray, labels_b: np.ndarray, resets: np.ndarray | None = None
) -> tuple[float, np.ndarray]:
    """Cross-entropy at the last position alone, in nats, and its gradient to every x_t = E[token_t].

    How much each token that was read matters to the next one. The logits' own use of E is not part of it.

    Args:
        labels_b: target of the last position, [b]; the loss is the mean over rows.
        params, config, tokens, resets: as in `forward`.

    Returns:
        loss, gradient [b, t, d].
    """
    params = _checked(params, config, tokens, np.float64, resets=resets)
    x_btd, _, _, blocks = _through_blocks(params, config, tokens, None, resets)
    hidden_b1d, final = rms_norm(x_btd[:, -1:], params["final_norm.weight"], config.norm_eps)
    loss, logits_gradient = cross_entropy(hidden_b1d @ params["embedding.weight"].T, labels_b[:, None])
    x_gradient = np.zeros_like(x_btd)
    x_gradient[:, -1:], _ = rms_norm_adjoint(final, logits_gradient @ params["embedding.weight"])
    return loss, _blocks_adjoint(blocks, config, x_gradient)[0]


def cross_entropy(logits_btv: np.ndarray, labels_bt: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean of -log softmax(logits)[label] over the labels that are not -100, and its gradient to the logits.

    Raises:
        ValueError: labels that are not integers [b, t], or one that is neither -100 nor in [0, v).
    """
    require_types((np.ndarray,), labels=labels_bt)
    check_labels(labels_bt, logits_btv.shape[:-1])
    check_label_values(labels_bt, logits_btv.shape[-1])
    counted_bt = labels_bt != IGNORED_LABEL
    count = max(int(counted_bt.sum()), 1)
    target_bt1 = np.where(counted_bt, labels_bt, 0)[..., None]
    shifted_btv = logits_btv - np.real(logits_btv).max(axis=-1, keepdims=True)
    weight_btv = np.exp(shifted_btv)
    total_bt1 = weight_btv.sum(axis=-1, keepdims=True)
    nats_bt = (np.log(total_bt1) - np.take_along_axis(shifted_btv, target_bt1, axis=-1))[..., 0]
    gradient_btv = weight_btv / total_bt1
    at_target = np.take_along_axis(gradient_btv, target_bt1, axis=-1) - 1.0
    np.put_along_axis(gradient_btv, target_bt1, at_target, axis=-1)
    gradient_btv *= counted_bt[..., None] / logits_btv.dtype.type(count)
    return np.where(counted_bt, nats_bt, 0.0).sum() / count, gradient_btv


def _checked(
    params: Arrays,
    config: ModelConfig,
    tokens: np.ndarray,
    dtype: Any,
    states: Any = None,
    resets: Any = None,
    padding: Any = None,
) -> dict[str, np.ndarray]:
    check_parameters(config, params)
    require_types((np.ndarray,), tokens=tokens, states=states, resets=resets, padding=padding)
    check_call(tokens, config.n_layers, family(config).state_size(config), states, resets, padding, INEXACT)
    check_token_values(tokens, config.vocab_size)
    return {path: np.asanyarray(array, dtype) for path, array in params.items()}


def _through_blocks(
    params: Arrays,
    config: ModelConfig,
    tokens: np.ndarray,
    states: Any = None,
    resets: Any = None,
    padding: Any = None,
    **side: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], Any]:
    own = family(config)
    given, n = own.checked_side(config, side, tokens.shape), own.state_size(config)
    for name, least in own.least_values(config).items():
        if name in given:
            check_least(name, given[name], least)
    x_btd = params["embedding.weight"][tokens]
    outputs, last_states, saved = {"embedding": x_btd}, [], []
    for i in range(config.n_layers):
        weights, (own_of_block, own_config) = within(params, f"blocks.{i}."), own.of_block(config, i)
        size = own_of_block.state_size(own_config)
        state_bn = None if states is None else np.asanyarray(states[i][:, :size], x_btd.dtype)
        of_layer = own.of_layer(config, given, i)
        x_btd, last_bn, of_block, saved_block = block(
            x_btd, weights, own_config, state_bn, Masks(resets, padding), of_layer
        )
        outputs |= {f"blocks.{i}.{name}": array for name, array in of_block.items()} | {f"blocks.{i}": x_btd}
        last_states.append(_pad_state(last_bn, n))
        saved.append(saved_block)
    return x_btd, np.stack(last_states), outputs, saved


def _forward(
    params: Arrays,
    config: ModelConfig,
    tokens: np.ndarray,
    states: Any,
    resets: Any,
    padding: Any,
    dtype: Any,
    **side: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], Any]:
    params = _checked(params, config, tokens, dtype, states, resets, padding)
    x_btd, states_lbd, outputs, saved = _through_blocks(params, config, tokens, states, resets, padding, **side)
    hidden_btd, final = rms_norm(x_btd, params["final_norm.weight"], config.norm_eps)
    logits_btv = hidden_btd @ params["embedding.weight"].T
    outputs |= {"final_norm": hidden_btd, "logits": logits_btv}
    return logits_btv, states_lbd, outputs, (saved, final, hidden_btd)


def _adjoint(
    params: Arrays,
    config: ModelConfig,
    tokens: np.ndarray,
    saved: Any,
    logits_gradient: np.ndarray,
    final_state_gradient: np.ndarray | None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    blocks, final, hidden_btd = saved
    embedding_vd = np.asanyarray(params["embedding.weight"], hidden_btd.dtype)
    hidden_gradient = logits_gradient @ embedding_vd
    embedding_gradient = np.einsum("btv,btd->vd", logits_gradient, hidden_btd)
    x_gradient, of_final_norm = rms_norm_adjoint(final, hidden_gradient)
    x_gradient, gradients, of_states = _blocks_adjoint(blocks, config, x_gradient, final_state_gradient)
    np.add.at(embedding_gradient, tokens, x_gradient)
    gradients |= {"embedding.weight": embedding_gradient, "final_norm.weight": of_final_norm}
    return {path: gradients[path] for path in params}, of_states


def _blocks_adjoint(
    blocks: Any, config: ModelConfig, x_gradient: np.ndarray, final_state_gradient: np.ndarray | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    gradients: dict[str, np.ndarray] = {}
    own, state_gradients = family(config), []
    for i in reversed(range(config.n_layers)):
        own_of_block, own_config = own.of_block(config, i)
        size = own_of_block.state_size(own_config)
        of_last = None if final_state_gradient is None else final_state_gradient[i][:, :size]
        x_gradient, of_block, of_state = block_adjoint(blocks[i], own_config, x_gradient, of_last)
        state_gradients.append(_pad_state(of_state, own.state_size(config)))
        gradients |= {f"blocks.{i}.{name}": array for name, array in of_block.items()}
    return x_gradient, gradients, np.stack(state_gradients[::-1])


def _pad_state(state_bn: np.ndarray, n: int) -> np.ndarray:
    """The state of a block among those of a model, whose largest has n numbers; what it has not is zero."""
    rest = n - state_bn.shape[-1]
    return np.pad(state_bn, ((0, 0), (0, rest))) if rest else state_bn
