"""A plugin of pytest: says which test executes what, how long it takes, and runs the tests of a list in its order."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

# The context of what a process that a test starts executes: coverage's configuration file asks for this variable.
TEST = "MUTATION_TEST"
TIMES, ORDER = "MUTATION_TIMES", "MUTATION_ORDER"

_seconds: dict[str, float] = {}
_not_passed: set[str] = set()


def _coverage() -> Any:
    if "COVERAGE_PROCESS_START" not in os.environ:
        return None
    import coverage

    return coverage.Coverage.current()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    """Fixtures belong to the first test that asks for them."""
    found = _coverage()
    os.environ[TEST] = item.nodeid
    if found is not None:
        found.switch_context(item.nodeid)
    try:
        return (yield)
    finally:
        os.environ.pop(TEST, None)
        if found is not None:
            found.switch_context("")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _seconds[report.nodeid] = _seconds.get(report.nodeid, 0.0) + report.duration
    if report.outcome != "passed":
        _not_passed.add(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The tests of the list, in its order: the one that is likely to notice comes first."""
    if ORDER not in os.environ:
        return
    order = {name: at for at, name in enumerate(json.loads(Path(os.environ[ORDER]).read_text()))}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in order])
    items[:] = sorted((item for item in items if item.nodeid in order), key=lambda item: order[item.nodeid])


def pytest_sessionfinish() -> None:
    if TIMES in os.environ:
        passed = {name: round(seconds, 3) for name, seconds in _seconds.items() if name not in _not_passed}
        Path(os.environ[TIMES]).write_text(json.dumps({"passed": passed, "others": sorted(_not_passed)}))
