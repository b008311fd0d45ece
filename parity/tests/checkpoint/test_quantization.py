"""Matrices in fewer bits: what rounding may change, that it settles at once, and what a model loses by it."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity.proof.operations.liquid_ssm import DENSE
from parity.proof.problems.cases import CONFIG, perturbed_parameters
from spec.checkpoint.format import Checkpoint, find_checkpoint, read_checkpoint, write_checkpoint
from spec.checkpoint.quantization import WEIGHTS, quantize, rounded
from spec.sampling import Sampling
from tools.cli import backends
from tools.cli.main import main
from tools.generation.session import open_model
from tools.tokenizer import build_tokenizer

HERE = backends.installed()
TINY = 2.0**-119


def matrices():
    """Rows of every size that float32 has, zeros among them."""
    exponents = st.lists(st.sampled_from([*range(-149, 128), None]), min_size=1, max_size=6)
    return st.builds(_matrix, exponents, st.integers(1, 40), st.integers(0, 2**32 - 1))


def _matrix(exponents, width, seed):
    random = np.random.default_rng(seed)
    rows = [
        np.zeros(width) if exponent is None else np.ldexp(random.uniform(-1, 1, width), exponent)
        for exponent in exponents
    ]
    return np.asarray(rows, np.float32)


@given(matrices(), st.sampled_from(WEIGHTS))
def test_what_is_rounded_stays_as_it_is(weight_oi, weights):
    once = rounded({"a": weight_oi}, weights)
    twice = rounded(once, weights)
    assert once["a"].dtype == np.float32
    np.testing.assert_array_equal(once["a"], twice["a"])


@given(matrices())
def test_int8_is_off_by_half_a_scale_at_most(weight_oi):
    int8_oi, scale_o = quantize(weight_oi)
    assert int8_oi.dtype == np.int8 and scale_o.dtype == np.float32
    largest_o, wide_o = np.abs(weight_oi).max(axis=1), scale_o.astype(np.float64)
    # A scale is max|w| / 127, of which up to 7 bits are cut off so that products with it are exact.
    np.testing.assert_array_less(wide_o * 127, largest_o * (1 + 2.0**-23) + 2.0**-148)
    assert (wide_o * 127 >= largest_o * (1 - 2.0**-15))[largest_o > TINY].all() and np.abs(int8_oi).max() <= 127
    exact = int8_oi.astype(np.float64) * wide_o[:, None]
    np.testing.assert_array_equal(exact.astype(np.float32), exact)
    error = np.abs(exact - weight_oi)
    assert (error <= wide_o[:, None] * (0.5 + 2.0**-8) + TINY * (wide_o == 0)[:, None]).all()
    ulp = np.spacing(np.abs(weight_oi)).astype(np.float64)
    inside = np.abs(weight_oi) <= 126.5 * scale_o[:, None]
    assert (error <= wide_o[:, None] / 2 + ulp)[inside & (wide_o > 0)[:, None]].all()


@given(matrices())
def test_bfloat16_is_off_by_half_a_unit_at_most(weight_oi):
    found = rounded({"a": weight_oi}, "bfloat16")["a"].astype(np.float64)
    # Half a unit of 8 bits: 2^-8 of what a power of two begins, 2^-9 of what comes just before the next one.
    exponents = np.frexp(weight_oi.astype(np.float64))[1]
    assert (np.abs(found - weight_oi) <= np.ldexp(0.5, np.maximum(exponents, -125) - 8)).all()


def test_ties_go_to_even():
    int8_oi, scale_o = quantize(np.asarray([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]], np.float32))
    np.testing.assert_array_equal(int8_oi, [[127, 0, 2, 2, 0, -2]])
    np.testing.assert_array_equal(scale_o, [1.0])


@pytest.mark.parametrize("config", [CONFIG, DENSE], ids=["liquidnet", "liquid ssm"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_matrices_are_rounded_and_nothing_else(config, weights):
    parameters = perturbed_parameters(config, 3)
    found = rounded({path: array.astype(ml_dtypes.bfloat16) for path, array in parameters.items()}, "float32")
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    found = rounded(parameters, weights)
    assert found.keys() == parameters.keys()
    changed = {path for path, array in found.items() if not np.array_equal(array, parameters[path])}
    assert changed == (
        {path for path, array in parameters.items() if array.ndim == 2} if weights != "float32" else set()
    )


def test_rows_are_rounded_by_themselves():
    parameters = perturbed_parameters(CONFIG, 3)
    scaled = {path: array * (1 if array.ndim == 1 else 2.0 ** np.arange(len(array))[:, None]) for path, array in
              parameters.items()}  # fmt: skip
    one, other = rounded(parameters, "int8"), rounded(scaled, "int8")
    for path, array in one.items():
        factor = 1 if array.ndim == 1 else 2.0 ** np.arange(len(array))[:, None]
        np.testing.assert_array_equal(array * factor, other[path])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_no_int8(value):
    with pytest.raises(ValueError, match="a weight is not finite, so it has no int8"):
        quantize(np.asarray([[1.0, value]], np.float32))
    with pytest.raises(ValueError, match=r"unknown weights 'int7'; .*did you mean 'int8'"):
        rounded({}, "int7")


@pytest.fixture(scope="module")
def trained(small_data, tmp_path_factory):
    """A model that has learned something of the stories."""
    run = tmp_path_factory.mktemp("trained") / "run"
    shape = ("--d-model", "64", "--d-ff", "96", "--n-layers", "2", "--seq-len", "64", "--batch-size", "16")
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["train", HERE[0], "--preset", "nano", "--data", str(small_data), "--out", str(run), *shape,
              "--steps", "60", "--lr", "3e-3"])  # fmt: skip
    return run


def evaluated(run, data, capsys, *flags):
    capsys.readouterr()
    main(["evaluate", "--checkpoint", str(run), "--data", str(data), "--windows", "64", *flags])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", HERE)
def test_a_model_loses_little(trained, small_data, capsys, report, name):
    """bfloat16 within 1 %, int8 within 2 %, and neither nothing; what is printed says which it was."""
    flags = ("--backend", name)
    plain = evaluated(trained, small_data, capsys, *flags)
    assert "weights" not in plain and plain["val_bpb"] < 5
    for weights, most in (("bfloat16", 0.01), ("int8", 0.02)):
        found = evaluated(trained, small_data, capsys, *flags, "--weights", weights)
        lost = found["val_bpb"] / plain["val_bpb"] - 1
        report(f"{name}, {weights} weights: {lost:+.4%} bits a byte")
        assert found["weights"] == weights and 0 < abs(lost) < most


@pytest.mark.parametrize("weights", WEIGHTS)
def test_either_backend_writes_with_the_rounded_model(trained, tmp_path, capsys, weights):
    """The text is that of a checkpoint whose weights were rounded before; of another rounding its state is refused."""
    checkpoint = read_checkpoint(find_checkpoint(trained))
    fit = tmp_path / "fit"
    write_checkpoint(fit, Checkpoint(checkpoint.config, rounded(checkpoint.parameters, weights),
                                     state=checkpoint.state, tokenizer=checkpoint.tokenizer))  # fmt: skip
    texts = set()
    for name in HERE:
        for path, *flags in ((fit,), (trained, "--weights", weights)):
            capsys.readouterr()
            main(["generate", "--checkpoint", str(path), "--backend", name, "--max-tokens", "40", "--temperature", "0",
                  *flags])  # fmt: skip
            texts.add(capsys.readouterr().out)
    assert len(texts) == 1


def test_a_state_of_other_weights_is_refused(trained, tmp_path):
    plain, fit = open_model(trained), open_model(trained, weights="int8")
    session = fit.session()
    session.append("Once")
    list(session.write(Sampling(temperature=0.0), 3))
    session.save(tmp_path / "state", fit)
    fit.session().load(tmp_path / "state", fit)
    with pytest.raises(ValueError, match="the --weights it was saved with"):
        plain.session().load(tmp_path / "state", plain)


def test_what_cannot_be_rounded_is_told_in_one_line(tmp_path, refused):
    # Copies: what is drawn is kept for every other test.
    parameters = {path: x.copy() for path, x in perturbed_parameters(CONFIG, 3).items()}
    parameters["embedding.weight"][0, 0] = np.finfo(np.float32).max
    path = tmp_path / "broken"
    write_checkpoint(path, Checkpoint(CONFIG, parameters, tokenizer=build_tokenizer("byte").to_json()))
    for command in ("generate", "chat"):
        told = refused(command, "--checkpoint", str(path), "--weights", "bfloat16")
        assert "a weight is not finite in bfloat16" in told
        assert "--weights" in refused(command, "--checkpoint", str(path), "--weights", "int4")
