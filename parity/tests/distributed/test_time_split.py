"""The mixer with time in segments that do not divide it: an H100 found reads beyond the end."""

import pytest

torch = pytest.importorskip("torch")
triton_gated_scan = pytest.importorskip("torch_impl.ops.gated_scan.triton")

from torch_impl.ops.devices import default_device, triton_refusal
from torch_impl.ops.gated_scan import gated_scan

DEVICE = default_device()
pytestmark = pytest.mark.skipif(triton_refusal(DEVICE) is not None, reason=str(triton_refusal(DEVICE)))


@pytest.mark.parametrize("resets", [False, True])
def test_a_last_segment_may_be_shorter(monkeypatch, resets):
    """1280 steps in segments of 512, a whole number of blocks: what is beyond the end belongs to the next row."""
    monkeypatch.setattr(triton_gated_scan, "split", lambda programs, blocks, processors: min(4, blocks))
    generator = torch.Generator().manual_seed(0)
    b, t, d = 2, 1280, 8

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(DEVICE)

    inputs = [x.requires_grad_() for x in (draw(b, t, 3 * d), draw(d) - 6.0, draw(b, d))]
    of_outputs = draw(b, t, d), draw(b, d)
    masks = ((torch.rand(b, t, generator=generator) < 0.01).to(DEVICE) if resets else None, None)

    def results(method):
        outputs = gated_scan(inputs[0], inputs[1], 1e-6, inputs[2], *masks, method)
        return *outputs, *torch.autograd.grad(outputs, inputs, of_outputs)

    for found, wanted in zip(results("triton"), results("sequential"), strict=True):
        assert (found - wanted).abs().max() <= 1e-12 * wanted.abs().max()
