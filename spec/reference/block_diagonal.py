"""Two block-diagonal matrices one above the other, beside their adjoint.

Source: De et al. 2024 (Griffin), section 2.4: the matrices of the two gates of an RG-LRU.
"""

from __future__ import annotations

import numpy as np

from spec.reference.blocks import linear_adjoint


def block_diagonal(x_btn: np.ndarray, weight_ob: np.ndarray, blocks: int) -> np.ndarray:
    """y = x W^T in which rows of each matrix read a block of x alone.

    Args:
        x_btn: input.
        weight_ob: two matrices one above the other, (2 n, n / blocks): row j of a matrix reads block j blocks // n.
        blocks: how many.

    Returns:
        both products, [b, t, 2 n].
    """
    parts = np.split(x_btn, blocks, axis=-1)
    products = [
        parts[i] @ rows.T
        for matrix in np.split(weight_ob, 2)
        for i, rows in enumerate(np.split(matrix, blocks))
    ]  # fmt: skip
    return np.concatenate(products, axis=-1)


def block_diagonal_adjoint(
    x_btn: np.ndarray, weight_ob: np.ndarray, blocks: int, grad_y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of input and weight."""
    parts = np.split(x_btn, blocks, axis=-1)
    grad_parts, grad_rows = [np.zeros_like(part) for part in parts], []
    for rows, grads in zip(np.split(weight_ob, 2), np.split(grad_y, 2, axis=-1), strict=True):
        for i, (row, grad) in enumerate(zip(np.split(rows, blocks), np.split(grads, blocks, axis=-1), strict=True)):
            grad_part, grad_row = linear_adjoint(parts[i], row, grad)
            grad_parts[i] = grad_parts[i] + grad_part
            grad_rows.append(grad_row)
    return np.concatenate(grad_parts, axis=-1), np.concatenate(grad_rows)
