"""`parity.prove`: right functions are within their bounds and use them, wrong ones are named, bad input is one line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import parity
from parity.proof import adapters
from parity.proof.environment import ROOT
from parity.proof.functions.command import main
from parity.proof.functions.result import TensorErrors
from parity.proof.functions.rounded_complex import RoundingComplex
from parity.proof.functions.truth import complex_step_gradients, expected
from parity.proof.problems.cases import NANO
from spec.reference import blocks

torch = pytest.importorskip("torch", reason="the functions that are proved here are PyTorch's")
EXAMPLES = ROOT / "examples" / "prove"


def normal(*shapes):
    """Draws arrays a0, a1, ... of these shapes."""
    return lambda random: {f"a{i}": random.standard_normal(shape) for i, shape in enumerate(shapes)}


def operation(reference, function, draw, **more):
    return parity.FunctionOperation(name="it", reference=reference, torch=function, draw=draw, **more)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def attention(q, k, v):
    return softmax(np.einsum("btd,bsd->bts", q, k) / np.sqrt(q.shape[-1])) @ v


def scan(decay, drive):
    states, state = np.zeros_like(drive), np.zeros_like(drive, shape=drive.shape[1:])
    for t in range(len(drive)):
        state = decay[t] * state + drive[t]
        states[t] = state
    return states


def scan_in_torch(decay, drive):
    states = [torch.zeros_like(drive[0])]
    for t in range(len(drive)):
        states.append(decay[t] * states[-1] + drive[t])
    return torch.stack(states[1:])


def attention_in_torch(q, k, v):
    return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v


RIGHT = {
    "attention": (attention, attention_in_torch, normal((1, 5, 4), (1, 5, 4), (1, 5, 4))),
    # What is hidden is infinite on its way, and has a gradient of zero.
    "masked": (
        lambda scores, mask: softmax(np.where(mask, scores, -np.inf) / 1.5),
        lambda scores, mask: torch.softmax(torch.where(mask, scores, -torch.inf) / 1.5, -1),
        lambda random: (random.standard_normal((4, 4)), np.tri(4, dtype=bool)),
    ),
    "perceptron": (
        lambda x, w, b: np.tanh(np.dot(x, w.T) + b),
        lambda x, w, b: torch.tanh(torch.nn.functional.linear(x, w, b)),
        normal((5, 6), (4, 6), (4,)),
    ),
    "scan": (scan, scan_in_torch, lambda random: {"a": random.random((12, 2)), "b": random.standard_normal((12, 2))}),
    # No digit of 1 - tanh^2 is left in float32, and six in float64: the bounds know.
    "saturated": (np.tanh, torch.tanh, lambda random: {"x": 8.0 + 0.5 * random.standard_normal(9)}),
    "moments": (
        lambda x: (np.var(x, axis=-1), x.std(axis=0), np.linalg.norm(x, axis=-1), np.mean(np.abs(x))),
        lambda x: (x.var(-1, correction=0), x.std(0, correction=0), torch.linalg.norm(x, dim=-1), x.abs().mean()),
        normal((4, 6)),
    ),
    "solve": (
        lambda a, b: np.linalg.solve(a @ a.T + np.eye(4), b),
        lambda a, b: torch.linalg.solve(a @ a.T + torch.eye(4, dtype=a.dtype), b),
        normal((4, 4), (4, 2)),
    ),
    "embedding": (
        lambda table, tokens, scale: {"rows": table[tokens] * scale},
        lambda table, tokens, scale: {"rows": table[tokens] * scale},
        lambda random: (random.standard_normal((5, 3)), random.integers(0, 5, (2, 4)), random.standard_normal(())),
    ),
    "angles": (
        lambda y, x: np.arctan2(y, x) + np.hypot(x, y) + np.logaddexp(x, y),
        lambda y, x: torch.atan2(y, x) + torch.hypot(x, y) + torch.logaddexp(x, y),
        normal((6,), (6,)),
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_function_is_within_bounds_that_it_uses(name):
    reference, function, draw = RIGHT[name]
    result = parity.prove(operation(reference, function, draw), draws=3).require()
    assert result.exit_code == 0 and {row.dtype for row in result.rows} == {"float32", "float64"}
    for gradient in (False, True):
        rows = [row for row in result.rows if row.dtype == "float32" and row.tensor.startswith("gradient") == gradient]
        assert 1 / 30 < max(row.worst for row in rows) < 1.0


def test_numbers_below_the_smallest_normal_one_may_be_lost():
    def function(x):
        return x * 1e-30 * 1e-10

    jax = None if adapters.missing("jax") else function
    parity.prove(operation(function, function, normal((3,)), jax=jax), draws=1).require()


WRONG = {
    "a scale": (attention, lambda q, k, v: attention_in_torch(q * (1 + 1e-5), k, v), RIGHT["attention"][2], "gradient"),
    "a gradient that is cut": (
        lambda x, w: x * w,
        lambda x, w: x * w.detach(),
        normal((4,), (4,)),
        r"gradient of a1\[\d\]",
    ),
    "a kink": (lambda x: np.maximum(x, 0.0), torch.nn.functional.silu, normal((5,)), "output|gradient of a0"),
    "an approximation": (
        lambda x: 0.5 * x * (1.0 + np.tanh(0.7978845608028654 * (x + 0.044715 * x**3))),
        torch.nn.functional.gelu,
        normal((30,)),
        "output|gradient of a0",
    ),
    "the last step": (scan, lambda a, b: scan_in_torch(a, b).roll(1, 0), RIGHT["scan"][2], r"output\[\d+, \d\]|grad"),
    "float32 in float64": (lambda x: x * x, lambda x: (x.float() ** 2).to(x.dtype), normal((5,)), "float64: "),
    "float64 in float32": (lambda x: x * x, lambda x: x.double() ** 2, normal((5,)), "output is float64, expected"),
    "an error": (lambda x: x * x, lambda x: x @ x.nothing, normal((5,)), "AttributeError: 'Tensor' object has no"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_function_is_named_with_its_tensor(name):
    reference, function, draw, message = WRONG[name]
    result = parity.prove(operation(reference, function, draw), draws=3)
    assert result.exit_code == 1 and not result.passed
    with pytest.raises(AssertionError, match=message) as raised:
        result.require()
    worst = max(result.failures, key=lambda one: one.units)
    assert f"parity.prove(it, draws=1, seed={worst.seed}, dtypes=('{worst.dtype}',)).require()" in str(raised.value)
    again = parity.prove(operation(reference, function, draw), draws=1, seed=worst.seed, dtypes=(worst.dtype,))
    assert again.failures[0].message == worst.message


def test_the_smallest_problem_is_shown():
    """And of those the one that is worst; how many failed is told."""

    def draw(random):
        return (random.standard_normal(random.integers(1, 4)),)

    wrong = operation(lambda x: x * x, lambda x: x * x * 1.01, draw)
    (failure,) = parity.prove(wrong, draws=8, dtypes=("float64",)).failures
    sizes = {seed: wrong.problem(seed).size for seed in range(8)}
    assert sizes[failure.seed] == min(sizes.values()) < max(sizes.values()) and failure.problems == 8
    alone = (parity.prove(wrong, draws=1, seed=seed, dtypes=("float64",)).failures[0] for seed in sizes
             if sizes[seed] == sizes[failure.seed])  # fmt: skip
    assert failure.units == max(one.units for one in alone)


def test_what_is_wrong_by_a_few_units_is_seen_in_float32_alone():
    """The estimate is narrow: 30 units in the last place, on 5 problems."""
    reference, function, draw = RIGHT["perceptron"]
    shifted = operation(reference, lambda *x: function(*x) * (1.0 + 30 * 2.0**-23), draw)
    assert not parity.prove(shifted, draws=5, dtypes=("float32",)).passed


@pytest.mark.parametrize("file, right, wrong", [("rotary", "rotary", "interleaved"),
                                                ("layer_norm", "layer_norm", "eps_outside")])  # fmt: skip
def test_the_examples(file, right, wrong, capsys, tmp_path, monkeypatch):
    if adapters.missing("jax"):
        pytest.skip(str(adapters.missing("jax")))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(ROOT)
    path = f"examples/prove/{file}.py"
    assert main([f"{path}:{right}", "--draws", "2"]) == 0
    assert f"PASS {right}: on 2 problems torch and jax kept to the reference" in capsys.readouterr().out
    assert main([f"{path}:{wrong}", "--draws", "2", "--report", str(tmp_path)]) == 1
    said, backend = capsys.readouterr().out, "torch" if file == "rotary" else "jax"
    assert f"FAIL {wrong}: on 2 problems {backend} left" in said and f"{wrong}, {backend}, float32: " in said
    assert f"python -m parity {path}:{wrong} --draws 1 --seed " in said
    kept = json.loads((tmp_path / "report.json").read_text())
    assert not kept["passed"] and {one["backend"] for one in kept["failures"]} == {backend}
    assert said.strip() in (tmp_path / "report.md").read_text()
    tensors = {one["tensor"] for one in kept["rows"] if one["backend"] == backend and one["worst"] > 1.0}
    expected = {"output", "gradient of x"} if file == "rotary" else {"output", "gradient of x", "gradient of weight"}
    assert tensors == expected


def test_the_command_tells_bad_input_in_one_line(capsys, tmp_path):
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    for place in ("nowhere.py:x", "examples", f"{tmp_path / 'empty.py'}:x", f"{tmp_path / 'broken.py'}:x"):
        assert main([place]) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ") and told.count("\n") == 1, told


def test_complex_steps_are_the_gradients_by_hand():
    """Of the family's own RMSNorm, and along functions that complex numbers do not have."""
    x, weight = normal((1, 3, 8), (8,))(np.random.default_rng(0)).values()
    one = operation(
        lambda x, weight: blocks.rms_norm(x, weight, NANO.norm_eps)[0], lambda x, w: x, lambda _: (x, weight)
    )
    problem = one.problem(0)
    wide = [array.astype(np.float64) for array in problem.inputs.values()]
    saved = blocks.rms_norm(*wide, NANO.norm_eps)[1]
    by_hand = blocks.rms_norm_adjoint(saved, problem.output_gradients["output"].astype(np.float64))
    found, _ = complex_step_gradients(problem)
    for gradient, exact in zip(found.values(), by_hand, strict=True):
        np.testing.assert_allclose(gradient, exact, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("steps", [np.sign, np.floor, np.ceil, np.rint, np.trunc, np.signbit])
def test_a_step_function_is_taken_of_the_value_and_has_no_slope(steps):
    """d/dx x f(x) = f(x) where f is constant around x."""
    x = 3.0 * np.random.default_rng(0).standard_normal(9)
    problem = operation(lambda x: x * steps(x), lambda x: x, lambda _: (x,)).problem(0)
    (gradient,) = complex_step_gradients(problem)[0].values()
    exact = problem.output_gradients["output"] * steps(x)
    assert exact.any()
    np.testing.assert_allclose(gradient, exact, rtol=1e-15)


@pytest.mark.parametrize(
    "function, slope",
    [
        (lambda x: np.arctan2(x, 2.0), lambda x: 2.0 / (x * x + 4.0)),
        (lambda x: np.hypot(x, 2.0), lambda x: x / np.hypot(x, 2.0)),
        (lambda x: np.logaddexp(x, 0.5), lambda x: 1.0 / (1.0 + np.exp(0.5 - x))),
    ],
    ids=["arctan2", "hypot", "logaddexp"],
)
def test_functions_that_take_no_complex_numbers_take_a_variable_beside_a_constant(function, slope):
    x = np.random.default_rng(0).standard_normal(9)
    problem = operation(function, lambda x: x, lambda _: (x,)).problem(0)
    (gradient,), (drawn,) = complex_step_gradients(problem)[0].values(), problem.inputs.values()
    of_output = problem.output_gradients["output"].astype(np.float64)
    np.testing.assert_allclose(gradient, of_output * slope(drawn.astype(np.float64)), rtol=1e-13)


def test_a_report_says_what_is_not_finite_in_words(tmp_path):
    """JSON has no such numbers."""
    result = parity.Result("it", 1, 0, False)
    assert result.rows == [] == result.failures
    rows = [TensorErrors("torch", "float32", "output", worst) for worst in (math.inf, math.nan, 0.5)]
    replace(result, rows=rows).report(tmp_path)
    told = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [row["worst"] for row in told] == ["inf", "nan", 0.5]


def test_an_adjoint_stands_for_complex_steps():
    def adjoint(x, w, grad):
        return grad * w * (1.0 - np.tanh(x) ** 2), grad * np.tanh(x)

    def reference(x, w):
        return np.tanh(x) * w

    draw = normal((4,), (4,))
    one = operation(reference, lambda x, w: torch.tanh(x) * w, draw, adjoint=adjoint)
    result = parity.prove(one, draws=4).require()
    assert result.by_hand and "its adjoint" in str(result) and 1 / 30 < result.used < 1.0
    plain = operation(reference, one.torch, draw)
    for found, exact in zip(expected(one.problem(1))[0].values(), expected(plain.problem(1))[0].values(), strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-13)


def test_one_backend_and_no_gradients():
    """Constants have none; a function of integers alone has none at all."""
    frozen = operation(lambda x, c: x * c, lambda x, c: x * c.detach(), normal((3,), (3,)), constants=("a1",))
    assert {row.tensor for row in parity.prove(frozen, draws=2).require().rows} == {"output", "gradient of a0"}
    counted = operation(lambda n: n * 0.1, lambda n: n * torch.tensor(0.1, dtype=torch.float64),
                        lambda random: (random.integers(0, 9, 3),))  # fmt: skip
    assert {row.tensor for row in parity.prove(counted, draws=2, dtypes=("float64",)).require().rows} == {"output"}
    if not adapters.missing("jax"):
        import jax.numpy as jnp

        alone = parity.FunctionOperation(name="it", reference=np.sin, jax=lambda x: x - x**3 / 6, draw=normal((3,)))
        assert parity.prove(alone, draws=1).failures[0].backend == "jax"
        found = parity.prove(replace(alone, jax=jnp.sin), draws=2).require()
        assert {(row.backend, row.tensor) for row in found.rows} == {("jax", "output"), ("jax", "gradient of a0")}


def unsteady(_):
    return {"x": np.random.default_rng().standard_normal(3)}


SQUARE, THREE = (lambda x: x * x), normal((3,))
REFUSED = {
    "no backend": (lambda: operation(SQUARE, None, THREE), "without a backend; give torch="),
    "no function": (lambda: operation(3, SQUARE, THREE), "reference is 3; give a function"),
    "shapes": (
        lambda: operation(SQUARE, lambda x: x[:2], THREE),
        r"torch gives output of shape \[2\], the reference \[3\]",
    ),
    "names": (lambda: operation(SQUARE, lambda x: (x, x), THREE), "give the same outputs by the same names"),
    "float32": (lambda: operation(lambda x: np.float32(x * x), SQUARE, THREE), "output as float32 for float64 inputs"),
    "draw": (lambda: operation(SQUARE, SQUARE, unsteady), "another problem from the same seed 0"),
    "drawn words": (lambda: operation(SQUARE, SQUARE, lambda _: ("x",)), "draw gives x as <U1"),
    "nothing drawn": (lambda: operation(SQUARE, SQUARE, lambda _: None), "draw gives NoneType"),
    "not finite": (lambda: operation(lambda x: x / (x - x), SQUARE, THREE), "not finite on the problem of seed 0"),
    "no gradient": (
        lambda: operation(lambda x: np.log(x) * x, SQUARE, lambda _: (np.zeros(3),)),
        "not finite on the problem of seed 0",
    ),
    "constants": (lambda: operation(SQUARE, SQUARE, THREE, constants=("w",)), r"constants name \['w'\]"),
    "counts": (lambda: operation(lambda x: (x, x.argmax()), SQUARE, THREE), "output 1 as int64; give arrays of floats"),
    "nothing": (lambda: operation(lambda x: None, SQUARE, THREE), "output as NoneType; give arrays of floats"),
    "ragged": (
        lambda: operation(SQUARE, SQUARE, lambda _: {"x": [[1.0], [1.0, 2.0]]}),
        "draw gives x, and NumPy raises",
    ),
    "writes into a constant": (
        lambda: operation(lambda x, n: x * n.__iadd__(1), SQUARE, lambda _: (np.ones(3), np.arange(3))),
        "the reference raises ValueError: .*read-only",
    ),
    "no arrays": (lambda: operation(lambda a0: np.asarray(a0) * 2.0, SQUARE, THREE), "rounds cannot be seen"),
    "real part": (lambda: operation(lambda x: x * x.real, SQUARE, THREE), "drops imaginary parts: .* give adjoint="),
    "no complex": (lambda: operation(lambda x: np.cbrt(x), SQUARE, THREE), "on complex numbers .* raises TypeError"),
    "plain zeros": (
        lambda: operation(lambda x: filled(np.zeros(3), x), SQUARE, THREE),
        r"make arrays with np.zeros_like",
    ),
    "an error": (lambda: operation(lambda x: x.nothing, SQUARE, THREE), "the reference raises AttributeError"),
    "adjoint": (
        lambda: operation(SQUARE, SQUARE, THREE, adjoint=lambda x, g: 3.0 * x * g),
        "adjoint gives .* for the derivative along a0",
    ),
    "adjoint's shape": (lambda: operation(SQUARE, SQUARE, THREE, adjoint=lambda x, g: (x * g).sum()), r"of its shape"),
}


def filled(array, x):
    array[:] = x * x
    return array


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:divide by zero:RuntimeWarning")
def test_bad_input_is_one_line_with_a_remedy(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as raised:
        parity.prove(make(), draws=1)
    assert "\n" not in str(raised.value) and str(raised.value).startswith("it: ")


@pytest.mark.parametrize("more, message", [({"draws": 0}, "draws is 0"), ({"dtypes": ("float16",)}, "dtypes is")])
def test_bad_settings(more, message):
    with pytest.raises(ValueError, match=message):
        parity.prove(operation(SQUARE, SQUARE, THREE), **more)


def test_arrays_round_in_every_way_that_numpy_adds_up():
    """np.sum, np.mean, cumsum, dot, tensordot, single numbers: none slips back into exact arithmetic."""
    x = np.random.default_rng(0).uniform(0.5, 1.0, (6, 6))
    ways = [np.sum, np.mean, np.var, np.std, np.cumsum, np.prod, np.linalg.norm, np.fft.rfft, np.trace]
    ways += [
        lambda a: np.linalg.inv(a + 6.0 * np.eye(6)),
        lambda a: np.dot(a, a),
        lambda a: np.tensordot(a, a),
        lambda a: np.einsum("ij,kj", a, a),
        lambda a: a[0, 0] * a[1, 1],
    ]
    ways += [lambda a: a.astype(np.float64) / 3.0, lambda a: np.cumprod(a, axis=0), lambda a: np.outer(a[0], a[1])]
    ways += [np.average, np.diff, np.gradient, np.trapezoid, lambda a: np.inner(a, a)]
    ways += [lambda a: np.kron(a[0], a[1]), lambda a: np.cross(a[:3, :3], a[3:, 3:]), lambda a: np.convolve(a[0], a[1])]
    for way in ways:
        exact = way(x)
        found = np.asarray(way(RoundingComplex(1, 2.0**-24)(x)))
        error = np.abs(found - exact).max() / np.abs(exact).max()
        assert 1e-9 < error < 1e-5, (exact, found)
        np.testing.assert_allclose(np.asarray(way(RoundingComplex(1, 0.0)(x))), exact, rtol=1e-13)


def test_to_add_zero_is_exact():
    """The derivative by one input is zero almost everywhere: sums of it must not round as if it were not."""
    x = np.zeros(1000)
    x[0] = 0.3
    for way in (np.sum, lambda a: a @ np.ones(1000), lambda a: np.einsum("i,i->", a, np.ones(1000))):
        assert abs(float(way(RoundingComplex(0, 2.0**-24)(x))) - 0.3) <= 0.3 * 2.0**-24


def test_importing_it_loads_no_framework():
    code = (
        "import sys, parity, parity.proof.functions.command; parity.FunctionOperation, parity.Result, parity.prove;"
        "print({'torch', 'jax', 'pytest', 'hypothesis'} & {name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_device_that_is_not_here_is_bad_input(capsys) -> None:
    """And no finding about the function."""
    assert main([f"{ROOT / 'examples/prove/rotary.py'}:rotary", "--device", "moon"]) == 2
    assert "PyTorch has no device 'moon' here" in capsys.readouterr().err
