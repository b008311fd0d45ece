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
# The context of what a fixture executes that several tests share: this, and its name.
FIXTURE = "fixture:"

_seconds: dict[str, float] = {}
_not_passed: set[str] = set()
# The tests that ask for a fixture, and the fixtures that several share.
_askers: dict[str, list[str]] = {}
_shared: set[str] = set()


def _coverage() -> Any:
    if "COVERAGE_PROCESS_START" not in os.environ:
        return None
    import coverage

    return coverage.Coverage.current()


def _switch(context: str) -> str:
    """To what is executed from now on; what it was before."""
    before = os.environ.pop(TEST, "")
    if context:
        os.environ[TEST] = context
    if (found := _coverage()) is not None:
        found.switch_context(context)
    return before


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    """What is executed is the test's."""
    for name in getattr(item, "fixturenames", ()):
        _askers.setdefault(name, []).append(item.nodeid)
    _switch(item.nodeid)
    try:
        return (yield)
    finally:
        _switch("")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Any:
    """Made once for several tests, it is not the first one's alone."""
    if fixturedef.scope == "function":
        return (yield)
    _shared.add(fixturedef.argname)
    before = _switch(FIXTURE + fixturedef.argname)
    try:
        return (yield)
    finally:
        _switch(before)


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
        fixtures = {name: _askers.get(name, []) for name in sorted(_shared)}
        written = {"passed": passed, "others": sorted(_not_passed), "fixtures": fixtures}
        Path(os.environ[TIMES]).write_text(json.dumps(written))
