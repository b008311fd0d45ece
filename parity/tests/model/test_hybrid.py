"""Hybrids: blocks of several families in a pattern, and states that are as wide as the largest of them."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest

from parity.proof import adapters
from parity.proof.layer_diff.diff import first_outside, locate
from parity.proof.problems.cases import ModelCase, perturbed_parameters
from parity.proof.problems.complex_step import complex_step
from spec import initial_parameters, parameter_table
from spec.config import config_to_json
from spec.mixers import config_from_json, families, family
from spec.mixers.hybrid import FAMILY
from spec.presets import preset
from spec.reference import forward, loss_and_gradients
from tools.plot.compute_half_lives import half_lives, half_lives_on_text

HERE = next(name for name in adapters.FRAMEWORKS if not adapters.missing(name))
SMALL = FAMILY.small_config()
SIZES = [family(own).state_size(own) for own in (FAMILY.of_block(SMALL, i)[1] for i in range(2))]
CASE = ModelCase(5, "some", "left", "none", False, 3, 2, SMALL)


def test_the_pattern_repeats_over_the_blocks_with_each_familys_own_parameters() -> None:
    config = preset("hybrid-nano")
    names = [FAMILY.of_block(config, i)[0].name for i in range(config.n_layers)]
    assert names == ["liquidnet", "liquidnet", "rg_lru", "liquidnet"]
    rows = {row.path: row.shape for row in parameter_table(config)}
    for i, name in enumerate(names):
        own, own_config = FAMILY.of_block(config, i)
        assert own is families()[name] and own_config.d_model == config.d_model and own_config.n_layers == 4
        prefix = f"blocks.{i}.mixer."
        found = {path.removeprefix(prefix): shape for path, shape in rows.items() if path.startswith(prefix)}
        assert found == {row.path: row.shape for row in own.layer_parameters(own_config, i)}
    # Of a pattern that is longer than the model, what no block has counts for nothing.
    short = replace(config, n_layers=2, layers=("liquidnet", "liquidnet", "rg_lru"))
    assert FAMILY.state_size(short) == families()["liquidnet"].state_size(short.members["liquidnet"][1])
    # What follows from the position is of the position in the model.
    bounds = replace(config, layers=("mingru", "hgrn"), mixers=())
    own = families()["hgrn"].Config(n_layers=4, d_model=128)
    found, alone = (initial_parameters(one)["blocks.3.mixer.lower_bound"] for one in (bounds, own))
    np.testing.assert_array_equal(found, alone)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"layers": ()}, "layers is empty; name a family .*, of liquidnet, liquid_ssm"),
        ({"layers": "mingru"}, "layers must be a list of words, got 'mingru'"),
        ({"layers": ("mingru", "rglru")}, "unknown model family 'rglru'; .* liquidnet, .*; did you mean 'rg_lru'"),
        ({"layers": ("hybrid",)}, "not of hybrids; choose of liquidnet, liquid_ssm"),
        ({"layers": ("mingru",)}, "mixers has rg_lru.d_rnn=6, and no layer is rg_lru; give mixers without it"),
        ({"mixers": ("d_rnn=6",)}, "words like rg_lru.d_rnn=128, FAMILY.FIELD=VALUE, got 'd_rnn=6'"),
        ({"mixers": (".d_rnn=6",)}, "FAMILY.FIELD=VALUE, got '.d_rnn=6'"),
        ({"mixers": ("rg_lru.d_rn=6",)}, "RG-LRU has no field 'd_rn' of its own; did you mean 'd_rnn'"),
        ({"mixers": ("rg_lru.n_layers=6",)}, "no field 'n_layers' of its own"),
        ({"mixers": ("rg_lru.d_rnn=6", "rg_lru.d_rnn=8")}, "gives rg_lru.d_rnn twice"),
        ({"mixers": ("rg_lru.d_rnn=many",)}, "d_rnn must be an integer of at least 1, got 'many'"),
        ({"mixers": ("rg_lru.d_rnn=" + "[" * 100_000,)}, "d_rnn must be an integer of at least 1, got '"),
        ({"layers": ("liquid_ssm",), "mixers": ("liquid_ssm.exploration_rate=1",)}, "reads noise .* leave out"),
    ],
)
def test_what_is_no_pattern_is_refused(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)
    stored = json.loads(json.dumps({**config_to_json(SMALL), **change}))
    with pytest.raises(ValueError, match=message):
        config_from_json(stored)


def test_values_of_mixers_are_read_by_their_kind() -> None:
    words = ("liquid_ssm.state=diagonal", "liquid_ssm.d_state=4", "liquid_ssm.eta=0.25", "liquidnet.delta_min=1e-3")
    config = replace(SMALL, layers=("liquid_ssm", "liquidnet"), mixers=words)
    ssm, net = (config.members[name][1] for name in config.layers)
    assert (ssm.state, ssm.d_state, ssm.eta, net.delta_min) == ("diagonal", 4, 0.25, 1e-3)
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config and hash(config)


def test_the_reference_differentiates_what_it_computes() -> None:
    """One weight of each block and the states by complex steps; the rest of a narrow state is neither read nor set."""
    params, arrays = CASE.parameters, CASE.arrays()
    assert SIZES == [8, 24] and arrays.states.shape == (2, 2, 24) and arrays.states[0, :, 8:].all()
    params = {path: x.astype(np.float64) for path, x in params.items()}
    _, gradients, grad_states = loss_and_gradients(params, SMALL, *arrays)

    def total(params, states):
        given = arrays.tokens, states, arrays.resets, arrays.padding
        last = forward(params, SMALL, *given, dtype=np.complex128)[1]
        loss, *_ = loss_and_gradients(params, SMALL, *arrays._replace(states=states), dtype=np.complex128)
        return loss + (arrays.final_state_gradient * last).sum()

    exact = complex_step(lambda x: total(params, x), arrays.states.astype(np.float64))
    np.testing.assert_allclose(grad_states, exact, rtol=1e-10, atol=1e-12)
    assert not grad_states[0, :, 8:].any() and grad_states[0, :, :8].any() and grad_states[1].any()
    for path in ("blocks.0.mixer.decay_bias", "blocks.1.mixer.decay_logit"):
        exact = complex_step(lambda x, path=path: total({**params, path: x}, arrays.states), params[path])
        np.testing.assert_allclose(gradients[path], exact, rtol=1e-10, atol=1e-12, err_msg=path)


def test_the_rest_of_a_narrow_state_is_neither_read_nor_set(adapter) -> None:
    """Exactly: the proof of the model holds it to a bound. Two families that compile fast."""
    config = replace(SMALL, layers=("liquidnet", "mingru"), mixers=("mingru.d_state=11",))
    case = replace(CASE, config=config)
    params, arrays = case.parameters, case.arrays()
    loss, gradients, grad_states, last = adapter.loss_and_gradients(params, config, *arrays)
    assert last.shape == (2, 2, 11) and not last[0, :, 8:].any() and last[0, :, :8].all() and last[1].all()
    assert not grad_states[0, :, 8:].any() and grad_states[0, :, :8].any() and grad_states[1].any()
    assert all(x.any() for path, x in gradients.items() if ".mixer." in path)
    cleared = arrays.states.copy()
    cleared[0, :, 8:] = 0.0
    assert adapter.loss_and_gradients(params, config, *arrays._replace(states=cleared))[0] == loss
    with pytest.raises(ValueError, match=r"states \[l, b, n\] must have shape \(2, 2, 11\)"):
        adapter.model(params, config, arrays.tokens, arrays.states[..., :8])


def test_a_backend_can_what_all_blocks_can(adapter) -> None:
    mixers, decode = (adapters.load_module(adapter.NAME, name) for name in ("mixers", "ops.decode"))
    able = mixers.capabilities(SMALL)
    assert able.compile and able.context_parallel and able.scan_methods and not able.fused_decode
    mixed = replace(SMALL, layers=("liquidnet", "liquid_ssm"), mixers=("liquid_ssm.state=diagonal",))
    assert not mixers.capabilities(mixed).compile and not mixers.capabilities(mixed).scan_methods
    model = adapters.load_module(adapter.NAME, "model")
    assert model.choose_method(SMALL, 2, 8) in mixers.mixer_module(SMALL).METHODS
    chosen = {model.choose_method(one, 2, 8) for _, one in mixed.members.values()}
    assert model.choose_method(mixed, 2, 8) == (chosen.pop() if len(chosen) == 1 else "auto")
    with pytest.raises(ValueError, match="unknown mixer method 'associate'"):
        model.build(SMALL, method="associate")
    net = model.build(replace(SMALL, layers=("liquidnet",), mixers=()))
    assert decode.choose_method(net) in ("eager", "graph", "jit")
    if "numba" in decode.METHODS:
        with pytest.raises(NotImplementedError, match="steps a LiquidNet, the model is a hybrid"):
            decode.make_step(net, "numba")


# torch's own tracing makes what torch has deprecated.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_the_loss_is_one_graph_of_torch() -> None:
    """Nothing on the way asks the registry, whose look into folders no compiler follows."""
    torch = pytest.importorskip("torch", reason="JAX compiles everywhere")
    config = replace(SMALL, layers=("liquidnet", "mingru"), mixers=("mingru.d_state=11",))
    net = adapters.load_module("torch", "model").build(config, method="sequential")
    torch.compiler.reset()
    tokens = torch.arange(6).reshape(2, 3)
    compiled = torch.compile(net.loss, backend="eager", fullgraph=True)(tokens, tokens)
    torch.compiler.reset()
    for found, expected in zip(compiled, net.loss(tokens, tokens), strict=True):
        np.testing.assert_array_equal(found.detach().numpy(), expected.detach().numpy())


def test_generation_goes_on_from_states(adapter) -> None:
    """What a step leaves is as wide as the largest state; that it is the right one, the checks of a family show."""
    config = replace(SMALL, layers=("mingru", "liquidnet"), mixers=("mingru.d_state=11",))
    params, tokens = perturbed_parameters(config, 1), np.array([[3, 7]])
    step = adapter.make_step(params, config)
    _, part = step(tokens[:, :1], None)
    _, part = step(tokens[:, 1:], part)
    assert part.shape == (2, 1, 11) and not np.asarray(part)[1, :, 8:].any()


def test_side_inputs_are_those_that_any_block_reads_and_all_layers_share() -> None:
    config = replace(SMALL, layers=("liquidnet", "liquid_ssm"), mixers=("liquid_ssm.d_state=4",))
    assert [one.name for one in FAMILY.side_inputs(config)] == ["dt_scale"]
    params, tokens = perturbed_parameters(config, 1), np.arange(6).reshape(2, 3)
    scaled = forward(params, config, tokens, gaps=np.full((2, 3), 3.0))[0]
    assert np.abs(scaled - forward(params, config, tokens)[0]).max() > 1e-6
    with pytest.raises(ValueError, match="a hybrid takes no side input 'noise', its own are dt_scale, gaps"):
        forward(params, config, tokens, noise=np.ones((2, 2, 3, 8)))


def test_a_fault_is_found_in_its_block() -> None:
    """Each block's tensors are those of its family; a changed weight of the second is found there."""
    module = importlib.import_module(f"parity.proof.layer_diff.activations_{HERE}")
    params, tokens = perturbed_parameters(SMALL, 2), np.arange(8)[None]
    wrong = {**params, "blocks.1.mixer.decay_logit": params["blocks.1.mixer.decay_logit"] + np.float32(0.5)}
    traces = [module.activations(module.load(SMALL, given), tokens) for given in (params, wrong)]
    assert "blocks.1.mixer.convolution" in traces[0] and "blocks.0.mixer.convolution" not in traces[0]
    found = first_outside(locate(params, SMALL, tokens, traces))
    assert found is not None and found.tensor == "blocks.1.mixer.gated" and found.outside == [1]


def test_half_lives_are_each_blocks_own() -> None:
    config = replace(SMALL, layers=("liquidnet", "rg_lru"))
    params, tokens = perturbed_parameters(config, 2), np.arange(8)[None]
    found = half_lives(params, config), half_lives_on_text(params, config, tokens, np.zeros((1, 8), bool))
    for one in found:
        assert one.shape == (2, 8) and np.isfinite(one[0]).all() and list(np.isnan(one[1])) == [False] * 6 + [True] * 2
