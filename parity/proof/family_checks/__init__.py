"""What a family must be besides numbers within bounds: each check passes, or raises ValueError in one line.

The line names the tensor, method or value that is wrong, and what to do. `OF_REFERENCE` are asked of a family's file in
spec, `OF_BACKEND` of each of its twins; `run` asks all of one family, as `liquidnet parity --family NAME` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from parity.proof import adapters
from parity.proof.family_checks.assertions import Wrong
from parity.proof.family_checks.backend import backend_module, backend_parameters
from parity.proof.family_checks.interface import (
    configuration,
    initial_values,
    methods,
    presets,
    shapes,
    side_inputs,
    training_side_inputs,
)
from parity.proof.family_checks.mathematics import (
    activations,
    adjoint,
    batch_independence,
    causality,
    padding,
    resets,
    split_sequence,
)
from parity.proof.family_checks.texts import backend_texts
from spec.mixers import family

__all__ = ["OF_BACKEND", "OF_REFERENCE", "Outcome", "Wrong", "run"]


OF_REFERENCE: Mapping[str, Callable[[str], None]] = {
    check.__name__: check
    for check in (methods, configuration, presets, initial_values, shapes, adjoint, activations, side_inputs,
                  training_side_inputs, batch_independence, causality, resets, padding, split_sequence)
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
