"""The train step as one program for a mesh of devices. No twin: PyTorch's is eager. Truth: spec/optimizer.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

from jax_impl.layers import accumulate_dtype
from jax_impl.model import LanguageModel, build
from jax_impl.ops.scan.context_parallel import time_sharded
from jax_impl.training.data import PADDING
from jax_impl.training.distributed import AXES, ROWS, SEQUENCE, ParallelContext, parameter_sharding, whole_weight
from jax_impl.training.optimizer import clip_by_global_norm, make_optimizer
from spec.config import ModelConfig, TrainingConfig
from spec.inputs import IGNORED_LABEL
from spec.parameters import parameter_table

EMBEDDING = "embedding.weight"
_BATCH = jax.P(ROWS, SEQUENCE)
_STATES = jax.P(None, ROWS)


class Programs(NamedTuple):
    """What is compiled for a run.

    Args:
        update: (parameters, optimizer state, states, batch, lr) -> the first three after a step, loss, norm.
        loss: (parameters, batch, states) -> mean nats a counted label, last states.
        parameters: where each parameter lies, by path.
        optimizer_state: where each part of the optimizer's state lies.
    """

    update: Any
    loss: Any
    parameters: dict[str, jax.NamedSharding]
    optimizer_state: Any


def make_programs(
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    training: TrainingConfig,
    context: ParallelContext,
    micro_batch: int | None = None,
) -> Programs:
    """The step and the evaluation of a model, each one program for all devices.

    Every device takes its rows and its stretch of time, gathers the weights that it has parts of where a layer needs
    them, and adds its gradients to those of the others: sums of nats over all labels counted anywhere.

    Args:
        model: its graph; what its arrays hold does not matter.
        optimizer: of `make_optimizer`.
        training: gradient clipping.
        context: the mesh.
        micro_batch: rows that a device takes at a time, their gradients added up; None takes all.
    """
    table = parameter_table(model.config)
    shardings = {row.path: parameter_sharding(row, context) for row in table}
    gradients_of, loss_of = _on_all_devices(model, context, micro_batch, shardings)
    like = {row.path: jax.ShapeDtypeStruct(row.shape, accumulate_dtype(model.compute_dtype)) for row in table}
    of_state = _like_parameters(jax.eval_shape(optimizer.init, like), shardings, context)
    placed = shardings, of_state, context.sharding(*_STATES), context.sharding(), context.sharding()

    @partial(jax.jit, donate_argnums=(0, 1), out_shardings=placed)
    def update(parameters, optimizer_state, states, batch, lr):
        loss, last, gradients = gradients_of(parameters, batch, states)
        gradients, norm = clip_by_global_norm(gradients, training.grad_clip)
        steps, new_state = optimizer.update(gradients, optimizer_state, parameters)
        new_parameters = jax.tree.map(lambda parameter, step: parameter - lr * step, parameters, steps)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        made = new_parameters, new_state, None if states is None else last
        kept = jax.tree.map(partial(jnp.where, finite), made, (parameters, optimizer_state, states))
        return *kept, loss, norm

    return Programs(update, jax.jit(loss_of), shardings, of_state)


def abstract_step(
    config: ModelConfig,
    training: TrainingConfig,
    context: ParallelContext,
    method: str = "auto",
    remat: bool = False,
    micro_batch: int | None = None,
) -> tuple[Any, tuple[Any, ...]]:
    """The train step of devices that need not be here, and its arguments without content: `lower(*arguments)`.

    Args:
        config, training: the run.
        context: the mesh, of `on_mesh`.
        method, remat, micro_batch: as in Engine.

    Raises:
        ValueError: a batch or a sequence that the mesh does not divide.
    """
    options = {"compute_dtype": training.compute_dtype, "method": method, "remat": remat}
    model: LanguageModel = nnx.eval_shape(lambda: build(config, **options))
    optimizer, wide = make_optimizer(config, training, context), accumulate_dtype(training.compute_dtype)
    programs = make_programs(model, optimizer, training, context, micro_batch)
    (data, fsdp, sequence), (b, t) = context.shape(), (training.batch_size, training.seq_len)
    if b % (data * fsdp) or t % sequence:
        raise ValueError(f"{b} x {t} tokens are not cut evenly between data={data}, fsdp={fsdp}, sequence={sequence}")

    def put(like, sharding):
        return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=sharding)

    like = {row.path: jax.ShapeDtypeStruct(row.shape, wide) for row in parameter_table(config)}
    parameters = jax.tree.map(put, like, programs.parameters)
    optimizer_state = jax.tree.map(put, jax.eval_shape(optimizer.init, like), programs.optimizer_state)
    kinds = {"tokens": jnp.int32, "labels": jnp.int32, "resets": jnp.bool_}
    whole = context.sharding(*_BATCH)
    batch = {name: jax.ShapeDtypeStruct((b, t), kind, sharding=whole) for name, kind in kinds.items()}
    lr = jax.ShapeDtypeStruct((), jnp.float32, sharding=context.sharding())
    return programs.update, (parameters, optimizer_state, None, {**batch, "side": {}}, lr)


def _on_all_devices(
    model: LanguageModel, context: ParallelContext, micro_batch: int | None, shardings: Mapping[str, jax.NamedSharding]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(loss, last states, gradients) and (loss, last states) of parameters, batch and states, all over the mesh."""
    specs, wide = {path: sharding.spec for path, sharding in shardings.items()}, accumulate_dtype(model.compute_dtype)
    # Over an axis of one device a sum is a copy of all gradients, which XLA makes on a CPU.
    cut = tuple(axis for axis, devices in zip(AXES, context.shape(), strict=True) if devices > 1)
    whole = partial(whole_weight, shape=(model.config.vocab_size, model.config.d_model))
    shared = partial(jax.shard_map, mesh=context.mesh, in_specs=(specs, _BATCH, _STATES), check_vma=False)
    nats_of = _local_nats(model, context)

    def gradients_of(parameters, batch, states):
        of_rows = _in_micro_batches(jax.value_and_grad(nats_of, has_aux=True), micro_batch)
        # Looked up and read out in every micro-batch: put together once, its gradient taken apart once.
        embedding, apart = jax.vjp(whole, parameters[EMBEDDING])
        together = {**parameters, EMBEDDING: embedding}
        (loss, last), gradients = of_rows(together, batch, states, _counted_everywhere(batch, wide))
        (gradients[EMBEDDING],) = apart(gradients[EMBEDDING])
        # What is cut between the devices of fsdp was added up between them where it was gathered.
        everyone = {path: tuple(a for a in cut if a not in jax.tree.leaves(tuple(specs[path]))) for path in gradients}
        gradients = {path: jax.lax.psum(gradient, everyone[path]) for path, gradient in gradients.items()}
        return jax.lax.psum(loss, AXES), last, gradients

    def loss_of(parameters, batch, states):
        together = {**parameters, EMBEDDING: whole(parameters[EMBEDDING])}
        loss, last = nats_of(together, batch, states, _counted_everywhere(batch, wide))
        return jax.lax.psum(loss, AXES), last

    out_specs = jax.P(), _STATES, specs
    return shared(gradients_of, out_specs=out_specs), shared(loss_of, out_specs=out_specs[:2])


