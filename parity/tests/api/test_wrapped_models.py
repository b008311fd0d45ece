"""Parameters in and out of a model that PyTorch has wrapped, or that is no model: the table's paths, or one line."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from parity.proof import adapters
from parity.proof.problems.cases import perturbed_parameters
from spec.mixers import families
from spec.parameters import parameter_table

CONFIG = families()["hybrid"].small_config()
TRUTH = perturbed_parameters(CONFIG, 5)


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="its wrappers")


@pytest.fixture
def model(torch) -> Any:
    return adapters.load_module("torch", "model").build(CONFIG)


def native(backend: str = "torch") -> Any:
    return adapters.load_module(backend, "checkpoint.native")


def compiled(module: Any) -> Any:
    import torch

    return torch.compile(module, backend="eager")


def data_parallel(module: Any) -> Any:
    import torch

    return torch.nn.DataParallel(module)


def blocks_compiled(module: Any) -> Any:
    for i, block in enumerate(module.blocks):
        module.blocks[i] = compiled(block)
    return module


def block_checkpointed(module: Any) -> Any:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    module.blocks[1] = checkpoint_wrapper(module.blocks[1])
    return module


WRAPS = {
    "compiled": compiled,
    "data parallel": data_parallel,
    "each block compiled": blocks_compiled,
    "one block checkpointed": block_checkpointed,
    "compiled inside data parallel": lambda module: data_parallel(compiled(blocks_compiled(module))),
}


def test_a_part_of_a_model_may_be_called_module(torch):
    """It is no wrapper: two such parts do not fall together."""
    part = torch.nn.ModuleDict({"module": torch.nn.Linear(2, 3), "other": torch.nn.Linear(2, 3)})
    names = {"module.weight", "module.bias", "other.weight", "other.bias"}
    assert set(native().named_parameters(part)) == names
    assert set(native().named_parameters(data_parallel(part))) == names


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_a_wrapped_model_has_the_paths_of_the_table(model, wrap):
    wrapped = wrap(model)
    native().load_parameters(wrapped, TRUTH)
    for one in (wrapped, model):
        found = native().dump_parameters(one)
        assert {path: array.shape for path, array in found.items()} == {
            row.path: row.shape for row in parameter_table(CONFIG)
        }
        assert all(np.array_equal(found[path], TRUTH[path]) for path in found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_a_dump_stays_as_it_is(torch, model, dtype):
    """While the model goes on: in its own memory it would change."""
    model.to(getattr(torch, dtype))
    found = native().dump_parameters(model)
    before = {path: array.copy() for path, array in found.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(np.array_equal(found[path], before[path]) for path in found)


# Of Dynamo itself.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_model_of_compiled_blocks_writes_and_is_optimized_as_before(torch):
    """Generation and the optimizer find its parameters by their paths as well."""
    config, build = families()["liquidnet"].small_config(), adapters.load_module("torch", "model").build
    plain, wrapped = build(config), blocks_compiled(build(config))
    prompt = torch.arange(6).reshape(2, 3)
    assert torch.equal(plain.generate(prompt, 12), wrapped.generate(prompt, 12))
    make = adapters.load_module("torch", "training.optimizer").make_optimizer
    training = adapters.load_module("torch", "training.engine").TrainingConfig()
    decayed, other = ([len(group["params"]) for group in make(one, training).param_groups] for one in (plain, wrapped))
    assert decayed == other and all(decayed)


def test_what_is_no_model_is_told_so(torch, model):
    for one in (torch.nn.Linear(2, 2), compiled(torch.nn.Linear(2, 2)), {}):
        for run in (native().dump_parameters, lambda one: native().load_parameters(one, TRUTH)):
            with pytest.raises(ValueError, match="a language model of torch_impl is needed, got"):
                run(one)
    model.adapter = torch.nn.Linear(2, 3)
    with pytest.raises(ValueError, match=r"adapter.bias has shape \(3,\), its configuration says None; give"):
        native().dump_parameters(model)
    del model.adapter
    torch.nn.utils.parametrizations.weight_norm(model.blocks[0].mlp.input)
    with pytest.raises(ValueError, match=r"the model's blocks.0.mlp.input.parametrizations.* without adapters"):
        native().load_parameters(model, TRUTH)


def test_one_parameter_for_two_paths(torch):
    config = families()["liquidnet"].small_config()
    model, truth = adapters.load_module("torch", "model").build(config), perturbed_parameters(config, 5)
    model.blocks[1].mlp_norm.weight = model.blocks[0].mlp_norm.weight
    with pytest.raises(ValueError, match=r"blocks.0.mlp_norm.weight and blocks.1.mlp_norm.weight are one parameter"):
        native().load_parameters(model, truth)
    truth["blocks.1.mlp_norm.weight"] = truth["blocks.0.mlp_norm.weight"].copy()
    native().load_parameters(model, truth)
    found = native().dump_parameters(model)
    assert found.keys() == truth.keys() and all(np.array_equal(found[path], truth[path]) for path in found)


def test_of_jax_a_state_is_no_model_and_a_shared_parameter_is_told():
    nnx = pytest.importorskip("flax.nnx", reason="JAX is not installed")
    model = adapters.load_module("jax", "model").build(CONFIG)
    for one in (nnx.state(model), nnx.split(model)[0], {}):
        for run in (native("jax").dump_parameters, lambda one: native("jax").load_parameters(one, TRUTH)):
            with pytest.raises(ValueError, match=r"a language model of jax_impl is needed, got .* nnx.merge"):
                run(one)
    graph, state = nnx.split(model)
    native("jax").load_parameters(merged := nnx.merge(graph, state), TRUTH)
    found = native("jax").dump_parameters(merged)
    assert all(np.array_equal(found[path], TRUTH[path]) for path in TRUTH)
    merged.blocks[1].mlp_norm.weight = merged.blocks[0].mlp_norm.weight
    with pytest.raises(ValueError, match=r"blocks.1.mlp_norm.weight has shape None, its configuration says \(8,\)"):
        native("jax").dump_parameters(merged)


@pytest.mark.parametrize("backend", adapters.FRAMEWORKS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_a_model_keeps_its_dtype_whatever_it_is_given(backend, dtype):
    """Narrow parameters would make its norms, its logits and what is trained narrow."""
    if adapters.missing(backend):
        pytest.skip(str(adapters.missing(backend)))
    model = adapters.load_module(backend, "model").build(CONFIG)
    given = {path: array.astype(dtype) for path, array in TRUTH.items()}
    native(backend).load_parameters(model, given)
    for path, array in native(backend).dump_parameters(model).items():
        assert array.dtype == np.float32, path
        np.testing.assert_array_equal(array, given[path].astype(np.float32), err_msg=path)
