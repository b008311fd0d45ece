"""A method's self-test on this device, its cached verdict, and what training takes where it fails."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.proof.environment import ROOT, devices, processor, version
from spec.checkpoint.files import new_file
from spec.config import ModelConfig, TrainingConfig
from tools.cli import backends

if TYPE_CHECKING:
    from parity.proof.problems.cases import LayerCase, ScanCase

# Most trusted last: what stands in for a method that fails is the next in this list that passes. `sequential` is the
# recurrence as it is written.
TRUST = ("chunked", "associative", "sequential")
SHAPE = (3, 67, 2)
FRAMEWORKS = {"torch": ("torch", "triton"), "jax": ("jax", "jaxlib", "flax")}


def tested_operations() -> dict[str, str]:
    """What has methods to test, and the operation of the proof that stands for each; the mixers are the families'."""
    from parity.proof.operations import self_tests

    return {"scan": "scan", **{name: test.operation for name, test in self_tests().items()}, "loss": "cross_entropy"}


@dataclass(frozen=True)
class Verdict:
    """What a self-test found.

    Args:
        passed: every error was within its bound.
        worst: the largest error, in units of its bound; not a number where nothing ran.
        message: what went wrong; empty where nothing did.
        runs: the method runs on this device at all.
    """

    passed: bool
    worst: float
    message: str = ""
    runs: bool = True


def self_test(backend: str, method: str) -> Verdict:
    """Runs a method of the mixer, and of the scan where it is one, on fixed problems, gradients included.

    In float32, on the device that the backend takes here, against the float64 reference.
    """
    from parity.proof.adapters import load

    methods = load(backend).METHODS
    found = [probe(backend, name, method) for name in ("scan", "mixer") if method in methods[name]]
    if not found:
        raise ValueError(f"{backend} has no mixer method {method!r}")
    return next((one for one in found if not one.passed), max(found, key=lambda one: one.worst))


def probe(backend: str, operation: str, method: str) -> Verdict:
    """Runs one method of one operation, a key of `tested_operations`, on fixed problems."""
    from parity.proof.operations import check

    worst, proved = 0.0, tested_operations()[operation]
    for case in _cases(operation):
        try:
            worst = max(worst, check(proved, backend, method, "float32", case))
        except NotImplementedError as error:
            return Verdict(False, math.nan, f"does not run here: {error}", runs=False)
        except AssertionError as error:
            return Verdict(False, _units(proved, backend, method, case), str(error))
        except Exception as error:  # a compiler or a driver raises what it likes: then this method is not to be used
            return Verdict(False, math.inf, f"crashes: {type(error).__name__}: {error}")
    return Verdict(True, worst)


def trusted_method(
    backend: str, method: str, model: ModelConfig, training: TrainingConfig, warn: Callable[[str], None]
) -> str:
    """The mixer method to train with: `method`, unless it is `auto` and what `auto` takes here fails its self-test.

    A method that is named runs or raises; it is never replaced.

    Args:
        backend: `torch` or `jax`.
        method: as the user asked for.
        model, training: what is trained.
        warn: called with what failed and what is used instead.

    Raises:
        ValueError: every method of the backend fails.
    """
    # What is no scan of the backend's has nothing that could stand in for it here.
    if method != "auto" or not backends.load(backend, "mixers").capabilities(model).scan_methods:
        return method
    scan = backends.load(backend, "ops.scan")
    choice = scan.choose_method((training.batch_size, training.seq_len, model.d_model))
    verdict = cached_self_test(backend, choice)
    if verdict.passed:
        return method
    where = f"{backend} on {devices(backend)[0]}"
    reason = f"by {verdict.worst:.3g} times its rounding bound" if verdict.runs else f"since it {verdict.message}"
    for other in (name for name in TRUST if name in scan.METHODS and name != choice):
        if cached_self_test(backend, other).passed:
            warn(
                f"WARNING: the scan method {choice} fails its self-test in {where}, {reason}; "
                f"{other} is used instead; see liquidnet doctor"
            )
            return other
    raise ValueError(f"no scan method of {where} passes its self-test; {choice} fails {reason}; see liquidnet doctor")


def cached_self_test(backend: str, method: str) -> Verdict:
    """The verdict on a method on this device with these versions and sources; tested where it is not known yet."""
    known = known_verdict(backend, method)
    if known is None:
        known = self_test(backend, method)
        # A crash may have had a passing reason, such as full memory: it is tried again.
        if not math.isinf(known.worst):
            remember(backend, method, known)
    return known


def known_verdict(backend: str, method: str) -> Verdict | None:
    """What the cache says; None where it says nothing that can be read."""
    try:
        return Verdict(**_read_cache()[_key(backend, method)])
    except (KeyError, TypeError):
        return None


def remember(backend: str, method: str, verdict: Verdict) -> None:
    """Keep a verdict; where the cache cannot be written, the next run tests again."""
    try:
        with new_file(cache_file()) as temporary:
            temporary.write_text(json.dumps({**_read_cache(), _key(backend, method): asdict(verdict)}, indent=1))
    except OSError:
        return


def cache_file() -> Path:
    """Where the verdicts are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "liquidnet" / "selftest.json"


def sources_digest(backend: str) -> str:
    """SHA-256 over the sources that a verdict depends on: the backend's, the reference's, the bounds'."""
    patterns = ("spec/**/*.py", f"{backend}_impl/**/*.py", "parity/proof/**/*.py", "tools/training/selftest.py")
    sha = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in ROOT.glob(pattern)):
        sha.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return sha.hexdigest()[:16]


def _key(backend: str, method: str) -> str:
    versions = [f"{name} {version(name)}" for name in (*FRAMEWORKS[backend], "numpy")]
    return "; ".join([backend, method, *devices(backend)[:1], processor(), *versions, sources_digest(backend)])


def _read_cache() -> dict[str, Any]:
    try:
        found = json.loads(cache_file().read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _cases(operation: str) -> list[ScanCase] | list[LayerCase]:
    """Few shapes, since each is compiled; several chunks and a rest."""
    from parity.proof.operations import self_tests
    from parity.proof.problems.cases import CONFIG, NANO, LayerCase, ScanCase

    b, t, _ = SHAPE
    if operation == "scan":
        kinds = ("mixture", "slow", "one", "zero")
        return [ScanCase(SHAPE, kind, "normal", "some", "left", seed) for seed, kind in enumerate(kinds)]
    if operation in self_tests():
        return list(self_tests()[operation].cases)
    return [
        LayerCase((b, t), "normal", seed, config, "some", "left", "some") for seed, config in enumerate((CONFIG, NANO))
    ]


def _units(operation: str, backend: str, method: str, case: ScanCase | LayerCase) -> float:
    from parity.proof.adapters import load
    from parity.proof.bounds import in_units
    from parity.proof.operations import OPERATIONS, expected

    found = OPERATIONS[operation].run(load(backend), case, method, "float32")
    truth, bound = expected(operation, case, "float32")
    return max(float(in_units(found[name], exact, bound[name]).max(initial=0.0)) for name, exact in truth.items())
