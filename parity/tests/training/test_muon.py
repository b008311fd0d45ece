"""Muon: what an iteration does to singular values, steps of both backends against float64, and what it leaves alone."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest

from parity.proof import adapters
from parity.proof.bounds import assert_within, unit
from parity.proof.bounds.monte_carlo_arithmetic import estimate
from parity.proof.operations.base import UNITS
from parity.proof.problems.cases import CONFIG, AdamWCase, perturbed_parameters
from parity.suite.runs.segment import Segment, same_bits
from parity.suite.runs.trajectory_drift import SMALL, SMALL_TRAINING, bounded_run, story_data
from spec.checkpoint.format import COUNTERS, Checkpoint, read_checkpoint, to_files, write_checkpoint
from spec.config import ModelConfig, TrainingConfig
from spec.mixers import families
from spec.optimizer import MOMENTS, NEWTON_SCHULZ, decayed_paths, matrices, moment_paths, newton_schulz_flops
from spec.parameters import parameter_table
from spec.reference import clip_by_global_norm, muon_step, optimizer_step, orthogonalized
from tools import convert
from tools.cli import backends
from tools.cli.main import main

TRAINING = TrainingConfig(optimizer="muon", grad_clip=1.0, weight_decay=0.1)
RATES = (1e-2, 3e-2, 1e-2)
LEAST, LOW, HIGH = 0.002, 0.68, 1.21
"""Of singular values over the norm: those from the first on come out between the others."""
MODELS: dict[str, ModelConfig] = {
    name: replace(one.small_config(), vocab_size=31) for name, one in families().items() if one.name != CONFIG.family
} | {CONFIG.family: CONFIG}
#: The family of which a part is several matrices.
BLOCKS = next(name for name, config in MODELS.items() if any(row.blocks > 1 for row in parameter_table(config)))


def with_singular_values(values, rows, columns, seed=0):
    """A matrix of these, and both factors of its decomposition."""
    random = np.random.default_rng(seed)
    left, right = (np.linalg.qr(random.standard_normal((n, len(values))))[0] for n in (rows, columns))
    return left * values @ right.T, left, right


@pytest.mark.parametrize("rows, columns", [(12, 12), (12, 40), (40, 12)])
def test_singular_values_come_out_near_one(rows, columns):
    """And singular vectors stay: the iteration is an odd polynomial of each value."""
    values = np.geomspace(1.0, 2 * LEAST, 12)
    matrix, left, right = with_singular_values(values, rows, columns)
    found = left.T @ orthogonalized(3.0 * matrix) @ right
    assert np.abs(found - np.diag(np.diag(found))).max() < 1e-12
    assert np.diag(found).min() >= LOW and np.diag(found).max() <= HIGH
    x = values / np.linalg.norm(values)
    for a, b, c in NEWTON_SCHULZ:
        x = a * x + b * x**3 + c * x**5
    # The norm is off by what keeps it from zero.
    np.testing.assert_allclose(np.diag(found), x, rtol=1e-6)


def test_the_range_is_what_the_docstring_says():
    x = np.linspace(LEAST, 1.0, 100_001)
    for a, b, c in NEWTON_SCHULZ:
        x = a * x + b * x**3 + c * x**5
    assert LOW <= x.min() <= LOW + 0.01 and HIGH - 0.01 <= x.max() <= HIGH


def test_of_zeros_zeros_are_left():
    assert not orthogonalized(np.zeros((3, 5))).any()


def reference_run(config, training, lift=np.asarray):
    """Parameters and both moments after a step at each rate, on the kind of array that `lift` makes."""
    params, gradients = AdamWCase("no clip", len(RATES), 7, config).arrays()
    state = [{path: lift(np.asarray(x, np.float64)) for path, x in params.items()}]
    state += [{path: lift(np.zeros(x.shape)) for path, x in params.items()} for _ in MOMENTS]
    taken = matrices(config)
    for step, (arrays, rate) in enumerate(zip(gradients, RATES, strict=True), start=1):
        wide = {path: lift(np.asarray(g, np.float64)) for path, g in arrays.items()}
        clipped, _ = clip_by_global_norm(wide, training.grad_clip)
        state = optimizer_step(*[state[0], clipped, *state[1:]], step, rate, training, decayed_paths(config), taken)
    return flat(config, training, *state)


def flat(config, training, params, *moments):
    """By name: the moments that there are."""
    paths = moment_paths(config, training)
    named = {
        f"{name} {path}": group[path] for name, group in zip(MOMENTS, moments, strict=True) for path in paths[name]
    }
    return {**params, **named}


def backend_run(adapter, config, training, arrays=None):
    params, gradients = AdamWCase("no clip", len(RATES), 7, config).arrays() if arrays is None else arrays
    found, moments, _ = adapter.adamw_steps(config, training, params, {}, 0, gradients, RATES)
    assert {name: tuple(sorted(group)) for name, group in moments.items()} == {
        name: tuple(sorted(paths)) for name, paths in moment_paths(config, training).items()
    }
    return flat(config, training, found, *(moments[name] for name in MOMENTS))


@pytest.mark.parametrize(
    # The first have all that the others have: parts, blocks, and what is no matrix.
    "name",
    [name if name in (CONFIG.family, BLOCKS) else pytest.param(name, marks=pytest.mark.long) for name in MODELS],
)
def test_steps_stay_within_the_estimate(adapter, name):
    """Every family: matrices of several shapes, parts of unequal ones, blocks, and what is no matrix.

    The iteration enlarges a small singular value up to 485 times, and the rounding of the first products with it, which
    no short bound holds: Monte Carlo arithmetic on the same gradients, whose condition is in it.
    """
    config = MODELS[name]
    truth = {key: np.asarray(x) for key, x in reference_run(config, TRAINING).items()}
    bounds = estimate(partial(reference_run, config, TRAINING), truth, unit())
    assert_within(backend_run(adapter, config, TRAINING), truth, bounds, f"Muon, {name}")


def test_products_in_bfloat16_stay_within_their_estimate(adapter):
    training = replace(TRAINING, newton_schulz_dtype="bfloat16")
    truth = {key: np.asarray(x) for key, x in reference_run(CONFIG, TRAINING).items()}
    bounds = estimate(partial(reference_run, CONFIG, TRAINING), truth, unit(), product_unit=UNITS["bfloat16"])
    found, wide = backend_run(adapter, CONFIG, training), backend_run(adapter, CONFIG, TRAINING)
    assert_within(found, truth, bounds, "Muon in bfloat16")
    path = matrices(CONFIG)[0].path
    assert not np.array_equal(found[path], wide[path])


@pytest.mark.parametrize("backend", backends.installed())
@pytest.mark.parametrize("rank", [1, 4])
def test_a_matrix_of_low_rank_is_not_drowned_by_bfloat16(backend, rank):
    """Operands are rounded to 8 bits, and their products summed in more: rounded too, half of an update was noise."""
    random = np.random.default_rng(0)
    matrix = random.standard_normal((64, rank)) @ random.standard_normal((rank, 128))
    exact = orthogonalized(matrix)
    found = np.asarray(narrow_iterations(backend)(matrix.astype(np.float32)[None]), np.float64)[0]
    assert 0.0 < np.linalg.norm(found - exact) < 0.05 * np.linalg.norm(exact)


def narrow_iterations(backend):
    """The iterations of a backend with operands in bfloat16, of NumPy arrays."""
    iterate = adapters.load_module(backend, "training.muon").orthogonalized
    if backend == "jax":
        return partial(iterate, dtype="bfloat16")
    torch = pytest.importorskip("torch")
    return lambda x_mrc: iterate(torch.from_numpy(x_mrc), torch.bfloat16).numpy()


@pytest.mark.parametrize("name", [BLOCKS, CONFIG.family])
def test_what_is_no_matrix_takes_the_step_of_adamw(adapter, name):
    """To the bit: embedding, norms, biases, and the taps of a convolution."""
    config, taken = MODELS[name], {matrix.path for matrix in matrices(MODELS[name])}
    muon, adamw = (backend_run(adapter, config, replace(TRAINING, optimizer=one)) for one in ("muon", "adamw"))
    table = {row.path: row for row in parameter_table(config)}
    assert taken and all(len(table[path].shape) == 2 and path.startswith("blocks.") for path in taken)
    for path in table:
        assert np.array_equal(muon[path], adamw[path]) == (path not in taken), path
    for path in table.keys() - taken:
        assert all(np.array_equal(muon[f"{kind} {path}"], adamw[f"{kind} {path}"]) for kind in MOMENTS)


def test_each_part_of_a_fused_matrix_is_taken_for_itself(adapter):
    """A part whose gradient is a million times another's changes nothing of it."""
    params, gradients = AdamWCase("no clip", len(RATES), 7, CONFIG).arrays()
    training, matrix = replace(TRAINING, grad_clip=0.0), matrices(CONFIG)[0]
    louder = [{path: g.copy() for path, g in one.items()} for one in gradients]
    for one in louder:
        one[matrix.path][matrix.stop :] *= 1e6
    quiet, loud = (backend_run(adapter, CONFIG, training, (params, each)) for each in (gradients, louder))
    own = slice(matrix.start, matrix.stop)
    np.testing.assert_array_equal(quiet[matrix.path][own], loud[matrix.path][own])
    assert sum(one.path == matrix.path for one in matrices(CONFIG)) > 1
    # An update has one size, whatever its gradient has: 0.2 an entry, so far as the singular values are 1.
    change = np.abs(quiet[matrix.path][own] - params[matrix.path][own]) / sum(RATES)
    assert 0.05 < change.mean() < 0.4


