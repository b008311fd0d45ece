"""Initial weights: the same bits in spec, PyTorch and JAX, today and in every later version."""

import hashlib
import math

import numpy as np
import pytest

from parity.proof.problems.cases import CONFIG
from spec import PRESETS, LiquidNetConfig, initial_parameters, num_parameters, parameter_table
from spec.init import stream
from spec.mixers.base import normal, ones, zeros
from spec.mixers.liquidnet import half_life_bias
from spec.reference.scan import decay_gates

# NumPy does not promise its normal stream for ever. If a digest differs after an upgrade of NumPy and of nothing else,
# runs started before it no longer share their initial weights with new ones: say so in the release notes, and print the
# new digests with
#     python -c "import sys; sys.path.insert(0, 'parity/tests'); import test_init; test_init.print_digests()"
DIGESTS = {
    ("nano", 0): "32d52bdf03120a7a1c825dfb073344c3ffa0c74fc6161526373a02726c808f72",
    ("nano", 1): "51f3d49cec92a7576f138fe27ced3a2601a8e2f27edd6304ab559e64f8b46f6a",
    ("tiny", 0): "91a06f7f17128ad4059b74249ef57250d588c69c0de8f86d82511de0c2415bd3",
    ("small", 0): "1316c3f7144892085cb41a854e20db9368f357ec9775af243b433674a46c0348",
    ("base", 0): "fb1009913cf1d999f10db4685da1d903c8d7352f677e3753814f2b43618035e3",
    ("ssm-nano", 0): "f3d3171afcd653180500b5bda710a74728b9639ff423445350b360decbfe6db9",
    ("ssm-small", 0): "4686391d310ba911c6a013c08f60927b61216f3ddb7a6b7dfaed607eddc11ba0",
    ("mingru-nano", 0): "917e8f544fec309ed45cac4088bb7b2ec0c57aae747fbb40d7c3d411bc9fcba8",
    ("hgrn-nano", 0): "431af8de795586ad8a611e8fd738337d4ca9d7dbdb9005bacff351bdcc8aff70",
    ("rglru-nano", 0): "13fbf11f9372f2c8d2118b04c2dd8fe7b4d7f89b4cdadf6298e698bc3214f635",
    ("hybrid-nano", 0): "f816330714310c04acb960d2c9e3ac70e02b9ea4754ead3d0849cf506281aa41",
}
PARAMETERS = {"tiny": 11_568_768, "small": 29_922_816, "base": 104_676_864, "ssm-small": 28_341_120}


def digest(arrays) -> str:
    """SHA-256 over path, shape and little-endian float32 values of every tensor, by path."""
    sha = hashlib.sha256()
    for path in sorted(arrays):
        assert arrays[path].dtype == np.float32, path
        sha.update(f"{path} {arrays[path].shape}\n".encode())
        sha.update(np.ascontiguousarray(arrays[path]).astype("<f4", copy=False).data)
    return sha.hexdigest()


def print_digests() -> None:
    for name, seed in DIGESTS:
        print(f'    ("{name}", {seed}): "{digest(initial_parameters(PRESETS[name], seed))}",')


@pytest.mark.parametrize("name, seed", DIGESTS)
def test_the_bits_are_those_of_the_first_release(name, seed):
    assert digest(initial_parameters(PRESETS[name], seed)) == DIGESTS[name, seed], "see the comment at DIGESTS"


@pytest.mark.parametrize("name, seed", DIGESTS)
def test_a_fresh_model_holds_these_bits(adapter, name, seed):
    """By digest, so that `base` is in memory once and in one backend at a time."""
    parameters, count = adapter.initialize(PRESETS[name], seed)
    assert digest(parameters) == DIGESTS[name, seed]
    assert count == num_parameters(PRESETS[name]) == PARAMETERS.get(name, count)


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name):
    assert num_parameters(PRESETS[name]) == PARAMETERS[name]


def test_a_parameter_depends_on_its_path_and_the_seed_alone():
    """Neither on what was drawn before it nor on the rest of the model."""
    values = initial_parameters(CONFIG, 5)
    wider = initial_parameters(LiquidNetConfig(vocab_size=3, d_model=8, d_ff=12, n_layers=4), 5)
    for path in ("blocks.0.mixer.input.weight", "blocks.1.mlp.input.weight"):
        np.testing.assert_array_equal(values[path], wider[path])
        alone = stream(5, path).standard_normal(values[path].shape, dtype=np.float32) * np.float32(0.02)
        np.testing.assert_array_equal(values[path], alone)
    np.testing.assert_array_equal(values["embedding.weight"][:3], wider["embedding.weight"])
    other = initial_parameters(CONFIG, 6)
    assert not np.array_equal(values["embedding.weight"], other["embedding.weight"])
    blocks = [values[f"blocks.{i}.mixer.input.weight"] for i in range(2)]
    assert not np.array_equal(*blocks)


def test_values_follow_the_table():
    config = LiquidNetConfig(vocab_size=257, d_model=64, d_ff=96, n_layers=2)
    values = initial_parameters(config, 0)
    for row in parameter_table(config):
        x = values[row.path]
        assert x.dtype == np.float32 and x.shape == row.shape
        if row.init is normal:
            # Five standard deviations of the mean, and of the standard deviation, of x.size normal numbers.
            assert abs(x.mean()) < 5 * 0.02 / math.sqrt(x.size)
            assert abs(x.std() - 0.02) < 5 * 0.02 / math.sqrt(2 * x.size)
        elif row.init in (zeros, ones):
            assert (x == (row.init is ones)).all()
        else:
            np.testing.assert_array_equal(x, half_life_bias(64))
    zero = {row.path.split(".", 2)[-1] for row in parameter_table(config) if row.init is zeros}
    assert zero == {"mixer.output.weight", "mlp.output.weight"}


@pytest.mark.parametrize("channels", [2, 128, 192, 384, 768])
def test_half_lives_run_from_1_to_4096(channels):
    """At zero input: ln 2 / (softplus(b) + delta_min), equal steps on a log scale."""
    bias = half_life_bias(channels).astype(np.float64)
    alpha, fresh = decay_gates(bias, 0.0)
    half_life = math.log(2.0) / -np.log1p(-fresh)
    # b is rounded to float32: half an ulp of |b| <= 8.8, 2^-21, is the relative change of the half-life.
    expected = 4096.0 ** (np.arange(channels) / (channels - 1))
    np.testing.assert_allclose(half_life, expected, rtol=2.0**-21)
    assert (np.diff(alpha) > 0).all()
    with_least = math.log(2.0) / (-np.log1p(-fresh) + 1e-6)
    assert with_least[-1] == pytest.approx(4096 / (1 + 4096e-6 / math.log(2)), rel=2.0**-20)


def test_one_channel_has_half_life_1():
    assert half_life_bias(1) == np.float32(0.0)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=str(seed)):
        initial_parameters(CONFIG, seed)
