"""What a family must be besides numbers within bounds: each check passes, or raises ValueError in one line.

The line names the tensor, method or value that is wrong, and what to do. `OF_REFERENCE` are asked of a family's file in
spec, `OF_BACKEND` of each of its twins; `run` asks all of one family, as `liquidnet parity --family NAME` does.
"""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from parity.proof import adapters
from parity.proof.bounds import double_bound, in_units
from parity.proof.bounds.monte_carlo_arithmetic import estimate
from parity.proof.operations.base import UNITS, Arrays
from parity.proof.problems.cases import perturbed_parameters
from parity.proof.problems.complex_step import complex_step
from spec.config import ModelConfig, config_to_json
from spec.init import initial_parameters, stream
from spec.mixers import BACKEND_HAS, config_from_json, families, family, state_shape, told
from spec.mixers.base import NO_MASKS, Masks, Mixed, MixerFamily
from spec.presets import PRESETS, RECIPES
from spec.reference import activations as model_activations
from spec.reference import forward
from spec.reference.blocks import within

SHARED = {"vocab_size", "d_model", "d_ff", "n_layers", "max_seq_len", "norm_eps"}
ROWS, STEPS = 3, 6


class Wrong(ValueError):
    """What a check has found; any other error is one that the mixer itself has raised."""


class MixerProblem(NamedTuple):
    """A mixer of the first layer, and what it is given: ROWS rows of STEPS tokens, everything in float64.

    Args:
        own, config: the family of that layer's mixer, and its configuration.
        weights: perturbed, by path from the mixer on.
        z, state: input and initial state.
        masks: resets, and padding on the left, none of it in the first row.
        side: every side input, between 0 and 1.
        side_axes: letters of each.
    """

    own: MixerFamily[Any]
    config: ModelConfig
    weights: dict[str, np.ndarray]
    z: np.ndarray
    state: np.ndarray
    masks: Masks
    side: dict[str, np.ndarray]
    side_axes: dict[str, list[str]]

    def run(self, **given: Any) -> Mixed:
        """The reference's forward pass, of the problem's own arrays where others are not given."""
        x = {"z": self.z, "state": self.state, "masks": self.masks, "side": self.side, **given}
        return self.own.forward(x["z"], self.weights, self.config, x["state"], x["masks"], x["side"])

    def of_rows(self, rows: Sequence[int]) -> dict[str, Any]:
        """The problem's arrays of some rows."""
        return self._cut("b", rows) | {"state": self.state[rows]}

    def of_steps(self, steps: Sequence[int]) -> dict[str, Any]:
        """The problem's arrays of some tokens; the state is left to the caller."""
        return self._cut("t", steps)

    def _cut(self, axis: str, index: Sequence[int]) -> dict[str, Any]:
        at = "bt".index(axis)
        side = {
            name: np.take(x, index, self.side_axes[name].index(axis)) if axis in self.side_axes[name] else x
            for name, x in self.side.items()
        }
        masks = Masks(*(np.take(x, index, at) for x in self.masks))
        return {"z": np.take(self.z, index, at), "masks": masks, "side": side}


