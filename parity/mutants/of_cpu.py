"""Faults of the kernels for a CPU and of what calls them."""

from parity.suite.mutants.mutant import Mutant

MIXER = ("parity/tests/ops/test_operations.py", "-k", "mixer and torch-numba and float32")
SCAN = ("parity/tests/ops/test_operations.py", "-k", "scan and torch-numba and float32")
ROWS = ("parity/tests/ops/test_operations.py", "-k", "(rms_norm or swiglu) and torch-numba and float32")
LOSS = (
    "parity/tests/ops/test_fused_linear_cross_entropy.py",
    "parity/tests/ops/test_numba_cross_entropy.py",
    "-k",
    "numba",
)
KERNELS = ("parity/tests/ops/test_numba_kernels.py",)
GUARD = ("parity/tests/ops/test_op_counts.py",)

CPU = (
    Mutant(
        "CPU kernels: a reset forgets to stop the gradient",
        "torch_impl/kernels/numba/gated_scan.py",
        "        if reset:\n            q[:] = number(0.0, keep)\n",
        "",
        MIXER,
    ),
    Mutant(
        "CPU kernels: padding changes the state",
        "torch_impl/kernels/numba/gated_scan.py",
        "            _still_step(gate, h, out, kept)\n            continue\n",
        "            pass\n",
        MIXER,
    ),
    Mutant(
        "CPU kernels: 1 - alpha without what delta_min takes off",
        "torch_impl/ops/gated_scan/numba.py",
        "-math.expm1(-delta_min)",
        "0.0",
        MIXER,
    ),
    Mutant(
        "CPU kernels: the gradient of the first state is that of the second",
        "torch_impl/kernels/numba/scan.py",
        "        q[j] = decay[j] * g\n",
        "        q[j] = g\n",
        SCAN,
    ),
    Mutant(
        "CPU kernels: tanh cancels near zero",
        "torch_impl/kernels/numba/arithmetic.py",
        "        return near if y < np.float32(0.25) else far\n",
        "        return far\n",
        KERNELS,
    ),
    Mutant(
        "CPU kernels: an exponential hides NaN",
        "torch_impl/kernels/numba/arithmetic.py",
        "        top = LARGEST if x > LARGEST else x\n",
        "        top = x if x < LARGEST else LARGEST\n",
        KERNELS,
    ),
    Mutant(
        "CPU kernels: a norm's gradient without the mean",
        "torch_impl/kernels/numba/rowwise.py",
        "r * (of_x[j] - x[j] * r * mean)",
        "r * of_x[j]",
        ROWS,
    ),
    Mutant(
        "CPU kernels: silu's slope is its sigmoid",
        "torch_impl/kernels/numba/rowwise.py",
        "(s * (one + gate[j] * (one - s)))",
        "s",
        ROWS,
    ),
    Mutant(
        "CPU kernels: blocks of words each with a largest logit of their own",
        "torch_impl/kernels/numba/softmax.py",
        "            total[i] *= exp(largest[i] - most)\n",
        "",
        LOSS,
    ),
    Mutant(
        "CPU kernels: the label's logit of the first block alone",
        "torch_impl/kernels/numba/softmax.py",
        "            of_label[i] = z[i, labels[i] - first]\n",
        "            of_label[i] = z[i, labels[i] - first] if first == 0 else 0.0\n",
        LOSS,
    ),
    Mutant(
        "CPU loss: a later chunk writes over the gradient of the embedding",
        "torch_impl/ops/cross_entropy/numba.py",
        "target.copy_(of_weight) if first else target.add_(of_weight)",
        "target.copy_(of_weight)",
        LOSS,
    ),
    Mutant(
        "CPU: Numba decides how many threads PyTorch has",
        "torch_impl/kernels/numba/__init__.py",
        "    torch.set_num_threads(before)\n",
        "",
        KERNELS,
    ),
    Mutant(
        "CPU: machine code outlives a kernel's sources",
        "torch_impl/kernels/numba/__init__.py",
        "        digest.update(source.read_bytes())\n",
        "        digest.update(source.name.encode())\n",
        KERNELS,
    ),
    Mutant(
        "CPU: functions that kernels call are kept, and loops become scalar",
        "torch_impl/kernels/numba/__init__.py",
        'kernel = partial(_compiled, fastmath={"contract"})',
        'kernel = partial(kept, fastmath={"contract"})',
        KERNELS,
    ),
    Mutant(
        "CPU: the engine gives freed memory back",
        "torch_impl/training/engine.py",
        "        keep_freed_memory()\n",
        "",
        GUARD,
    ),
    Mutant(
        "CPU: the states are kept beside a copy of the pre-activations",
        "torch_impl/ops/gated_scan/numba.py",
        "        ctx.save_for_backward(pre, bias, state, resets, padding, states)\n",
        "        ctx.save_for_backward(pre.clone(), bias, state, resets, padding, states)\n",
        GUARD,
    ),
    Mutant(
        "CPU: a weight's gradient is made by torch.mm beside the convolution",
        "torch_impl/ops/matmul.py",
        "of_weight.view(weight.shape) if wanted[1]",
        "(of_y.T @ x) if wanted[1]",
        GUARD,
    ),
)
