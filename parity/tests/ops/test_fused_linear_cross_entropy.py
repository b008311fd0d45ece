"""Cross-entropy with its gradients in one pass: registration, both softmax steps, half precision, memory."""

from dataclasses import replace

import pytest

from parity.proof.operations import check
from parity.proof.problems.cases import CONFIG, LayerCase
from spec import LiquidNetConfig
from spec.inputs import IGNORED_LABEL
from tools.bench import train_step

torch = pytest.importorskip("torch")

from torch_impl import LiquidNet
from torch_impl.ops import cross_entropy as losses
from torch_impl.ops.cross_entropy import fused_linear
from torch_impl.ops.devices import triton_refusal

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALVES = [torch.float16, torch.bfloat16]
TOKENS, VOCABULARY = 24576, 50257


@pytest.fixture(params=["torch", "triton", "numba"])
def step(request, monkeypatch):
    """All ways from logits to their gradients."""
    if request.param == "numba":
        if not fused_linear.takes_numba(DEVICE):
            pytest.skip("the Numba kernels need a CPU, and Numba")
        return request.param
    without_numba(monkeypatch)
    if request.param == "triton" and (reason := triton_refusal(DEVICE)):
        pytest.skip(reason)
    # Also interpreted, which `auto` never takes.
    monkeypatch.setattr(fused_linear, "takes_triton", lambda device: request.param == "triton")
    return request.param


def without_numba(monkeypatch):
    monkeypatch.setattr(fused_linear, "takes_numba", lambda *_: False)


def draw(n, v, d=16, dtype=torch.float32, ignored=0.2, size=0.3):
    random = torch.Generator().manual_seed(1000 * n + v)
    hidden = torch.randn(n, d, generator=random, dtype=torch.float64).to(DEVICE, dtype)
    embedding = (size * torch.randn(v, d, generator=random, dtype=torch.float64)).to(DEVICE, dtype)
    labels = torch.randint(0, v, (n,), generator=random)
    labels[torch.rand(n, generator=random) < ignored] = IGNORED_LABEL
    return hidden, embedding, labels.to(DEVICE)


def chunk_rows(monkeypatch, rows, v):
    """So many rows a chunk, on a GPU too."""
    more = fused_linear.CHUNK_FACTOR if DEVICE.type == "cuda" or fused_linear.takes_numba(DEVICE) else 1
    monkeypatch.setattr(losses, "CHUNK_LOGITS", -(-rows * v // more))


def with_gradients(method, hidden, embedding, labels, compute, factor=1.0):
    leaves = [x.detach().requires_grad_() for x in (hidden, embedding)]
    nats = losses.METHODS[method](*leaves, labels, compute)
    return nats.detach(), *torch.autograd.grad(nats * factor, leaves)


def assert_near(found, wanted, tolerance):
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        size = max(1.0, other.abs().max()) if other.numel() else 1.0
        assert ((one - other).abs() <= tolerance * size).all()


def distances(found, exact):
    """Root mean square error of each gradient over that of the gradient itself."""
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found[1:], exact[1:], strict=True)]


@pytest.mark.parametrize("compute", [torch.float32, *HALVES])
@pytest.mark.parametrize("gradients", [True, False])
def test_the_operator_is_registered_as_pytorch_asks(step, compute, gradients):
    hidden, embedding, labels = draw(9, 21)
    leaves = [x.requires_grad_(gradients) for x in (hidden, embedding)]
    torch.library.opcheck(fused_linear._cross_entropy, (*leaves, labels, compute, 4 * 21, gradients))


