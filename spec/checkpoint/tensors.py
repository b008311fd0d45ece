"""Named arrays as safetensors bytes, dtypes kept bit for bit.

Source: the safetensors format, a JSON header and the bytes of the tensors, nothing that could be executed.
"""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}

Arrays = Mapping[str, np.ndarray]


def pack(arrays: Arrays, metadata: dict[str, str] | None = None) -> bytes:
    """safetensors bytes of named arrays, sorted by name; `metadata` goes into the header."""
    return safetensors.numpy.save({name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}, metadata)


def unpack(content: bytes) -> dict[str, np.ndarray]:
    """The inverse of `pack`, bfloat16 included; raises ValueError for a dtype that no checkpoint stores."""
    arrays = {}
    for name, tensor in safetensors.deserialize(content):
        if tensor["dtype"] not in DTYPES:
            raise ValueError(f"tensor {name} has dtype {tensor['dtype']}, which no checkpoint stores")
        arrays[name] = np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    return arrays