@lru_cache(maxsize=32)
def mixer_problem(name: str) -> MixerProblem:
    """The problem that the checks of a reference are about; its arrays are not to be written to."""
    whole = families()[name].small_config()
    own, config = family(whole).of_block(whole, 0)
    draw, n = np.random.default_rng(7), own.state_size(config)
    found = within(perturbed_parameters(whole, 3), "blocks.0.mixer.")
    weights = {path: x.astype(np.float64) for path, x in found.items()}
    masks = Masks(draw.random((ROWS, STEPS)) < 0.3, np.arange(STEPS) < np.array([[0], [2], [0]]))
    sizes = {"b": ROWS, "t": STEPS, "n": n}
    axes = {one.name: [a for a in one.axes if a != "l"] for one in own.side_inputs(config)}
    side = {key: draw.random([sizes[a] for a in letters]) for key, letters in axes.items()}
    z, state = draw.standard_normal((ROWS, STEPS, config.d_model)), draw.standard_normal((ROWS, n))
    return MixerProblem(own, config, weights, z, state, masks, side, axes)


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
    if missing := SHARED - set(names):
        raise Wrong(f"{where} lacks {', '.join(sorted(missing))}; list the fields of ModelConfig among its own")
    if strange := {*own.shape_fields, *own.constants} - (set(names) - SHARED):
        raise Wrong(
            f"shape_fields and constants of {name} name {', '.join(sorted(strange))}; name own fields of {where}"
        )
    stored = json.loads(json.dumps(config_to_json(config)))
    if list(stored) != ["family", *names] or config_from_json(stored) != config:
        raise Wrong(f"{where} does not come back from its JSON {stored}; use numbers, text and booleans alone")
    for field, bad in (("d_model", 0), ("norm_eps", 0.0)):
        _refused(lambda field=field, bad=bad: replace(config, **{field: bad}), field, f"{where}({field}={bad})")


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
        _shape("the output y", mixed.y, problem.z.shape, "forward")
        _shape("the last state", mixed.last, (ROWS, n), "forward, or state_size")
    for key, x in mixed.activations.items():
        if np.shape(x)[:2] != (ROWS, STEPS):
            raise Wrong(f"the activation {key} has shape {np.shape(x)}; give it as [b, t, ...], here {(ROWS, STEPS)}")
    last = np.ones((ROWS, n))
    grad_z, gradients, grad_state = problem.own.adjoint(mixed.saved, np.ones(problem.z.shape), last)
    if set(gradients) != set(problem.weights):
        parts = _lacks_and_besides(gradients, problem.weights)
        raise Wrong(f"adjoint of {name} {parts}; give a gradient of each parameter by its path")
    _shape("the gradient of z", grad_z, problem.z.shape, "adjoint")
    _shape("the gradient of the initial state", grad_state, (ROWS, n), "adjoint")
    for path, x in problem.weights.items():
        _shape(f"the gradient of {path}", gradients[path], x.shape, "adjoint")


def adjoint(name: str) -> None:
    """`adjoint` is that of `forward`: input, state and each weight by complex steps, under masks and side inputs.

    Source: Squire & Trapp 1998, "Using complex variables to estimate derivatives of real functions".
    """
    problem, draw = mixer_problem(name), np.random.default_rng(8)
    # Complex steps take a forward pass an entry: two rows are enough to tell a sum over rows.
    given = problem.of_rows([0, 1])
    mixed = problem.run(**given)
    to_y, to_last = draw.standard_normal(mixed.y.shape), draw.standard_normal(mixed.last.shape)

    def total(**other: Any) -> Any:
        z, state, *of = (
            np.asarray(other.get(key, x), np.complex128)
            for key, x in {"z": given["z"], "state": given["state"], **problem.weights}.items()
        )
        weights = dict(zip(problem.weights, of, strict=True))
        found = problem.own.forward(z, weights, problem.config, state, given["masks"], given["side"])
        return (to_y * found.y).sum() + (to_last * found.last).sum()

    grad_z, gradients, grad_state = problem.own.adjoint(mixed.saved, to_y, to_last)
    found = {"z": grad_z, "state": grad_state, **gradients}
    wrong: dict[str, float] = {}
    expected: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for key, array in {"z": given["z"], "state": given["state"], **problem.weights}.items():
        exact = complex_step(lambda x, key=key: total(**{key: x}), array)
        expected[key] = exact, 1e-12 + 1e-11 * np.abs(exact)
        worst = float(in_units(found[key], *expected[key]).max(initial=0.0))
        if worst > 1.0:
            wrong[key] = worst
    if wrong:
        key = max(wrong, key=lambda key: wrong[key])
        remedy = f"by complex steps; differentiate forward again: wrong are those of {', '.join(wrong)}"
        _same(f"adjoint of {name}: the gradient of {key}", found[key], *expected[key], remedy)


