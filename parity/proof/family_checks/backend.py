"""What a twin of a family has: its module, methods, parameters and initial values."""

from __future__ import annotations

from typing import Any

import numpy as np

from parity.proof import adapters
from parity.proof.family_checks.assertions import Wrong, lacks_and_besides, require_same, require_shape
from parity.proof.family_checks.problem import mixer_problem
from spec.init import initial_parameters
from spec.mixers import backend_attributes, families


def backend_module(name: str, backend: str) -> None:
    """The twin's module has Mixer, METHODS, choose_method and capabilities, and they answer as they are asked."""
    try:
        module = adapters.load_module(backend, "mixers").mixer_module(name)
    except ValueError as error:
        raise Wrong(f"{backend}: {error}") from error
    own, where = families()[name], f"{backend}: {module.__name__}"
    config = own.small_config()
    asked = backend_attributes(own)
    if lacks := [key for key in asked if not hasattr(module, key)]:
        raise Wrong(f"{where} lacks {', '.join(lacks)}; a backend's module has {', '.join(asked)}")
    choice = module.choose_method(config, 2, 8)
    if choice not in module.METHODS:
        raise Wrong(f"{where}.choose_method gives {choice!r}; give one of METHODS, {', '.join(module.METHODS)}")
    for method in ("auto", *module.METHODS):
        able = module.capabilities(config, method)
        if not all(isinstance(one, bool) for one in able):
            raise Wrong(f"{where}.capabilities gives {able} for {method}; give Capabilities of True and False")
    if own.operation not in adapters.load(backend).METHODS:
        raise Wrong(f"{backend} lists no methods under {own.operation}; set operation of {name} to its name")


def module_of(name: str, backend: str) -> str:
    """The name of a backend's module of a family."""
    return adapters.load_module(backend, "mixers").mixer_module(name).__name__


def backend_parameters(name: str, backend: str) -> None:
    """A twin has the parameters of the table, none besides, in their shapes, and begins with their initial values."""
    problem, whole = mixer_problem(name), families()[name].small_config()
    native = adapters.load_module(backend, "checkpoint.native")

    def dump(part: Any) -> dict[str, np.ndarray]:
        # Not `dump_parameters`, which takes whole models alone and would refuse what is to be told here.
        return {path: native.to_numpy(parameter) for path, parameter in native.named_parameters(part).items()}

    found = dump(adapters.load(backend).LAYERS["mixer"](problem.config, "float32", "auto"))
    where = module_of(problem.own.name, backend)
    if set(found) != set(problem.weights):
        parts = lacks_and_besides(found, problem.weights)
        raise Wrong(f"{backend}: {where}.Mixer {parts}; give it those of {problem.own.name}'s parameters in spec")
    for path, x in problem.weights.items():
        require_shape(f"{backend}: the parameter {path}", found[path], x.shape, where)
    models, mixers = (adapters.load_module(backend, key) for key in ("model", "mixers"))
    model = models.build(whole, seed=2)
    kinds = {
        "model": (type(model), getattr(mixers.mixer_module(name), "Model", models.LanguageModel)),
        "mixer": (type(model.blocks[0].mixer), mixers.mixer_module(problem.own.name).Mixer),
    }
    for what, (given, wanted) in kinds.items():
        if given is not wanted:
            raise Wrong(f"{backend}: the {what} of {name} is a {given.__name__}; make it a {wanted.__name__}")
    expected, built = initial_parameters(whole, 2), dump(model)
    if set(built) != set(expected):
        parts = lacks_and_besides(built, expected)
        raise Wrong(f"{backend}: the model of {name} {parts}; leave all but the mixer to the shared model")
    for path, exact in expected.items():
        remedy = "as in the table; let nothing but init draw initial values"
        require_same(f"{backend}: the initial {path}", built[path], exact, np.zeros(exact.shape), remedy)
