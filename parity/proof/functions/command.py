"""`python -m parity FILE.py:OPERATION`: prove a function of anybody's; docs/guide/prove_your_port.md."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from parity.proof.functions.operation import FunctionOperation, as_input_error
from parity.proof.functions.prove import DTYPES, prove


def main(arguments: Sequence[str] | None = None) -> int:
    """0: within every bound; 1: not; 2: bad input, told in one line."""
    parser = argparse.ArgumentParser(
        "python -m parity", description="Prove a function: exit code 0, 1 where it is wrong."
    )
    parser.add_argument("operation", metavar="FILE.py:OPERATION", help="a FunctionOperation in a Python file")
    parser.add_argument("--draws", type=int, default=20, help="problems (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the first problem (default: 0)")
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="what to compute in (default: both)"
    )
    parser.add_argument("--device", default="cpu", help="where PyTorch computes (default: cpu)")
    parser.add_argument("--report", type=Path, help="a directory for report.md and report.json")
    given = parser.parse_args(arguments)
    try:
        operation = load(given.operation)
        result = prove(operation, draws=given.draws, dtypes=given.dtypes, seed=given.seed, device=given.device)
        result.source = given.operation
        if given.report is not None:
            result.report(given.report)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(result)
    return result.exit_code


def load(place: str) -> FunctionOperation:
    """The operation of `FILE.py:OPERATION`; the file runs as a module, and may import what lies beside it.

    Raises:
        ValueError: there is no such file or no such operation in it.
    """
    name, colon, attribute = place.rpartition(":")
    path = Path(name)
    if not colon or path.suffix != ".py" or not path.is_file():
        raise ValueError(f"no operation {place!r}; write FILE.py:OPERATION, where FILE.py exists")
    module_name = f"_proved_{path.stem}"  # shadows no other module
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))
    # jax.jit and dataclasses look the module of a function up by its name.
    sys.modules[module_name] = module
    with as_input_error(f"{path}", "mend it, or install what it needs"):
        spec.loader.exec_module(module)
    found = getattr(module, attribute, None)
    if not isinstance(found, FunctionOperation):
        known = [key for key, value in vars(module).items() if isinstance(value, FunctionOperation)]
        raise ValueError(f"{path} has no operation {attribute!r}; it has {', '.join(known) or 'none'}")
    return found


if __name__ == "__main__":
    sys.exit(main())
