"""Triton's interpreter: its scans made fast, and the bytes that a kernel moves, counted.

Needs TRITON_INTERPRET=1 in the environment before Triton is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
from triton.runtime import interpreter

if TYPE_CHECKING:
    from triton.language import tensor
    from triton.runtime.interpreter import InterpreterBuilder, ScanOps, TensorHandle


def fast_scans() -> None:
    """Let `tl.associative_scan` double its lengths: the interpreter goes entry by entry. Let `exp2` overflow."""
    interpreter.ScanOps.generic_scan = _doubling
    interpreter.InterpreterBuilder.create_exp2 = _exp2


def _exp2(self: InterpreterBuilder, arg: TensorHandle) -> TensorHandle:
    with np.errstate(over="ignore"):
        return self.unary_op(arg, np.exp2)


def _doubling(self: ScanOps, input: Sequence[tensor]) -> list[tensor]:
    results, length = [x.handle.data for x in input], 1
    dtypes = [x.dtype for x in input] * 2
    position = np.arange(results[0].shape[self.axis]).reshape(
        [-1 if i == self.axis else 1 for i in range(results[0].ndim)]
    )
    while length < position.size:
        earlier = [np.roll(x, length, self.axis) for x in results]
        both = (self.to_tensor(x, t) for x, t in zip((*earlier, *results), dtypes, strict=True))
        combined = self.combine_fn.fn(*both)
        combined = combined if isinstance(combined, tuple) else (combined,)
        results = [np.where(position < length, x, y.handle.data) for x, y in zip(results, combined, strict=True)]
        length *= 2
    return [self.to_tensor(x, t.dtype) for x, t in zip(results, input, strict=True)]


@dataclass
class Traffic:
    """Launches of kernels, in order: each kernel's name and the bytes of memory that it touched.

    Every address is read once and written once a launch: what a kernel moves whose cache keeps what it reads twice, and
    nothing from one kernel to the next.
    """

    launches: list[tuple[str, int]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Of all launches."""
        return sum(size for _, size in self.launches)


def _distinct(touched: list[tuple[np.ndarray, int]]) -> int:
    sizes = {size for _, size in touched}
    return sum(size * len(np.unique(np.concatenate([x for x, s in touched if s == size]))) for size in sizes)


@contextmanager
def counted() -> Iterator[Traffic]:
    """The bytes that the kernels inside move."""
    traffic, builder, launch = Traffic(), interpreter.InterpreterBuilder, interpreter.GridExecutor.__call__
    load, store = builder.create_masked_load, builder.create_masked_store
    loads: list[tuple[np.ndarray, int]] = []
    stores: list[tuple[np.ndarray, int]] = []

    def counting_load(self, pointers, mask, *rest):
        loads.append((pointers.data[mask.data], _size(pointers)))
        return load(self, pointers, mask, *rest)

    def counting_store(self, pointers, value, mask, *rest):
        stores.append((pointers.data[mask.data], _size(pointers)))
        return store(self, pointers, value, mask, *rest)

    def counting_launch(self, *arguments, **options):
        loads.clear()
        stores.clear()
        launch(self, *arguments, **options)
        traffic.launches.append((self.fn.__name__, _distinct(loads) + _distinct(stores)))

    with (
        mock.patch.object(builder, "create_masked_load", counting_load),
        mock.patch.object(builder, "create_masked_store", counting_store),
        mock.patch.object(interpreter.GridExecutor, "__call__", counting_launch),
    ):
        yield traffic


def _size(pointers: TensorHandle) -> int:
    return pointers.get_element_ty().primitive_bitwidth // 8
