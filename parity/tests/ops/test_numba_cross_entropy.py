"""The cross-entropy of a CPU: blocks of words, their statistics, what it holds.

Its bounds are in test_fused_linear_cross_entropy.py.
"""

from __future__ import annotations

import pytest

from tools.bench.train_step import peak_bytes

torch = pytest.importorskip("torch")
pytest.importorskip("numba", reason="the extra cpu")

from torch_impl.kernels.numba import cross_entropy as kernels
from torch_impl.ops import matmul
from torch_impl.ops.cross_entropy import numba as numba_loss


def draw(n, v, d=16):
    random = torch.Generator().manual_seed(1000 * n + v)
    labels = torch.randint(0, v, (n,), generator=random)
    labels[::4] = -100
    return torch.randn(n, d, generator=random), 0.3 * torch.randn(v, d, generator=random), labels


@pytest.mark.parametrize("rows, words", [(4, 7), (9, 21), (1, 1)])
def test_blocks_of_words_are_made_once(monkeypatch, rows, words):
    """Three products a block where gradients are wanted, and one where they are not; any cut gives the same."""
    inputs = draw(9, 21)
    whole = numba_loss.numba_fused_linear(*inputs, 9 * 21, True)
    made, usual = [], (numba_loss.matmul, numba_loss.matmul_gradients)
    monkeypatch.setattr(numba_loss, "matmul", lambda x, w: made.append((len(x), len(w))) or usual[0](x, w))
    monkeypatch.setattr(numba_loss, "matmul_gradients", lambda *given: made.append("both") or usual[1](*given))
    monkeypatch.setattr(numba_loss, "BLOCK_LOGITS", rows * words)
    cut = numba_loss.numba_fused_linear(*inputs, rows * 21, True)
    for one, other in zip(cut, whole, strict=True):
        assert ((one - other).abs() <= 1e-6 * max(1.0, other.abs().max())).all()
    of_chunks = [
        (min(rows, 9 - start), min(max(1, rows * words // min(rows, 9 - start)), 21 - first))
        for start in range(0, 9, rows)
        for first in range(0, 21, max(1, rows * words // min(rows, 9 - start)))
    ]
    assert [each for each in made if each != "both"] == of_chunks and made.count("both") == len(of_chunks)
    made.clear()
    nats, *none = numba_loss.numba_fused_linear(*inputs, rows * 21, False)
    assert torch.equal(nats, cut[0]) and made == of_chunks and not any(x.numel() for x in none)


def test_statistics_do_not_depend_on_the_order_of_blocks():
    z, labels = 30.0 * torch.randn(6, 64), torch.tensor([0, 31, 32, 63, -100, 5])
    found = []
    for order in ((0, 32), (32, 0)):
        stats = torch.full((6,), -torch.inf), torch.zeros(6), torch.full((6,), torch.nan)
        for first in order:
            arrays = (z[:, first : first + 32].contiguous().numpy(), labels.numpy(), first)
            kernels.online_softmax(*arrays, *(x.numpy() for x in stats))
        found.append(stats[0].double() + stats[1].double().log())
        assert torch.equal(stats[2][:4], z[range(4), labels[:4]]) and stats[2][4].isnan()
    exact = z.double().logsumexp(dim=1)
    for one in found:
        assert ((one - exact).abs() <= 2.0**-24 * (64 + 8) * 2).all()


def test_labels_that_are_no_words_are_named():
    with pytest.raises(ValueError, match=r"labels must be -100 or in \[0, 9\), got 9"):
        numba_loss.numba_fused_linear(torch.randn(2, 4), torch.randn(9, 4), torch.tensor([3, 9]), 2**20, True)


def test_a_nan_reaches_the_loss():
    hidden, embedding = torch.randn(4, 8), torch.randn(200, 8)
    embedding[150] = torch.nan
    nats, *_ = numba_loss.numba_fused_linear(hidden, embedding, torch.arange(4), 2**20, False)
    assert nats.isnan().all()


@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")
def test_what_it_holds_is_a_chunk_of_logits(monkeypatch):
    """Beside the results: the logits of a chunk, a block's gradient of the embedding, one of hidden, statistics.

    What oneDNN takes for itself, two blocks of weights, is not counted.
    """
    monkeypatch.setattr(matmul, "PREFERS_CONVOLUTIONS", False)
    n, v, d = 256, 3000, 32
    inputs = draw(n, v, d)
    rows = 2**18 // v // 16 * 16
    words = max(1, numba_loss.BLOCK_LOGITS // rows)
    numba_loss.numba_fused_linear(*inputs, 2**18, True)
    most = peak_bytes(lambda: numba_loss.numba_fused_linear(*inputs, 2**18, True))
    least = 4 * (rows * v + (n + v) * d)
    assert least <= most <= least + 4 * (min(words, v) * d + rows * d) + 40 * n
