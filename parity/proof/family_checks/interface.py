"""What a family says of itself: methods, configuration, presets, initial values, shapes, side inputs."""

from __future__ import annotations

import inspect
import json
import random
from dataclasses import fields, replace
from typing import Any

import numpy as np

from parity.proof.family_checks.assertions import Wrong, lacks_and_besides, require_refusal, require_shape
from parity.proof.family_checks.problem import ROWS, STEPS, mixer_problem
from parity.proof.problems.cases import perturbed_parameters
from spec.config import SHARED_FIELDS, config_to_json
from spec.init import stream
from spec.mixers import config_from_json, families
from spec.mixers.base import MixerFamily
from spec.presets import PRESETS, RECIPES
from spec.reference import forward


def methods(name: str) -> None:
    """The family's class has every method of MixerFamily, with as many arguments."""
    own = families()[name]
    for key, asked in inspect.getmembers(MixerFamily, inspect.isfunction):
        if key.startswith("_"):
            continue
        wanted = [*inspect.signature(asked).parameters][1:]
        given = getattr(own, key, None)
        if not callable(given):
            raise Wrong(f"{type(own).__name__} lacks the method {key}; give it {key}({', '.join(wanted)})")
        found = [*inspect.signature(given).parameters]
        if len(found) != len(wanted):
            takes = f"takes ({', '.join(found)})"
            raise Wrong(f"{type(own).__name__}.{key} {takes}; it is called with ({', '.join(wanted)})")


def configuration(name: str) -> None:
    """A configuration is a flat JSON object with its family; it refuses what is out of range."""
    own = families()[name]
    config = own.small_config()
    names = [field.name for field in fields(own.Config)]
    where = own.Config.__name__
    if missing := set(SHARED_FIELDS) - set(names):
        raise Wrong(f"{where} lacks {', '.join(sorted(missing))}; list the fields of ModelConfig among its own")
    if strange := {*own.shape_fields, *own.constants} - (set(names) - set(SHARED_FIELDS)):
        raise Wrong(
            f"shape_fields and constants of {name} name {', '.join(sorted(strange))}; name own fields of {where}"
        )
    stored = json.loads(json.dumps(config_to_json(config)))
    if list(stored) != ["family", *names] or config_from_json(stored) != config:
        raise Wrong(f"{where} does not come back from its JSON {stored}; use numbers, text and booleans alone")
    for field, bad in (("d_model", 0), ("norm_eps", 0.0)):
        require_refusal(lambda field=field, bad=bad: replace(config, **{field: bad}), field, f"{where}({field}={bad})")


def presets(name: str) -> None:
    """Each preset is known by its name, with its recipe, and is of the family."""
    own = families()[name]
    if not own.presets:
        raise Wrong(f"{name} has no preset; give it one, such as {name.replace('_', '-')}-nano")
    for key, one in own.presets.items():
        if not isinstance(one.config, own.Config):
            raise Wrong(f"preset {key} is a {type(one.config).__name__}; make it a {own.Config.__name__}")
        if PRESETS.get(key) is not one.config or RECIPES.get(key) is not one.training:
            raise Wrong(f"preset {key} of {name} is not the one that its name stands for; choose another name")


def initial_values(name: str) -> None:
    """Parameters begin as a function of their stream, in float32, in the shapes of the table; parts have their rows."""
    own = families()[name]
    config = own.small_config()
    for layer in range(config.n_layers):
        rows = own.layer_parameters(config, layer)
        paths = [row.path for row in rows]
        if twice := {path for path in paths if paths.count(path) > 1}:
            raise Wrong(f"{name} lists the parameter {twice.pop()} twice; give each a path of its own")
        for row in rows:
            _initial_value(row)


def _initial_value(row: Any) -> None:
    before = _global_state()
    first, again = (row.init(stream(3, row.path), row.shape) for _ in range(2))
    remedy = "draw from the generator that init is given"
    if _global_state() != before:
        raise Wrong(f"the initialiser of {row.path} draws from a global generator; {remedy}")
    if not isinstance(first, np.ndarray) or first.dtype != np.float32 or first.shape != tuple(row.shape):
        got = f"{first.dtype} {first.shape}" if isinstance(first, np.ndarray) else type(first).__name__
        raise Wrong(f"the initialiser of {row.path} gives {got}; give float32 {tuple(row.shape)}")
    if not np.array_equal(first, again):
        raise Wrong(f"the initialiser of {row.path} gives other values for the same stream; {remedy}")
    whole = sum(row.parts.values()) == row.shape[0] and " | ".join(row.parts) == row.axes[0]
    if len(row.axes) != len(row.shape) or not whole:
        raise Wrong(f"axes {row.axes} of {row.path} do not fit its shape {row.shape}; name each axis, each part")
    if row.weight_decay != (len(row.shape) == 2):
        raise Wrong(f"weight_decay of {row.path} is {row.weight_decay}; matrices have it, and nothing else")


