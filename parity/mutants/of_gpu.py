"""Faults in what a GPU runs: the Triton kernels, one pass of linear and cross-entropy, float16, decoding by graph."""

from parity.suite.mutants.mutant import Mutant

MIXER = ("parity/tests/ops/test_operations.py", "-k", "float64 and mixer and torch and triton")
SCAN = ("parity/tests/ops/test_operations.py", "-k", "float64 and scan and torch and triton")
KERNELS = (
    "parity/tests/compiled/test_triton_kernels.py",
    "-k",
    "257x384 or decay_of_one or masks_may_begin or (split and 257x48)",
)
LAUNCHES = ("parity/tests/compiled/test_triton_launches.py", "-k", "time_is_split or threshold or old_gpu")
SPLIT = ("parity/tests/distributed/test_time_split.py",)
ANY_TOKENS = ("parity/tests/ops/test_fused_linear_cross_entropy.py", "-k", "any_number_of_tokens")
NO_GRADIENTS = ("parity/tests/ops/test_fused_linear_cross_entropy.py", "-k", "without_gradients")
SIXTEEN_BITS = ("parity/tests/ops/test_fused_linear_cross_entropy.py", "-k", "float16_would_lose or half_precision")
OVERFLOW = ("parity/tests/model/test_mixed_precision.py", "-k", "made_again or unscaled")
RESUMED = ("parity/tests/model/test_mixed_precision.py", "-k", "run_in_float16")
DECODE = ("parity/tests/generation/test_decode.py", "-k", "earlier or buffers_hold or in_place")

GPU = (
    Mutant(
        "triton: the state after a block is its first row's",
        "torch_impl/kernels/triton/gated_scan_forward.py",
        "tl.sum(tl.where(rows == W - 1, after, 0.0), 0)",
        "tl.sum(tl.where(rows == 0, after, 0.0), 0)",
        KERNELS,
    ),
    Mutant(
        "triton: the gradient of the decay forgets the reset",
        "torch_impl/kernels/triton/gated_scan_backward.py",
        "tl.where(is_marked(reset, r), 0.0, states[r]) if RESETS else states[r]",
        "states[r]",
        MIXER,
    ),
    Mutant(
        "triton: padding has gradients",
        "torch_impl/kernels/triton/gated_scan_backward.py",
        "tl.where(is_still(still, left, r, PADDED), 0.0, g) if STILLS else g",
        "g",
        MIXER,
    ),
    Mutant(
        "triton: the bias has the gradient of the first row alone",
        "torch_impl/ops/gated_scan/triton.py",
        "shares.sum(dim=0)",
        "shares[0]",
        MIXER,
    ),
    Mutant(
        "triton: the gradient of the first decay forgets the initial state",
        "torch_impl/kernels/triton/scan.py",
        "g * tl.where(later_than_first, previous, initial)",
        "g * previous",
        SCAN,
    ),
    Mutant(
        "triton: the last segment of time reads beyond the end",
        "torch_impl/ops/gated_scan/triton.py",
        'self.options["STILLS"] or self.length % steps != 0',
        'self.options["STILLS"]',
        SPLIT,
    ),
    Mutant(
        "triton: the last segment of time lacks the gradient of the final state",
        "torch_impl/ops/gated_scan/triton.py",
        "torch.cat([reaching[:, 1:], of_last[:, None]], dim=1)",
        "torch.cat([reaching[:, 1:], torch.zeros_like(of_last)[:, None]], dim=1)",
        SPLIT,
    ),
    Mutant(
        "triton: a wrong digit in the series of tanh",
        "torch_impl/kernels/triton/gates.py",
        "- 0.3333314955",
        "- 0.3233314955",
        KERNELS,
    ),
    Mutant(
        "triton: an exponential overflows where the decay is one",
        "torch_impl/kernels/triton/gates.py",
        "tl.exp2(tl.minimum(x * -LOG2_E, LARGEST))",
        "tl.exp2(x * -LOG2_E)",
        KERNELS,
    ),
    Mutant(
        "triton: the last state is that of the first segment",
        "torch_impl/kernels/triton/gated_scan_forward.py",
        "if segment == segments - 1:",
        "if segment == 0:",
        KERNELS,
    ),
    Mutant(
        "triton: masks are read from an address that is no multiple of eight",
        "torch_impl/ops/gated_scan/triton.py",
        "(filled.clone() if filled.storage_offset() % ROW else filled).view(torch.int64)",
        "filled.view(torch.int64)",
        KERNELS,
    ),
    Mutant(
        "triton: the segments leave out the last blocks",
        "torch_impl/kernels/triton/launch.py",
        "return -(-blocks // length)",
        "return blocks // length",
        LAUNCHES,
    ),
    Mutant(
        "triton: a GPU without bfloat16 runs the kernels",
        "torch_impl/ops/devices.py",
        "OLDEST = (8, 0)",
        "OLDEST = (7, 0)",
        LAUNCHES,
    ),
    Mutant(
        "one pass: the gradient of the embedding is the last chunk's",
        "torch_impl/ops/cross_entropy/fused_linear_cross_entropy.py",
        "wide, add_to=of_embedding)\n",
        "wide, out=of_embedding)\n",
        ANY_TOKENS,
    ),
    Mutant(
        "one pass: ignored labels have gradients",
        "torch_impl/ops/cross_entropy/fused_linear_cross_entropy.py",
        "        z.masked_fill_(ignored.unsqueeze(1), 0.0)\n",
        "",
        ANY_TOKENS,
    ),
    Mutant(
        "one pass: the gradients are made where nobody asks",
        "torch_impl/ops/cross_entropy/fused_linear_cross_entropy.py",
        "    wanted = torch.is_grad_enabled() and (hidden_nd.requires_grad or embedding_vd.requires_grad)",
        "    wanted = True",
        NO_GRADIENTS,
    ),
    Mutant(
        "one pass: float16 loses the gradients of rare tokens",
        "torch_impl/ops/cross_entropy/fused_linear_cross_entropy.py",
        "FLOAT16_SCALE = 2.0**14",
        "FLOAT16_SCALE = 1.0",
        SIXTEEN_BITS,
    ),
    Mutant(
        "float16: a step that overflows is not made again",
        "torch_impl/training/engine.py",
        "if not self.scaler.is_enabled() or not np.isfinite(loss) or scale <= LEAST_SCALE:",
        "if True:",
        OVERFLOW,
    ),
    Mutant(
        "float16: a resumed run starts from the first scale",
        "tools/training/trainer.py",
        "                self.engine.load_extra_state(newest.state)\n",
        "",
        RESUMED,
    ),
    Mutant(
        "decode: the states handed back are the buffer that the next step writes",
        "torch_impl/generation.py",
        "newest = buffers.states_lbd.clone()",
        "newest = buffers.states_lbd",
        DECODE,
    ),
    Mutant(
        "decode: a step forgets the states",
        "torch_impl/generation.py",
        "        self.states_lbd.copy_(states_lbd)\n",
        "",
        DECODE,
    ),
)