def activations(name: str) -> None:
    """Activations are those listed; `each_alone` gives from the right ones the right ones; words name what exists."""
    problem, whole = mixer_problem(name), families()[name]
    own, config = problem.own, problem.config
    mixed = problem.run(state=None, masks=NO_MASKS, side={})
    if tuple(mixed.activations) != tuple(own.activations):
        got = ", ".join(mixed.activations)
        raise Wrong(f"forward of {name} gives the activations {got}; give those listed: {', '.join(own.activations)}")
    if own.activations[-2:] != (own.recurrence, "output"):
        raise Wrong(f"activations of {name} end with {own.activations[-2:]}; end with {(own.recurrence, 'output')}")
    alone, last, y = own.each_alone(problem.z, problem.weights, config, mixed.activations)
    alone, expected = {**alone, "last": last, "y": y}, {**mixed.activations, "last": mixed.last, "y": mixed.y}
    for key, exact in expected.items():
        if key not in alone:
            raise Wrong(f"each_alone of {name} gives no {key}; give every activation")
        bound = 1e-14 + 1e-12 * np.abs(exact)
        _same(f"each_alone of {name}: {key}", alone[key], exact, bound, "as forward gives; take what stands before it")
    config = whole.small_config()
    inside = model_activations(initial_parameters(config), config, np.zeros((1, 2), int))
    tensors = {key.removeprefix("blocks.0.") for key in inside}
    if strange := {*whole.formulas, *whole.enters.values()} - tensors:
        known = ", ".join(sorted(tensors))
        raise Wrong(f"formulas or enters of {name} name {', '.join(sorted(strange))}; a block has {known}")
    if strange := set(whole.enters) - {f"mixer.{path}" for path in problem.weights}:
        raise Wrong(f"enters of {name} names {', '.join(sorted(strange))}; name parameters, as mixer.PATH")


def side_inputs(name: str) -> None:
    """Each side input changes what the model gives, by its alias too; others and wrong shapes are refused."""
    own = families()[name]
    config = own.small_config()
    params, tokens = perturbed_parameters(config, 1), np.arange(6).reshape(2, 3)
    plain = forward(params, config, tokens)[0]
    sizes = {**dict(zip("lbn", state_shape(config, 2), strict=True)), "t": 3}
    for one in own.side_inputs(config):
        array = np.random.default_rng(1).random([sizes[axis] for axis in one.axes])
        for key in filter(None, (one.name, one.alias)):
            if not np.abs(forward(params, config, tokens, **{key: array})[0] - plain).max() > 1e-6:
                raise Wrong(f"the side input {key} of {name} changes nothing; read it in forward, or do not list it")
            wrong = {key: array[:1, :1]}
            _refused(lambda wrong=wrong: forward(params, config, tokens, **wrong), "must have shape", f"a wrong {key}")
        if one.alias:
            both = {one.name: array, one.alias: array}
            call = f"{one.name} beside {one.alias}"
            _refused(lambda both=both: forward(params, config, tokens, **both), "one and the same", call)
        of_batch = array.transpose(np.argsort(one.permutation))
        back = own.in_order_of_call(config, {one.name: of_batch})[one.name]
        if of_batch.shape[:2] != (2, 3) or not np.array_equal(back, array):
            raise Wrong(f"in_order_of_call of {name} does not undo the order of {one.name}; name its axes b and t")
    call = f"a {own.title} takes no side input 'weather'"
    _refused(lambda: forward(params, config, tokens, weather=np.ones((2, 3))), call, "an unknown side input")


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


def rows_apart(name: str) -> None:
    """A row alone gives what it gives in a batch, and rows in another order give the same in that order."""
    problem = mixer_problem(name)
    whole, remedy = problem.run(), "as in the batch; let no row see another"
    for rows in ([0], [1], [2, 0, 1]):
        mixed = problem.run(**problem.of_rows(rows))
        what = f"row {rows[0]} alone" if len(rows) == 1 else f"rows in the order {rows}"
        _mixed_same(f"{name}: {what}", mixed, whole.y[rows], whole.last[rows], remedy)