# Dynamo makes an instance of every autograd.Function that it traces, which PyTorch itself warns of.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_a_step_compiles_without_a_graph_break(compute_dtype):
    config = LiquidNetConfig(vocab_size=37, d_model=8, d_ff=16, n_layers=1, max_seq_len=8)
    model = LiquidNet(config, compute_dtype=compute_dtype, loss_method="fused_linear").to(DEVICE)
    tokens = torch.arange(10, device=DEVICE).reshape(2, 5)
    found = []
    for loss in (model.loss, torch.compile(model.loss, fullgraph=True, backend="aot_eager")):
        value, _ = loss(tokens, tokens + 1)
        value.backward()
        found.append([value.detach(), *(p.grad.clone() for p in model.parameters())])
        model.zero_grad()
    assert_near(*found, 1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("values", ["normal", "small", "wide", "absorbed"])
def test_both_steps_are_within_the_bound(step, values, dtype):
    for seed in range(2):
        check("cross_entropy", "torch", "fused_linear", dtype, LayerCase((2, 31), values, seed))


@pytest.mark.parametrize("seed", [0, 1])
def test_any_word_may_stand_far_from_the_rest(step, seed):
    """As in test_operations.py, where `auto` alone chooses between the steps."""
    case = LayerCase((1, 65), "peaked", seed, replace(CONFIG, vocab_size=65, d_model=65))
    check("cross_entropy", "torch", "fused_linear", "float32", case)


@pytest.mark.parametrize("n, v", [(0, 21), (1, 1), (1, 257), (3, 50257), (65, 1003), (7, 4096), (4, 8193)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_any_number_of_tokens_and_of_words(step, monkeypatch, n, v, dtype, tolerance):
    arrays = draw(n, v, dtype=dtype)
    wanted = with_gradients("full", *arrays, dtype, 0.37)
    for rows in (1, 2, n):
        chunk_rows(monkeypatch, rows, v)
        assert_near(with_gradients("fused_linear", *arrays, dtype, 0.37), wanted, tolerance)


@pytest.mark.parametrize("compute", [torch.float32, *HALVES])
def test_ignored_labels_give_nothing(step, compute):
    hidden, embedding, labels = draw(9, 21)
    nothing = with_gradients("fused_linear", hidden, embedding, torch.full_like(labels, IGNORED_LABEL), compute)
    assert all((x == 0).all() for x in nothing)
    some = with_gradients("fused_linear", hidden, embedding, labels, compute)
    ignored = labels == IGNORED_LABEL
    assert ignored.any() and (some[1][ignored] == 0).all() and (some[1][~ignored] != 0).any(dim=1).all()
    assert_near(
        some[2:], with_gradients("fused_linear", hidden[~ignored], embedding, labels[~ignored], compute)[2:], 1e-6
    )


def test_columns_beyond_the_vocabulary_count_for_nothing(step):
    """What lies there may be anything; in the gradient it becomes 0, for it meets rows of zeros in a product."""
    random = torch.Generator().manual_seed(1)
    logits, gradient = torch.randn(5, 80, generator=random).to(DEVICE), torch.full((5, 70), torch.nan, device=DEVICE)
    logits[:, 64:70], labels, nats = torch.nan, torch.tensor([0, 63, -100, 5, 6], device=DEVICE), logits.new_empty(5)
    leaf = logits[:, :64].clone().requires_grad_()
    wanted = torch.nn.functional.cross_entropy(leaf, labels, reduction="none")
    fused_linear._softmax_gradient(logits[:, :70], labels, nats, gradient, 64, 2.0)
    (of_leaf,) = torch.autograd.grad(2.0 * wanted.sum(), leaf)
    assert_near((nats, gradient[:, :64]), (wanted.detach(), of_leaf), 1e-6)
    assert (gradient[:, 64:] == 0).all()


@pytest.mark.skipif(DEVICE.type == "cuda", reason="a GPU takes this path itself")
@pytest.mark.parametrize("compute", HALVES)
def test_products_that_widen_give_the_same(step, monkeypatch, compute):
    """The path of a GPU, its products replaced: operands stay narrow, and the embedding gets rows of zeros."""
    arrays = draw(9, 101)
    chunk_rows(monkeypatch, 4, 101)
    widened = with_gradients("fused_linear", *arrays, compute)
    read = fused_linear.wide_lm_head(*arrays[:2], compute)

    def product(a, b, wide, out=None, add_to=None):
        assert a.dtype == b.dtype == compute
        result = a.to(wide) @ b.to(wide)
        return result if out is add_to else out.copy_(result) if add_to is None else add_to.add_(result)

    monkeypatch.setattr(fused_linear, "has_wide_matmul", lambda device, compute: compute in HALVES)
    monkeypatch.setattr(fused_linear, "_matmul", product)
    assert_near(with_gradients("fused_linear", *arrays, compute), widened, 1e-6)
    assert torch.equal(fused_linear.wide_lm_head(*arrays[:2], compute), read)


@pytest.mark.parametrize("compute", [torch.float32, *HALVES])
def test_tensors_need_not_be_contiguous(step, monkeypatch, compute):
    hidden, embedding, labels = draw(9, 21)
    chunk_rows(monkeypatch, 4, 21)
    wanted = with_gradients("fused_linear", hidden, embedding, labels, compute)
    apart = hidden.repeat_interleave(2, dim=1)[:, ::2], embedding.T.contiguous().T, labels.repeat_interleave(3)[::3]
    assert not any(x.is_contiguous() for x in apart)
    assert_near(with_gradients("fused_linear", *apart, compute), wanted, 1e-6)


def test_a_label_outside_the_vocabulary_does_not_pass(step):
    hidden, embedding, labels = draw(9, 21)
    for labels[3] in (21, -1):
        if step == "triton":
            assert losses.METHODS["fused_linear"](hidden, embedding, labels, torch.float32).isnan()
        elif DEVICE.type == "cpu":
            with pytest.raises((RuntimeError, ValueError), match=r"out of bounds|labels must be -100 or in"):
                losses.METHODS["fused_linear"](hidden, embedding, labels, torch.float32)


@pytest.mark.parametrize("compute", HALVES)
@pytest.mark.parametrize("n, v, size", [(65, 1003, 0.3), (5, 50257, 0.05), (5, 50257, 1.0)])
def test_half_precision_is_as_good_as_the_plain_formulation(step, report, compute, n, v, size):
    """Against float64, at most twice the error of `full`: rounded operands, all else float32."""
    if step == "numba":
        pytest.skip("half precision has none of Numba's kernels")
    hidden, embedding, labels = draw(n, v, size=size)
    exact = with_gradients("full", hidden.double(), embedding.double(), labels, torch.float64)
    ours, plain = (with_gradients(method, hidden, embedding, labels, compute) for method in ("fused_linear", "full"))
    # The interpreter cuts bfloat16 off where hardware rounds: a whole ulp, not half of one.
    cut_off = step == "triton" and compute == torch.bfloat16 and DEVICE.type == "cpu"
    for mine, its in zip(distances(ours, exact), distances(plain, exact), strict=True):
        report(f"{step}, {compute}, v = {v}: error {mine:.1e}, of the plain formulation {its:.1e}")
        assert mine <= (3.0 if cut_off else 2.0) * its
    assert abs(ours[0] - exact[0]) <= 2 * abs(plain[0] - exact[0]) + 1e-6 * exact[0]


def test_float16_would_lose_small_probabilities_unscaled(step, monkeypatch):
    """Nearly all of 50257 words have a probability below the smallest float16, 6e-8."""
    hidden, embedding, labels = draw(5, 50257, ignored=0.0)
    hidden, embedding = 0.3 * hidden, embedding.clone()
    hidden[:, 0], embedding[:, 0], embedding[7, 0], labels[:] = 1.0, -9.5, 9.5, 7
    exact = with_gradients("full", hidden.double(), embedding.double(), labels, torch.float64)
    plain = distances(with_gradients("full", hidden, embedding, labels, torch.float16), exact)
    scaled = distances(with_gradients("fused_linear", hidden, embedding, labels, torch.float16), exact)
    monkeypatch.setattr(fused_linear, "FLOAT16_SCALE", 1.0)
    unscaled = distances(with_gradients("fused_linear", hidden, embedding, labels, torch.float16), exact)
    assert all(mine <= 2 * its for mine, its in zip(scaled, plain, strict=True)), (scaled, plain)
    assert unscaled[0] > 100 * scaled[0] and unscaled[1] > 3 * scaled[1], (unscaled, scaled)


def test_without_gradients_there_is_one_product_a_chunk(monkeypatch):
    without_numba(monkeypatch)
    products, usual = [], fused_linear._matmul

    def count(*args, **kwargs):
        result = usual(*args, **kwargs)
        products.append(tuple(result.shape))
        return result

    monkeypatch.setattr(fused_linear, "_matmul", count)
    hidden, embedding, labels = draw(9, 21)
    chunk_rows(monkeypatch, 4, 21)
    leaves = [x.requires_grad_() for x in (hidden, embedding)]
    for without in (torch.no_grad, torch.inference_mode):
        products.clear()
        with without():
            nats = losses.METHODS["fused_linear"](*leaves, labels, torch.float32)
        assert products == [(4, 21), (4, 21), (1, 21)]
    products.clear()
    assert losses.METHODS["fused_linear"](*leaves, labels, torch.float32) == nats
    assert products == 2 * [(4, 21), (4, 16), (21, 16)] + [(1, 21), (1, 16), (21, 16)]


@pytest.mark.parametrize("compute", HALVES)
@pytest.mark.parametrize("factor", [1e-36, 1.0, 65536.0])
def test_a_wide_read_out_has_the_gradients_of_rounded_operands(compute, factor):
    """Whatever the loss is multiplied by: float16 alone ends at 6e-8 and 65504."""
    hidden, embedding, _ = draw(6, 21)
    of_logits = factor * torch.randn(2, 3, 21, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    leaves = [x.requires_grad_() for x in (hidden.reshape(2, 3, -1), embedding)]
    logits = fused_linear.wide_lm_head(*leaves, compute)
    of_hidden, of_embedding = torch.autograd.grad(logits, leaves, of_logits)
    h, e = (x.detach().to(compute).double() for x in leaves)
    assert logits.dtype == of_hidden.dtype == of_embedding.dtype == torch.float32
    unit, g = torch.finfo(compute).eps / 2, of_logits.double()
    assert ((logits - h @ e.T).abs() <= 1e-6 * (h.abs() @ e.T.abs())).all()
    assert ((of_hidden - g @ e).abs() <= 1.01 * unit * (g.abs() @ e.abs())).all()
    exact, size = (torch.einsum("btv,btd->vd", *pair) for pair in ((g, h), (g.abs(), h.abs())))
    assert ((of_embedding - exact).abs() <= 1.01 * unit * size).all()


@pytest.mark.parametrize("device, method", [("cuda", "fused_linear"), ("cpu", "fused_linear"), ("mps", "chunked")])
def test_auto_takes_it_where_it_was_measured(device, method):
    assert losses.choose_method(torch.device(device)) == method


def peak_bytes(run):
    """The most that `run` holds of what PyTorch's allocator gives out meanwhile."""
    if DEVICE.type == "cuda":
        run()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    return train_step.peak_bytes(run)


def extra_bytes(
    n: int, d: int, v: int, accumulate: torch.dtype, compute: torch.dtype, chunk_logits: int, wide_matmul: bool
) -> int:
    """The most bytes that `fused_linear_cross_entropy` holds beyond its inputs and the two gradients it returns.

    Forward: a chunk of logits, and of their gradient if that is narrower; embedding and a chunk of hidden as operands,
    if they are no inputs; the nats. Backward: the gradients that were kept, beside those that are returned.

    Args:
        n, d, v: tokens, width, vocabulary.
        accumulate: dtype of the inputs.
        compute: dtype that operands are rounded to.
        chunk_logits: most logits at a time.
        wide_matmul: `has_wide_matmul`; elsewhere operands that were rounded are widened again.
    """
    rows, wide = min(n, max(1, chunk_logits // v)), accumulate.itemsize
    narrow = 0 if compute == accumulate else compute.itemsize
    operand = narrow if wide_matmul or not narrow else wide
    forward = rows * fused_linear._padded(v) * (wide + narrow) + (v + rows) * d * operand + n * wide
    return max(forward, (n + v) * d * wide)


def materialised_bytes(n: int, v: int, accumulate: torch.dtype) -> int:
    """The same of autograd over all logits at once: log softmax, its gradient, and the gradient of the logits."""
    return 3 * n * v * accumulate.itemsize


SCALED = [(1024, 5003, 48, 2**18), (1024, 5003, 16, 2**19), (4096, 1003, 8, 2**16)]


@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n, v, d, chunk", SCALED if DEVICE.type == "cpu" else [(TOKENS, VOCABULARY, 384, 2**24)])
def test_peak_memory_follows_the_formula(monkeypatch, report, n, v, d, chunk, compute):
    """On a CPU where it is quick; the formula is then asked about 24,576 tokens and 50257 words."""
    if DEVICE.type == "cpu":
        without_numba(monkeypatch)
    monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk)
    hidden, embedding, labels = draw(n, v, d)
    ours, materialised = (
        peak_bytes(lambda: with_gradients(method, hidden, embedding, labels, compute)) - 4 * (n + v) * d  # noqa: B023
        for method in ("fused_linear", "full")
    )
    chunk *= fused_linear.CHUNK_FACTOR if DEVICE.type == "cuda" else 1
    formula = extra_bytes(n, d, v, torch.float32, compute, chunk, fused_linear.has_wide_matmul(DEVICE, compute))
    whole = materialised_bytes(n, v, torch.float32)
    report(f"{compute}, {(n, v, d)}: {ours / formula:.3f} of the formula, materialised {materialised / whole:.3f}")
    assert (ours, materialised) == pytest.approx((formula, whole), rel=0.05)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wide_matmul, factor", [(True, fused_linear.CHUNK_FACTOR), (False, 1)], ids=["GPU", "CPU"])
def test_peak_memory_at_the_sizes_of_a_run(report, compute, wide_matmul, factor):
    """A tenth of the materialised form; a tenth even of one tensor of float32 logits."""
    for d in (192, 384, 768):
        shape = TOKENS, d, VOCABULARY, torch.float32, compute, factor * losses.CHUNK_LOGITS
        ours = extra_bytes(*shape, wide_matmul)
        whole = materialised_bytes(TOKENS, VOCABULARY, torch.float32)
        report(f"x{factor}, {compute}, d = {d}: {ours / 2**20:.0f} MiB, {ours / whole:.4f} of the materialised form")
        assert ours < whole / 10 and ours < TOKENS * VOCABULARY * 4 / 10
