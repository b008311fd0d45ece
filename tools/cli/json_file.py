"""JSON that a command writes for `--json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spec.checkpoint.files import new_file

Json = dict[str, Any]
"""What is written as it is, or was read."""


def write_json(path: Path, result: Mapping[str, object]) -> None:
    """Whole or not at all; raises ValueError for a number that is not finite."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