def test_a_loaded_optimizer_goes_on_to_the_same_bits(adapter):
    params, gradients = AdamWCase("clip active", 6, 4, CONFIG).arrays()
    rates = [1e-2] * 6
    whole = adapter.adamw_steps(CONFIG, TRAINING, params, {}, 0, gradients, rates)
    half = adapter.adamw_steps(CONFIG, TRAINING, params, {}, 0, gradients[:3], rates[:3])
    rest = adapter.adamw_steps(CONFIG, TRAINING, half[0], half[1], 3, gradients[3:], rates[3:])
    for path, after in whole[0].items():
        np.testing.assert_array_equal(rest[0][path], after)
    for name, paths in moment_paths(CONFIG, TRAINING).items():
        assert all(np.array_equal(rest[1][name][path], whole[1][name][path]) for path in paths)


def test_parts_are_those_of_the_table():
    """Without a gap and in order; a block-diagonal matrix is so many."""
    for name, config in MODELS.items():
        rows = {row.path: row for row in parameter_table(config)}
        ends: dict[str, int] = {}
        for matrix in matrices(config):
            assert matrix.start == ends.get(matrix.path, 0) and matrix.columns == rows[matrix.path].shape[1], name
            ends[matrix.path] = matrix.stop
        assert all(rows[path].shape[0] == end for path, end in ends.items())
    config = MODELS[BLOCKS]
    gates = [matrix for matrix in matrices(config) if matrix.path == "blocks.0.mixer.gates.weight"]
    assert len(gates) == 2 * config.gate_blocks and not any("convolution" in one.path for one in matrices(config))


