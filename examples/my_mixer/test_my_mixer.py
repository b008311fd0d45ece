"""What the author of a mixer runs: its proof, and what only this mixer has."""

import numpy as np
import pytest

pytest.importorskip("my_mixer", reason="pip install -e examples/my_mixer")

from my_mixer.spec import FAMILY, MyMixerConfig

from parity.proof import adapters, family_checks


@pytest.mark.parametrize("check", list(family_checks.OF_REFERENCE))
def test_the_reference(check):
    family_checks.OF_REFERENCE[check]("my_mixer")


@pytest.mark.parametrize("check", list(family_checks.OF_BACKEND))
@pytest.mark.parametrize("backend", [name for name in adapters.FRAMEWORKS if adapters.missing(name) is None])
def test_a_backend(check, backend):
    family_checks.OF_BACKEND[check]("my_mixer", backend)


def test_the_state_stays_between_the_values():
    """A moving average never leaves the range of what it averages."""
    config = MyMixerConfig(vocab_size=13, d_model=8, d_ff=12, n_layers=1, max_seq_len=64, max_rate=100.0)
    pre, bias = np.random.default_rng(0).uniform(-30, 30, (2, 64, 24)), {"rate_bias": np.zeros(8)}
    decay, drive, _ = FAMILY.gates(pre, bias, config)
    state, largest = np.zeros((2, 8)), np.abs(pre[..., :8]).max()
    for t in range(64):
        state = decay[:, t] * state + drive[:, t]
        assert np.abs(state).max() <= largest * (1 + 1e-12)


def test_a_rate_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"max_rate must be a number in \(0, 100\], got 0"):
        MyMixerConfig(max_rate=0)
