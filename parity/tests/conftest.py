"""Hypothesis profiles, one thread, full float32; every installed backend and method; errors in units of bounds."""

import os
from pathlib import Path

import matplotlib
import pytest
from hypothesis import HealthCheck, Phase, settings

from parity.proof import adapters, bounds, interpreted_kernels
from parity.proof.environment import one_thread_and_full_float32
from parity.suite.support import nothing, tightness
from parity.suite.support.fixtures import MEASURED, compare, refused, report, small_data, text_data  # noqa: F401  fixtures are found by being here

interpreted_kernels.interpret_unless_gpu()

# Examples take as long as a compilation where a shape is new, so neither a deadline nor a check of speed makes sense.
COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
settings.register_profile("ci", max_examples=40, derandomize=True, database=None, **COMMON)
# No shrinking: mutants ask whether a fault is found, not for its smallest case, which takes minutes with JAX.
settings.register_profile(
    "mutants", max_examples=40, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate], **COMMON
)
settings.register_profile("soak", max_examples=200, **COMMON)
settings.load_profile(os.environ.get("PARITY_PROFILE", "ci"))

WORST: dict[str, tuple[float, str]] = {}
LINES: list[str] = []
USED: dict[str, tightness.Used] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `adapter` runs for each backend, and for each scan method if it asks for `method`."""
    if "adapter" not in metafunc.fixturenames:
        return
    with_method = "method" in metafunc.fixturenames
    rows = []
    for name in adapters.FRAMEWORKS:
        reason = adapters.missing(name)
        if reason:
            skip = pytest.mark.skip(reason=reason)
            rows.append(pytest.param(*[None] * (1 + with_method), id=name, marks=skip))
        elif with_method:
            adapter = adapters.load(name)
            # What is interpreted takes a second an example; test_operations and the tests of the kernels have it.
            methods = [method for method in adapter.METHODS["scan"] if not interpreted_kernels.is_slow(name, method)]
            rows += [pytest.param(adapter, method, id=f"{name}-{method}") for method in methods]
        else:
            rows.append(pytest.param(adapters.load(name), id=name))
    metafunc.parametrize("adapter, method" if with_method else "adapter", rows)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In a test `all` and `zip` fail over nothing; one that may be of nothing says `builtins.all`."""
    for module in {item.module for item in items if isinstance(item, pytest.Function)}:
        vars(module).update(all=nothing.all_of, zip=nothing.zipped)


@pytest.fixture(autouse=True)
def method_runs_here(request: pytest.FixtureRequest) -> None:
    """Skips what a method cannot do on this machine, in its own words."""
    if {"adapter", "method"} <= set(request.fixturenames):
        reason = adapters.refusal(request.getfixturevalue("adapter").NAME, request.getfixturevalue("method"))
        if reason:
            pytest.skip(reason)


@pytest.fixture
def native_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out what is interpreted here, where a test is about something else and would take minutes."""
    for backend in (name for name in adapters.FRAMEWORKS if not adapters.missing(name)):
        adapter = adapters.load(backend)
        native = {
            name: tuple(method for method in every if not interpreted_kernels.is_slow(backend, method))
            for name, every in adapter.METHODS.items()
        }
        monkeypatch.setattr(adapter, "METHODS", native)


@pytest.fixture(autouse=True, scope="session")
def comparable_numbers():
    """Sums in one order on every machine; float32 means float32; no process is left behind."""
    one_thread_and_full_float32()
    yield
    adapters.stop_worker()


@pytest.fixture(autouse=True, scope="session")
def verdicts_of_this_session(tmp_path_factory: pytest.TempPathFactory) -> None:
    """`train` tests a method once and keeps the verdict: here, not in the user's cache. Subprocesses inherit it."""
    # Matplotlib's list of fonts, which takes seconds to make, lies in the same place.
    os.environ["MPLCONFIGDIR"] = matplotlib.get_cachedir()
    # Compiled kernels stay in the user's: they take seconds to make too, and are kept by what they were made of.
    home = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    os.environ.setdefault("NUMBA_CACHE_DIR", home)
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    """What the test measured travels with its report: with xdist it ran in another process."""
    bounds.WORST.clear()
    bounds.BY_TENSOR.clear()
    bounds.WIDTHS.clear()
    try:
        return (yield)
    finally:
        item.user_properties += [(f"units of {label}", worst) for label, worst in bounds.WORST.items()]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:  # noqa: F811  the name that pytest passes
    for name, worst in report.user_properties if report.when == "call" else ():
        if name == MEASURED:
            LINES.append(worst)
        elif name.startswith(tightness.PROPERTY):
            USED[name.removeprefix(tightness.PROPERTY)] = worst
        elif name.startswith("units of "):
            WORST[name] = max((worst, report.nodeid.split("::", 1)[1]), WORST.get(name, (0.0, "")))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if tightness.WRITING:
        tightness.write(USED)
    if LINES:
        terminalreporter.section("measured")
        for line in LINES:
            terminalreporter.write_line(line)
    if WORST:
        terminalreporter.section("largest errors")
        for name, (worst, test) in sorted(WORST.items()):
            terminalreporter.write_line(f"{worst:8.3f} {name}   in {test}")