def _local_nats(model: LanguageModel, context: ParallelContext) -> Callable[..., Any]:
    """(parameters, batch, states, labels counted anywhere) -> this device's part of the mean loss, last states."""
    graph, variables = nnx.split(model, nnx.Param)

    def nats_of(parameters, batch, states, counted):
        side = model.family.in_order_of_call(model.config, batch["side"])
        with time_sharded(SEQUENCE if context.shape()[2] > 1 else None):
            mean, last = with_parameters(graph, variables, parameters).loss(**{**batch, "side": side}, states=states)
        return mean * (_counted(batch).astype(mean.dtype) / counted), last

    return nats_of


def with_parameters(graph: Any, variables: Any, parameters: Mapping[str, Array]) -> LanguageModel:
    """A model of these parameters, by path; graph and variables of `nnx.split(model, nnx.Param)`."""
    state = nnx.map_state(lambda path, variable: variable.replace(parameters[".".join(map(str, path))]), variables)
    return nnx.merge(graph, state)


def _counted(batch: dict[str, Any]) -> Array:
    return (batch["labels"] != IGNORED_LABEL).sum()


def _counted_everywhere(batch: dict[str, Any], dtype: Any) -> Array:
    return jnp.maximum(jax.lax.psum(_counted(batch), AXES), 1).astype(dtype)


def _like_parameters(state: Any, shardings: dict[str, jax.NamedSharding], context: ParallelContext) -> Any:
    """Both moments of a parameter lie where it lies; all else everywhere."""

    def of(path, _):
        return shardings.get(str(getattr(path[-1], "key", "")), context.sharding())

    return jax.tree_util.tree_map_with_path(of, state)


def _in_micro_batches(gradients_of: Callable[..., Any], size: int | None) -> Callable[..., Any]:
    """`gradients_of` for `size` rows at a time, as if for all of them; a batch of no more rows than that stays whole.

    Each part's loss is its share of the mean over all labels: losses and gradients add up.
    """
    if size is None:
        return gradients_of

    def of_all(parameters, batch, states, counted):
        rows = len(batch["tokens"])
        if rows <= size:
            return gradients_of(parameters, batch, states, counted)

        def cut(array, fill=0):
            widths = ((0, -rows % size), *((0, 0) for _ in array.shape[1:]))
            return jnp.pad(array, widths, constant_values=fill).reshape(-1, size, *array.shape[1:])

        def add(total, part):
            of_part, states_bld = part
            states_lbd = None if states_bld is None else states_bld.swapaxes(0, 1)
            (loss, last), gradients = gradients_of(parameters, of_part, states_lbd, counted)
            return jax.tree.map(jnp.add, total, (loss, gradients)), last.swapaxes(0, 1)

        zero = jax.tree.map(jnp.zeros_like, parameters)
        parts = {name: jax.tree.map(partial(cut, fill=PADDING.get(name, 0)), x) for name, x in batch.items()}
        states_bld = None if states is None else cut(states.swapaxes(0, 1))
        total = jnp.zeros((), counted.dtype), zero
        (loss, gradients), last = jax.lax.scan(add, total, (parts, states_bld))
        return (loss, last.reshape(-1, *last.shape[2:])[:rows].swapaxes(0, 1)), gradients

    return of_all