def test_moments_without_gradients_decay_alone():
    """A gradient of zero: the momentum fades, and what it points to is still taken."""
    path = matrices(CONFIG)[0].path
    params, gradients = AdamWCase("no clip", 1, 3, CONFIG).arrays()
    zero = {name: np.zeros_like(x) for name, x in gradients[0].items()}
    new, first = muon_step(params, zero, gradients[0], 1e-2, TRAINING, matrices(CONFIG))
    np.testing.assert_allclose(first[path], 0.95 * gradients[0][path], rtol=1e-6)
    assert not np.array_equal(new[path], params[path])


def test_flops_are_those_of_the_products():
    """Counted by hand: 28 matrices of nano's size, 20 of them square."""
    config = replace(CONFIG, d_model=16, d_ff=24, n_layers=1)
    square, wide = 5 * (4 * 16**3 + 2 * 16**3), 5 * (4 * 16**2 * 24 + 2 * 16**3)
    assert newton_schulz_flops(config) == 4 * square + 3 * wide


@pytest.mark.parametrize("first, second", [("torch", "jax"), ("jax", "torch")])
def test_a_hand_over_stays_within_the_bound(first, second, tmp_path):
    """Three steps in one backend, a checkpoint in every format, and three more in the other one."""
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    training = replace(SMALL_TRAINING, optimizer="muon")
    exact, bound = bounded_run(story_data(), 6, training)
    began, went_on = (Segment(engine_of(name)(SMALL, training), SMALL) for name in (first, second))
    losses = began.train(3)[0]
    left = began.snapshot()
    state = {**dict.fromkeys(COUNTERS, 0), "step": 3, "training": asdict(training)}
    checkpoint = Checkpoint(SMALL, left["parameters"], left["moments"], state)
    for name in ("neutral", "weights.pt", "weights.msgpack"):
        convert.write(tmp_path / name, checkpoint)
        checkpoint = convert.read(tmp_path / name)
    write_checkpoint(tmp_path / "shard", checkpoint, sharded=True)
    checkpoint = read_checkpoint(tmp_path / "shard")
    assert {kind: set(x) for kind, x in checkpoint.moments.items()} == {
        kind: set(paths) for kind, paths in moment_paths(SMALL, training).items()
    }
    went_on.restore({**left, "parameters": checkpoint.parameters, "moments": checkpoint.moments})
    assert same_bits(went_on.snapshot(), left)
    together = np.concatenate([losses, went_on.train(3)[0]])[:, 0]
    assert (np.abs(together - exact) <= bound).all()