def _global_state() -> tuple[Any, ...]:
    """Of the generators that belong to nobody."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), kind, np.asarray(keys).tobytes(), *rest


def shapes(name: str) -> None:
    """Output, last state, activations and gradients have the shapes that the base class says."""
    problem = mixer_problem(name)
    n = problem.own.state_size(problem.config)
    for state in (None, problem.state):
        mixed = problem.run(state=state)
        require_shape("the output y", mixed.y, problem.z.shape, "forward")
        require_shape("the last state", mixed.last, (ROWS, n), "forward, or state_size")
    for key, x in mixed.activations.items():
        if np.shape(x)[:2] != (ROWS, STEPS):
            raise Wrong(f"the activation {key} has shape {np.shape(x)}; give it as [b, t, ...], here {(ROWS, STEPS)}")
    last = np.ones((ROWS, n))
    grad_z, gradients, grad_state = problem.own.adjoint(mixed.saved, np.ones(problem.z.shape), last)
    if set(gradients) != set(problem.weights):
        parts = lacks_and_besides(gradients, problem.weights)
        raise Wrong(f"adjoint of {name} {parts}; give a gradient of each parameter by its path")
    require_shape("the gradient of z", grad_z, problem.z.shape, "adjoint")
    require_shape("the gradient of the initial state", grad_state, (ROWS, n), "adjoint")
    for path, x in problem.weights.items():
        require_shape(f"the gradient of {path}", gradients[path], x.shape, "adjoint")


def side_inputs(name: str) -> None:
    """Each side input changes what the model gives, by its alias too; others and wrong shapes are refused."""
    own = families()[name]
    config = own.small_config()
    params, tokens = perturbed_parameters(config, 1), np.arange(6).reshape(2, 3)
    plain = forward(params, config, tokens)[0]
    shapes = own.side_shapes(config, tokens.shape)
    for one in own.side_inputs(config):
        array = np.random.default_rng(1).random(shapes[one.name])
        for key in filter(None, (one.name, one.alias)):
            if not np.abs(forward(params, config, tokens, **{key: array})[0] - plain).max() > 1e-6:
                raise Wrong(f"the side input {key} of {name} changes nothing; read it in forward, or do not list it")
            wrong = {key: array[:1, :1]}
            require_refusal(
                lambda wrong=wrong: forward(params, config, tokens, **wrong), "must have shape", f"a wrong {key}"
            )
        if one.alias:
            both = {one.name: array, one.alias: array}
            call = f"{one.name} beside {one.alias}"
            require_refusal(lambda both=both: forward(params, config, tokens, **both), "one and the same", call)
        of_batch = array.transpose(np.argsort(one.permutation))
        back = own.in_order_of_call(config, {one.name: of_batch})[one.name]
        if of_batch.shape[:2] != (2, 3) or not np.array_equal(back, array):
            raise Wrong(f"in_order_of_call of {name} does not undo the order of {one.name}; name its axes b and t")
    call = f"{own.article} {own.title} takes no side input 'weather'"
    require_refusal(lambda: forward(params, config, tokens, weather=np.ones((2, 3))), call, "an unknown side input")


def training_side_inputs(name: str) -> None:
    """Side inputs of training are float32, a function of seed and sample, and among those listed."""
    own = families()[name]
    config = own.small_config()
    first, again, other = (own.training_side_inputs(config, 3, sample, 5) for sample in (8, 8, 9))
    if strange := set(first) - {one.name for one in own.side_inputs(config)}:
        raise Wrong(f"training_side_inputs of {name} gives {', '.join(strange)}; list them in side_inputs")
    for key, array in first.items():
        if len(array) != 5 or array.dtype != np.float32:
            raise Wrong(f"training_side_inputs of {name}: {key} is {array.dtype} {array.shape}; give float32 [t, ...]")
        if not np.array_equal(array, again[key]) or np.array_equal(array, other[key]):
            raise Wrong(f"training_side_inputs of {name}: {key} is no function of seed and sample; draw it from both")
