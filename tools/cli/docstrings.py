"""The docstring of a class, for help that is written once: there, and under `python -OO` too."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap


def docstring(of: type) -> str:
    """What `inspect.getdoc` gives; `python -OO` has it in the source alone."""
    if sys.flags.optimize < 2:
        return inspect.getdoc(of) or ""
    try:
        source = inspect.getsource(of)
    except OSError:  # there is compiled code alone
        return ""
    (definition,) = ast.parse(textwrap.dedent(source)).body
    assert isinstance(definition, ast.ClassDef)
    return ast.get_docstring(definition) or ""