def engine_of(backend):
    return adapters.load_module(backend, "training.engine").Engine


def test_a_checkpoint_has_the_moments_of_its_optimizer():
    """One of AdamW is no one of Muon, whose matrices have no second moment."""
    arrays = perturbed_parameters(CONFIG, 1)
    for optimizer, other in (("adamw", "muon"), ("muon", "adamw")):
        training = replace(TRAINING, optimizer=optimizer)
        moments = {
            kind: {path: np.zeros_like(arrays[path]) for path in paths}
            for kind, paths in moment_paths(CONFIG, training).items()
        }
        state = {**dict.fromkeys(COUNTERS, 0), "training": asdict(training)}
        to_files(Checkpoint(CONFIG, arrays, moments, state))
        named = asdict(replace(training, optimizer=other))
        wrong = "is missing" if other == "adamw" else "is not part of the configured model"
        with pytest.raises(ValueError, match=wrong):
            to_files(Checkpoint(CONFIG, arrays, moments, {**state, "training": named}))
    # What holds no word of an optimizer was trained with AdamW.
    with pytest.raises(ValueError, match="is missing"):
        to_files(Checkpoint(CONFIG, arrays, moments))


@pytest.mark.parametrize("backend", backends.installed())
def test_a_run_keeps_its_optimizer(refused, backend, small_data, tmp_path, capsys):
    """Whose moments it has: the other one would find some missing, or too many; and each flag wants its owner."""
    sizes = ("--d-model", "8", "--d-ff", "12", "--n-layers", "1", "--batch-size", "2", "--seq-len", "16")
    few = (*sizes, "--steps", "4", "--eval-windows", "2")
    command = ("train", backend, "--data", str(small_data), "--out")
    assert "--momentum 0.9 is of Muon; add --optimizer muon, or leave --momentum out" in refused(
        *command, str(tmp_path / "none"), *few, "--momentum", "0.9"
    )
    assert "--newton-schulz-dtype bfloat16 is of Muon" in refused(
        *command, str(tmp_path / "none"), *few, "--newton-schulz-dtype", "bfloat16"
    )
    for optimizer, other in (("muon", "adamw"), ("adamw", "muon")):
        whole, cut = (tmp_path / f"{optimizer} {name}" for name in ("whole", "cut"))
        for out, *more in ((whole,), (cut, "--stop-at", "2")):
            with pytest.raises(SystemExit) as ended:
                main([*command, str(out), *few, "--optimizer", optimizer, *more])
            assert not ended.value.code
        capsys.readouterr()
        assert f"this run has optimizer {optimizer}, not {other}; leave --optimizer out" in refused(
            *command, str(cut), "--resume", "--optimizer", other
        )
        if optimizer == "adamw":
            told = refused(*command, str(cut), "--resume", "--momentum", "0.5")
            assert told.rstrip().endswith("--momentum 0.5 is of Muon; leave --momentum out")
        with pytest.raises(SystemExit) as ended:
            main([*command, str(cut), "--resume"])
        assert not ended.value.code
        one, resumed = (read_checkpoint(out) for out in (whole, cut))
        assert one.state["step"] == resumed.state["step"] == 4
        for kind, group in {"parameters": one.parameters, **one.moments}.items():
            again = {"parameters": resumed.parameters, **resumed.moments}[kind]
            assert group.keys() == again.keys() and all(np.array_equal(group[path], again[path]) for path in group)
