"""What a family computes: its adjoint, its activations, and a state that holds all that counts."""

from __future__ import annotations

from typing import Any

import numpy as np

from parity.proof.bounds import double_bound, in_units
from parity.proof.family_checks.assertions import Wrong, require_same, require_same_mixed
from parity.proof.family_checks.problem import ROWS, STEPS, mixer_problem
from parity.proof.layer_diff.weights import tensor_of
from parity.proof.problems.complex_step import complex_step
from spec.init import initial_parameters
from spec.mixers import families
from spec.mixers.base import NO_MASKS, Masks
from spec.parameters import parameter_table
from spec.reference import activations as model_activations


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
        require_same(f"adjoint of {name}: the gradient of {key}", found[key], *expected[key], remedy)


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
        require_same(
            f"each_alone of {name}: {key}", alone[key], exact, bound, "as forward gives; take what stands before it"
        )
    config = whole.small_config()
    inside = model_activations(initial_parameters(config), config, np.zeros((1, 2), int))
    tensors = {key.removeprefix("blocks.0.") for key in inside}
    if strange := {*whole.formulas, *whole.enters.values()} - tensors:
        known = ", ".join(sorted(tensors))
        raise Wrong(f"formulas or enters of {name} name {', '.join(sorted(strange))}; a block has {known}")
    if strange := set(whole.enters) - {f"mixer.{path}" for path in problem.weights}:
        raise Wrong(f"enters of {name} names {', '.join(sorted(strange))}; name parameters, as mixer.PATH")
    # Else a comparison that finds such a parameter changed could not say where it shows.
    if lost := [row.path for row in parameter_table(config) if tensor_of(config, row.path) not in inside]:
        raise Wrong(f"no activation of {name} is known to take {', '.join(lost)}; add it to enters")


def batch_independence(name: str) -> None:
    """A row alone gives what it gives in a batch, and rows in another order give the same in that order."""
    problem = mixer_problem(name)
    whole, remedy = problem.run(), "as in the batch; let no row see another"
    for rows in ([0], [1], [2, 0, 1]):
        mixed = problem.run(**problem.of_rows(rows))
        what = f"row {rows[0]} alone" if len(rows) == 1 else f"rows in the order {rows}"
        require_same_mixed(f"{name}: {what}", mixed, whole.y[rows], whole.last[rows], remedy)


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
        require_same(what, found, exact, double_bound(exact), "as before the change; read no later token")


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
    require_same_mixed(f"{name}: after a reset", whole._replace(y=whole.y[:, step:]), fresh.y, fresh.last, remedy)
    none_given = problem.run(**rest, state=None)
    require_same_mixed(
        f"{name}: with state=None", none_given, fresh.y, fresh.last, "as from a state of zero; None is zero"
    )


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
    require_same_mixed(
        f"{name}: another padded token", changed._replace(y=changed.y[:, kept]), whole.y[:, kept], whole.last, remedy
    )
    short = problem.of_steps(kept)
    alone = problem.run(**short | {"masks": Masks(short["masks"].resets, None)}, state=problem.state)
    require_same_mixed(f"{name}: with padding", whole._replace(y=whole.y[:, kept]), alone.y, alone.last, remedy)


def split_sequence(name: str) -> None:
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
        require_same_mixed(f"{name}: the text {what}", found, whole.y, whole.last, remedy)
