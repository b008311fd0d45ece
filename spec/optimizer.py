"""AdamW and Muon with clipping, in the order of operations that both backends follow.

One step at learning rate lr, counted t = 1, 2, ...; `spec.reference.optimizers` computes it in float64:

    norm  = sqrt(sum over all parameters of |g|^2)
    g     = g * min(1, grad_clip / norm)                        grad_clip = 0: unchanged

AdamW, of every parameter:

    m     = beta1 m + (1 - beta1) g                             first moment
    s     = beta2 s + (1 - beta2) g^2                           second moment
    m^    = m / (1 - beta1^t);  s^ = s / (1 - beta2^t)
    theta = theta - lr (m^ / (sqrt(s^) + adam_eps) + weight_decay theta)

Muon, of the matrices of the blocks (`matrices`); embedding, norms and biases stay with AdamW:

    m     = momentum m + (1 - momentum) g                       first moment; there is no second one
    u     = momentum m + (1 - momentum) g                       Nesterov's
    theta = theta - lr (0.2 sqrt(max(rows, columns)) orthogonal(u) + weight_decay theta)

where orthogonal(u) is near U V^T of the singular value decomposition u = U S V^T, of each part of a fused matrix for
itself, by Newton-Schulz iterations that need products alone, X the matrix with rows <= columns, else its transpose:

    X     = u / (|u| + 1e-7)                                    |u| the root of the sum of squares
    A     = X X^T;  X = a X + (b A + c A A) X                   for each (a, b, c) of NEWTON_SCHULZ

A singular value of 0.002 |u| and more comes out between 0.68 and 1.21. The factor gives an update the size of one of
AdamW's, about 0.2 an entry, so that AdamW's rates and decay carry over.

Weight decay applies to the rows of the parameter table marked so.

Source: Loshchilov and Hutter 2019, algorithm 2, where lr stands before the decay too, as in torch.optim.AdamW and
optax.adamw; the moments and their bias correction are Adam's, Kingma and Ba 2015, algorithm 1. Clipping: Pascanu,
Mikolov and Bengio 2013, algorithm 1; torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm, which is not done here.
Muon: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", with its coefficients; decay and
factor: Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from spec.config import ModelConfig, TrainingConfig
from spec.parameters import parameter_table

MOMENTS = ("first_moment", "second_moment")
#: a, b and c of each iteration.
NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5
#: Added to the norm that a matrix is divided by: of zeros zeros are left.
NORM_EPS = 1e-7
#: Size of an entry of an update, about that of AdamW's: Liu et al. 2025, section 2.2.
UPDATE_SIZE = 0.2


class Matrix(NamedTuple):
    """A part of a parameter that Muon takes for itself.

    Args:
        path: of the parameter.
        start, stop: its rows.
        columns: of all of them.
    """

    path: str
    start: int
    stop: int
    columns: int

    @property
    def scale(self) -> float:
        """What its orthogonalised momentum is multiplied by."""
        return UPDATE_SIZE * max(self.stop - self.start, self.columns) ** 0.5

    @property
    def shape(self) -> tuple[int, int]:
        """The smaller side first: as it is multiplied."""
        rows = self.stop - self.start
        return min(rows, self.columns), max(rows, self.columns)


def decayed_paths(config: ModelConfig) -> frozenset[str]:
    """Paths of the parameters that weight decay applies to."""
    return frozenset(row.path for row in parameter_table(config) if row.weight_decay)


def matrices(config: ModelConfig) -> tuple[Matrix, ...]:
    """The matrices of the blocks, in the order of the table: what Muon takes."""
    found = []
    for row in parameter_table(config):
        if len(row.shape) != 2 or not row.path.startswith("blocks.") or row.blocks == 0:
            continue
        start = 0
        for rows in row.parts.values():
            for _ in range(row.blocks):
                found.append(Matrix(row.path, start, start + rows // row.blocks, row.shape[1]))
                start += rows // row.blocks
    return tuple(found)


def muon_matrices(config: ModelConfig, training: TrainingConfig) -> tuple[Matrix, ...]:
    """What Muon takes in this run: nothing where it is trained with AdamW."""
    return matrices(config) if training.optimizer == "muon" else ()


def moment_paths(config: ModelConfig, training: TrainingConfig) -> dict[str, tuple[str, ...]]:
    """The parameters that have each of MOMENTS, by its name."""
    paths = [row.path for row in parameter_table(config)]
    taken = {matrix.path for matrix in muon_matrices(config, training)}
    return dict(zip(MOMENTS, (tuple(paths), tuple(path for path in paths if path not in taken)), strict=True))


def num_moments(config: ModelConfig, training: TrainingConfig) -> int:
    """Number of scalars of both moments."""
    sizes = {row.path: math.prod(row.shape) for row in parameter_table(config)}
    return sum(sizes[path] for paths in moment_paths(config, training).values() for path in paths)


def newton_schulz_flops(config: ModelConfig) -> int:
    """FLOPs of the iterations of one step: of r x c, r <= c, each has two products with 2 r^2 c and one with 2 r^3."""
    shapes = [matrix.shape for matrix in matrices(config)]
    return len(NEWTON_SCHULZ) * sum(4 * rows**2 * columns + 2 * rows**3 for rows, columns in shapes)