def causality(name: str) -> None:
    """A later token changes nothing before it."""
    problem = mixer_problem(name)
    whole = problem.run()
    for step in (STEPS - 1, STEPS // 2):
        z = problem.z.copy()
        z[:, step:] += 1.0
        found = problem.run(z=z).y[:, :step]
        exact = whole.y[:, :step]
        what = f"{name}: y before token {step}, which was changed"
        _same(what, found, exact, double_bound(exact), "as before the change; read no later token")


def resets(name: str) -> None:
    """A reset before a token is a fresh start from a state of zero."""
    problem, step = mixer_problem(name), STEPS // 2
    start = np.zeros((ROWS, STEPS), bool)
    start[:, step] = True
    none = np.zeros((ROWS, STEPS), bool)
    whole = problem.run(masks=Masks(start, none))
    rest = problem.of_steps(range(step, STEPS)) | {"masks": NO_MASKS}
    fresh = problem.run(**rest, state=np.zeros_like(problem.state))
    remedy = "as from a state of zero; clear the whole state where resets is true"
    _mixed_same(f"{name}: after a reset", whole._replace(y=whole.y[:, step:]), fresh.y, fresh.last, remedy)
    none_given = problem.run(**rest, state=None)
    _mixed_same(f"{name}: with state=None", none_given, fresh.y, fresh.last, "as from a state of zero; None is zero")


def padding(name: str) -> None:
    """A padded token changes no other output and no state, whatever it is: the text is as it is without it."""
    problem = mixer_problem(name)
    padded = np.zeros((ROWS, STEPS), bool)
    padded[:, [0, 2, STEPS - 1]] = True
    masks = Masks(problem.masks.resets & ~padded, padded)
    kept = np.flatnonzero(~padded[0]).tolist()
    whole = problem.run(masks=masks)
    z = np.where(padded[..., None], problem.z + 1.0, problem.z)
    changed = problem.run(z=z, masks=masks)
    remedy = "as without it; a padded token leaves the state as it is"
    _mixed_same(
        f"{name}: another padded token", changed._replace(y=changed.y[:, kept]), whole.y[:, kept], whole.last, remedy
    )
    short = problem.of_steps(kept)
    alone = problem.run(**short | {"masks": Masks(short["masks"].resets, None)}, state=problem.state)
    _mixed_same(f"{name}: with padding", whole._replace(y=whole.y[:, kept]), alone.y, alone.last, remedy)


def pieces(name: str) -> None:
    """A text in two pieces, and token by token, gives what it gives in one piece: the state holds all that counts."""
    problem = mixer_problem(name)
    whole, remedy = problem.run(), "as in one piece; carry everything that counts in the state"
    for size, what in ((STEPS // 2 + 1, "in two pieces"), (1, "token by token")):
        state, outputs = problem.state, []
        for first in range(0, STEPS, size):
            mixed = problem.run(**problem.of_steps(range(first, min(first + size, STEPS))), state=state)
            outputs.append(mixed.y)
            state = mixed.last
        found = mixed._replace(y=np.concatenate(outputs, axis=1))
        _mixed_same(f"{name}: the text {what}", found, whole.y, whole.last, remedy)


def backend_module(name: str, backend: str) -> None:
    """The twin's module has Mixer, METHODS, choose_method and capabilities, and they answer as they are asked."""
    try:
        module = adapters.load_module(backend, "mixers").mixer_module(name)
    except ValueError as error:
        raise Wrong(f"{backend}: {error}") from error
    config, where = families()[name].small_config(), f"{backend}: {module.__name__}"
    if lacks := [key for key in BACKEND_HAS if not hasattr(module, key)]:
        raise Wrong(f"{where} lacks {', '.join(lacks)}; a backend's module has {', '.join(BACKEND_HAS)}")
    choice = module.choose_method(config, 2, 8)
    if choice not in module.METHODS:
        raise Wrong(f"{where}.choose_method gives {choice!r}; give one of METHODS, {', '.join(module.METHODS)}")
    for method in ("auto", *module.METHODS):
        able = module.capabilities(config, method)
        if not all(isinstance(one, bool) for one in able):
            raise Wrong(f"{where}.capabilities gives {able} for {method}; give Capabilities of True and False")
    own = families()[name]
    if own.operation not in adapters.load(backend).METHODS:
        raise Wrong(f"{backend} lists no methods under {own.operation}; set operation of {name} to its name")


def module_of(name: str, backend: str) -> str:
    """The name of a backend's module of a family."""
    return adapters.load_module(backend, "mixers").mixer_module(name).__name__


def backend_parameters(name: str, backend: str) -> None:
    """A twin has the parameters of the table, none besides, in their shapes, and begins with their initial values."""
    problem, whole = mixer_problem(name), families()[name].small_config()
    dump = adapters.load_module(backend, "checkpoint.native").dump_parameters
    found = dump(adapters.load(backend).LAYERS["mixer"](problem.config, "float32", "auto"))
    where = module_of(problem.own.name, backend)
    if set(found) != set(problem.weights):
        parts = _lacks_and_besides(found, problem.weights)
        raise Wrong(f"{backend}: {where}.Mixer {parts}; give it those of {problem.own.name}'s parameters in spec")
    for path, x in problem.weights.items():
        _shape(f"{backend}: the parameter {path}", found[path], x.shape, where)
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
        parts = _lacks_and_besides(built, expected)
        raise Wrong(f"{backend}: the model of {name} {parts}; leave all but the mixer to the shared model")
    for path, exact in expected.items():
        remedy = "as in the table; let nothing but init draw initial values"
        _same(f"{backend}: the initial {path}", built[path], exact, np.zeros(exact.shape), remedy)


class Text(NamedTuple):
    """Rows of tokens for a whole model, with what stands before and among them."""

    tokens: np.ndarray
    states: np.ndarray
    resets: np.ndarray
    padding: np.ndarray

    def of_rows(self, rows: Sequence[int]) -> Text:
        return Text(self.tokens[rows], self.states[:, rows], self.resets[rows], self.padding[rows])

    def of_steps(self, first: int, last: int, states: np.ndarray) -> Text:
        steps = slice(first, last)
        return Text(self.tokens[:, steps], states, self.resets[:, steps], self.padding[:, steps])


def backend_texts(name: str, backend: str) -> None:
    """What holds of the reference's state holds of the twin's, within the bound on the rounding of a text in float32.

    The text as it is; a row alone; rows in another order; in two pieces; token by token; another last token; a state
    that a reset clears; other padded tokens. Each against the float64 reference of the whole text; see
    parity/proof/bounds/monte_carlo_arithmetic.py for the bound.
    """
    config = families()[name].small_config()
    params, draw = perturbed_parameters(config, 3), np.random.default_rng(9)
    shape = (2, STEPS)
    padded = np.zeros(shape, bool)
    padded[:, 2] = True
    cleared = np.zeros(shape, bool)
    cleared[1, 4] = True
    states = draw.standard_normal(state_shape(config, 2)).astype(np.float32)
    text = Text(draw.integers(0, config.vocab_size, shape).astype(np.int32), states, cleared, padded)

    def run(text: Text) -> Arrays:
        return dict(zip(("logits", "last"), adapters.load(backend).model(params, config, *text), strict=True))

    def in_pieces(size: int) -> Arrays:
        state, logits = text.states, []
        for first in range(0, STEPS, size):
            found = run(text.of_steps(first, first + size, state))
            logits.append(found["logits"])
            state = found["last"]
        return {"logits": np.concatenate(logits, axis=1), "last": state}

    def other(tokens: np.ndarray) -> np.ndarray:
        return (tokens + 1) % config.vocab_size

    truth, bound = _model_truth(params, config, text)

    def compare(what: str, found: Arrays, at: Callable[[str, np.ndarray], np.ndarray] = lambda key, x: x) -> None:
        for key, array in found.items():
            remedy = f"as the reference does; compare {module_of(name, backend)} with it"
            _same(f"{backend}: {what}: {key}", at("", array), at(key, truth[key]), at(key, bound[key]), remedy)

    def rows(index: Sequence[int]) -> Callable[[str, np.ndarray], np.ndarray]:
        return lambda key, x: x if not key else x[:, index] if key == "last" else x[index]

    compare("the text", run(text))
    compare("row 1 alone", run(text.of_rows([1])), rows([1]))
    compare("the rows in reverse", run(text.of_rows([1, 0])), rows([1, 0]))
    compare("the text in two pieces", in_pieces(STEPS // 2))
    compare("the text token by token", in_pieces(1))
    changed = np.where(np.arange(STEPS) == STEPS - 1, other(text.tokens), text.tokens)
    before = {"logits": run(text._replace(tokens=changed))["logits"]}
    compare("before another last token", before, lambda key, x: x[:, : STEPS - 1])
    found = run(text._replace(tokens=np.where(padded, other(text.tokens), text.tokens)))
    kept = ~padded[0]
    compare("with other padded tokens", found, lambda key, x: x[:, kept] if x.shape[1] == STEPS else x)
    truth, bound = _model_truth(params, config, text._replace(states=np.zeros_like(states)))
    start = cleared | (np.arange(STEPS) == 0)
    compare("after a reset of another state", run(text._replace(resets=start)))


def _model_truth(params: Arrays, config: ModelConfig, text: Text) -> tuple[Arrays, Arrays]:
    """Logits and last states of the reference, and how far float32 may lie from them."""

    def compute(lift: Callable[[np.ndarray], np.ndarray]) -> Arrays:
        lifted = {path: lift(x) for path, x in params.items()}
        found = forward(lifted, config, text.tokens, lift(text.states), text.resets, text.padding)
        return dict(zip(("logits", "last"), found, strict=True))

    truth = compute(lambda x: np.asarray(x, np.float64))
    return truth, estimate(compute, truth, UNITS["float32"])


OF_REFERENCE: Mapping[str, Callable[[str], None]] = {
    check.__name__: check
    for check in (methods, configuration, presets, initial_values, shapes, adjoint, activations, side_inputs,
                  training_side_inputs, rows_apart, causality, resets, padding, pieces)
}  # fmt: skip
OF_BACKEND: Mapping[str, Callable[[str, str], None]] = {
    check.__name__: check for check in (backend_module, backend_parameters, backend_texts)
}


class Outcome(NamedTuple):
    """What a check came to.

    Args:
        check: a key of OF_REFERENCE or OF_BACKEND.
        backend: of which twin; empty for the reference.
        message: what is wrong, in one line; empty where nothing is.
        skipped: why it was not asked.
    """

    check: str
    backend: str = ""
    message: str = ""
    skipped: str = ""


def run(
    name: str, backends: Iterable[str] = tuple(adapters.FRAMEWORKS), progress: Callable[[str], None] | None = None
) -> list[Outcome]:
    """Every check of a family; a twin is asked nothing more once it, or the reference, has something wrong.

    Args:
        name: of the family, installed.
        backends: the twins that are asked.
        progress: called with each check before it begins.

    Raises:
        ValueError: an unknown family, or one whose file in spec cannot be used.
    """
    family(name)
    told_of = progress or (lambda _: None)
    outcomes: list[Outcome] = []
    why = ""
    for key, check in OF_REFERENCE.items():
        if why:
            outcomes.append(Outcome(key, skipped=why))
            continue
        told_of(f"{name}: {key}")
        outcomes.append(Outcome(key, "", _message(check, name)))
        # Where shapes do not fit, everything else fails in other words.
        why = f"{key} fails" if key == "shapes" and outcomes[-1].message else ""
    wrong = any(one.message for one in outcomes)
    for backend in backends:
        why = adapters.missing(backend) or ("the reference is wrong" if wrong else "")
        for key, check in OF_BACKEND.items():
            if why:
                outcomes.append(Outcome(key, backend, skipped=why))
                continue
            told_of(f"{name}: {key}, {backend}")
            outcomes.append(Outcome(key, backend, _message(check, name, backend)))
            why = f"{key} fails" if outcomes[-1].message else ""
    return outcomes


def _message(check: Callable[..., None], *of: str) -> str:
    try:
        check(*of)
    except Wrong as error:
        return str(error)
    except Exception as error:  # whatever a stranger's mixer raises is a finding
        line = str(error).partition("\n")[0]
        return f"{', '.join(of)}: {check.__name__} ends with {type(error).__name__}: {line}; mend what raises it"
    return ""


def _same(what: str, found: np.ndarray, expected: np.ndarray, bound: np.ndarray, remedy: str) -> None:
    """Raises ValueError naming the worst position where an array is off by more than its bound."""
    _shape(what, found, expected.shape, "the result")
    units = in_units(found, expected, bound)
    worst = float(units.max(initial=0.0))
    if not worst <= 1.0:
        at = np.unravel_index(units.argmax(), units.shape)
        values = f"got {np.asarray(found)[at]:.9g}, expected {expected[at]:.9g}"
        raise Wrong(f"{what}[{', '.join(map(str, at))}]: {values} {remedy}")


def _mixed_same(what: str, mixed: Mixed, y: np.ndarray, last: np.ndarray, remedy: str) -> None:
    """`_same` of output and last state, within 1e-12 of the largest entry."""
    for key, found, exact in (("y", mixed.y, y), ("state", mixed.last, last)):
        _same(f"{what}: {key}", found, exact, double_bound(exact), remedy)


def _shape(what: str, found: Any, expected: tuple[int, ...], where: str) -> None:
    if np.shape(found) != tuple(expected):
        raise Wrong(f"{what} has shape {np.shape(found)}, expected {tuple(expected)}; mend {where}")


def _lacks_and_besides(found: Iterable[str], expected: Iterable[str]) -> str:
    """`lacks a, b and has c besides`."""
    lacks, besides = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    parts = [f"lacks {', '.join(lacks)}"] if lacks else []
    return " and ".join(parts + ([f"has {', '.join(besides)} besides"] if besides else []))


def _refused(call: Callable[[], Any], words: str, what: str) -> None:
    """Raises ValueError unless the call raises one with these words."""
    try:
        call()
    except ValueError as error:
        if words in str(error):
            return
        raise Wrong(f"{what} is refused with {told(error)!r}; say {words!r}") from error
    raise Wrong(f"{what} is accepted; refuse it with a ValueError that says {words!r}")
