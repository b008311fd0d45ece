"""Faults of the compiled step of a processor, and of matrices in fewer bits."""

from parity.suite.mutants.mutant import Mutant

NUMBA = ("parity/tests/generation/test_decode.py", "parity/tests/generation/test_decode_numba.py", "-k", "numba")
ROUNDED = ("parity/tests/checkpoint/test_quantization.py", "-k", "rounded or off or even")
TEXT = ("parity/tests/checkpoint/test_quantization.py", "-k", "either or refused")

DECODE = (
    Mutant(
        "quantisation: a scale keeps all its bits, and rounding again changes what is rounded",
        "spec/checkpoint/quantization.py",
        "np.uint32(0xFFFFFF80)",
        "np.uint32(0xFFFFFFFF)",
        ROUNDED,
    ),
    Mutant(
        "quantisation: one scale for the whole matrix",
        "spec/checkpoint/quantization.py",
        "np.abs(weight_oi).max(axis=1)",
        "np.abs(weight_oi).max() * np.ones(len(weight_oi), np.float32)",
        ROUNDED,
    ),
    Mutant(
        "quantisation: int8 is cut off, not rounded",
        "spec/checkpoint/quantization.py",
        "np.rint(weight_oi / divisor_o[:, None])",
        "np.trunc(weight_oi / divisor_o[:, None])",
        ROUNDED,
    ),
    Mutant(
        "session: the weights are not rounded when a checkpoint is opened",
        "tools/generation/session.py",
        "parameters=rounded(checkpoint.parameters, weights))",
        "parameters=checkpoint.parameters)",
        TEXT,
    ),
    Mutant(
        "numba decode: prompts go through weights that are not rounded",
        "torch_impl/ops/decode/numba.py",
        "    load_parameters(model, fit)\n",
        "",
        NUMBA,
    ),
    Mutant(
        "numba decode: a parameter that has moved is read where it was",
        "torch_impl/ops/decode/numba.py",
        "read = [parameter.data_ptr() for parameter in self.places]",
        "read = list(range(len(self.places)))",
        NUMBA,
    ),
    Mutant(
        "numba decode: the scale of a row is forgotten where an embedding is read",
        "torch_impl/kernels/numba/decode.py",
        "x_bd[b, j] = scale * _widened(",
        "x_bd[b, j] = _widened(",
        NUMBA,
    ),
    Mutant(
        "numba decode: of rows that are no multiple of four the last are left out",
        "torch_impl/kernels/numba/decode.py",
        "for b in range(count // 4 * 4, count):",
        "for b in range(count // 4 * 4, count if count < 4 else 0):",
        NUMBA,
    ),
    Mutant(
        "numba decode: the state is written over that it came from",
        "torch_impl/ops/decode/numba.py",
        "last, logits_bv = torch.empty(shape), ",
        "last, logits_bv = states, ",
        NUMBA,
    ),
    Mutant(
        "numba decode: 1 - alpha by subtraction from a rounded alpha",
        "torch_impl/ops/decode/numba.py",
        "kept = math.exp(-c.delta_min), -math.expm1(-c.delta_min)",
        "kept = math.exp(-c.delta_min), 0.0",
        NUMBA,
    ),
)
