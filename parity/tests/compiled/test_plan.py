"""`liquidnet plan`: names of slices, one-line errors, the model of time, the largest batch, the budget."""

import copy
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from parity.proof import adapters
from parity.suite.compiled.tpu import budget, steps
from parity.suite.compiled.triton.budget import to_text
from spec.presets import PRESETS, RECIPES
from tools.plan import command, compile_step, topology
from tools.plan.batch import BatchSearch, largest_batch
from tools.plan.compile_step import CompiledStep, DoesNotFit, StepSpec
from tools.xla.count import Collective, Cost, ProgramCost

HAS_COMPILER = importlib.util.find_spec("libtpu") is not None
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="the TPU's compiler, libtpu, is not installed")
needs_jax = pytest.mark.skipif(adapters.missing("jax") is not None, reason="JAX is not installed")
CHIP = topology.CHIPS["v6e"]


@pytest.mark.parametrize(
    "name, chips, sides",
    [("v6e:4x4", 16, (4, 4)), ("V5e:2x4", 8, (2, 4)), ("v5p:2x2x4", 16, (2, 2, 4)), ("v6e:1x1", 1, (1, 1))],
)
def test_a_slice_is_its_chip_and_its_grid(name, chips, sides):
    found = topology.topology(name)
    assert (found.chips, found.sides, found.name) == (chips, sides, name.lower())


@pytest.mark.parametrize(
    "name, message",
    [
        ("v6e-16", "did you mean 'v6e:4x4'"),
        ("v5litepod-8", "did you mean 'v5e:2x4'"),
        ("v6e:16", "did you mean 'v6e:4x4'"),
        ("v5p:2x2", "did you mean 'v5p:2x2x1'"),
        ("v5p-16", "did you mean 'v5p:2x2x2'"),
        ("v7x:2x2", "choose one of v4, v5e, v5p, v6e"),
        ("sixteen", "as in v6e:4x4"),
        ("v6e:3x3", "sides are even"),
        ("v6e:32x32", "256 at most"),
    ],
)
def test_any_other_name_is_answered_with_the_right_spelling(name, message):
    with pytest.raises(ValueError, match=message):
        topology.topology(name)


@pytest.mark.skipif(HAS_COMPILER, reason="the TPU's compiler is installed")
def test_without_the_compiler_the_error_is_one_line_with_the_remedy(refused):
    assert refused("plan").strip().endswith("pip install 'liquidnet-dual[tpu]' in an environment of its own")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--topology", "v6e-16"], "did you mean 'v6e:4x4'"),
        (["--explain", "-1"], "--explain must be at least 0"),
        (["--largest-batch", "all"], "--largest-batch"),
    ],
)
def test_mistakes_are_refused_without_the_compiler(refused, flags, message):
    assert message in refused("plan", *flags)


def test_what_is_given_up_to_the_step_counts_once():
    """Parameters and moments are donated: they are arguments and results in one place."""
    sizes = {"argument": 700, "output": 500, "alias": 450, "temp": 40}
    report = SimpleNamespace(**{f"{name}_size_in_bytes": size for name, size in sizes.items()})
    found = compile_step.memory_bytes(SimpleNamespace(memory_analysis=lambda: report))
    assert found == {"arguments": 700, "outputs": 500, "aliased": 450, "temporary": 40, "peak": 700 + 50 + 40}


def step_spec(**changes) -> StepSpec:
    training = replace(RECIPES["base"], batch_size=128, compute_dtype="bfloat16")
    return replace(StepSpec(topology.topology("v6e:4x4"), PRESETS["base"], training, "data=16"), **changes)


def test_an_instruction_takes_the_longest_of_three():
    product = Cost("a", "fusion", "", times=2, read=1e6, written=1e6, flops=1e12, passes=6e12)
    assert compile_step.roofline_seconds(product, CHIP) == pytest.approx(2 * 6e12 / CHIP.flops)
    moved = Cost("b", "copy", "", times=3, read=1e9, written=1e9)
    assert compile_step.roofline_seconds(moved, CHIP) == pytest.approx(3 * 2e9 / CHIP.bandwidth)
    exchange = Cost("c", "all-reduce", "", read=1e9, written=1e9, collective=Collective("all-reduce", 1e9, 1e9, 16))
    assert compile_step.roofline_seconds(exchange, CHIP) == pytest.approx(2e9 * 15 / 16 / CHIP.interconnect)


def test_the_summary_adds_up():
    counted = ProgramCost([Cost("a", "fusion", "", times=2, read=1e9, written=1e9, flops=1e12, passes=1e12)])
    found = compile_step.summary(step_spec(), CompiledStep({"peak": 1}, counted, 1.0, (16, 1, 1)))
    seconds = 2 * 2e9 / CHIP.bandwidth
    assert found["hbm_bytes"] == 4e9 and found["flops"] == 2e12
    assert found["milliseconds"] == pytest.approx(1e3 * seconds)
    assert found["tokens_per_second"] == pytest.approx(16 * 65_536 / seconds)
    # 104.6M weights in matrices.
    assert found["model_flops"] == pytest.approx(6 * 65_536 * 104.7e6, rel=1e-3)
    assert found["mfu"] == pytest.approx(found["model_flops"] / seconds / CHIP.flops)
    assert "not a measurement" in found["what"]
    json.dumps(found, allow_nan=False)


def test_rows_by_kind_add_up_to_the_program():
    """What is in a loop counts once a trip."""
    exchange = Collective("all-reduce", 1e9, 1e9, 16)
    counted = ProgramCost([
        Cost("a", "fusion", "", times=2, read=1e9, written=1e9, flops=1e12, passes=1e12),
        Cost("b", "fusion", "", times=3, read=2e9, written=1e9, flops=2e12, passes=2e12),
        Cost("c", "copy", "", times=4, read=1e9, written=3e9),
        Cost("d", "all-reduce", "", read=1e9, written=1e9, collective=exchange),
    ])  # fmt: skip
    rows = {row["kind"]: row for row in compile_step.by_kind(counted, CHIP)}
    assert set(rows) == {"products", "copy", "all-reduce"}
    assert {kind: (row["bytes"], row["flops"]) for kind, row in rows.items()} == {
        "products": (2 * 2e9 + 3 * 3e9, 2 * 1e12 + 3 * 2e12),
        "copy": (4 * 4e9, 0.0),
        "all-reduce": (2e9, 0.0),
    }
    milliseconds = sum(row["milliseconds"] for row in rows.values())
    assert milliseconds == pytest.approx(1e3 * sum(compile_step.roofline_seconds(one, CHIP) for one in counted.costs))


class Linear:
    """A step that needs 1 GB and 2 GB a row, on a chip of 31.25 GiB: 16 rows fit; one batch of rows is odd."""

    def __init__(self, odd: int | None = None, parts: int = 16):
        self.odd, self.parts, self.compiled = odd, parts, []

    def __call__(self, spec: StepSpec) -> CompiledStep:
        rows = spec.training.batch_size // self.parts
        self.compiled.append(rows)
        peak = 1e9 + 2e9 * rows
        if peak > CHIP.memory or rows == self.odd:
            raise DoesNotFit("too much")
        return CompiledStep({"peak": int(peak)}, ProgramCost(), 0.0, (16, 1, 1))


@pytest.mark.parametrize("rows", [1, 8, 16, 40])
def test_the_largest_batch_is_where_memory_is_full(rows):
    compile = Linear()
    training = replace(step_spec().training, batch_size=16 * rows)
    found = largest_batch(BatchSearch(step_spec(training=training), 16, compile), bisect=False)
    assert found["batch_size"] == 16 * 16 and found["tokens_per_chip"] == 16 * 8192
    assert len(compile.compiled) == len(set(compile.compiled)) <= 5


@pytest.mark.parametrize(
    "asked, told", [("skip", "too much"), ("estimate", "too much; --batch-size 256 fits, or try --remat")]
)
def test_what_does_not_fit_is_told_with_what_does(asked, told, monkeypatch):
    """Unless it is not to be looked for: nothing more is compiled then."""
    compile = Linear()
    monkeypatch.setattr(command, "compiled_step", compile)
    spec = step_spec(training=replace(step_spec().training, batch_size=16 * 40))
    with pytest.raises(DoesNotFit, match=told) as raised:
        command.Plan(largest_batch=asked)._result(spec, lambda text: None)
    assert asked != "skip" or (str(raised.value) == told and compile.compiled == [40])


def test_chips_that_share_a_sequence_have_a_part_of_its_tokens():
    """Two groups of eight chips: sixteen rows a group are two a chip."""
    spec = step_spec(training=replace(step_spec().training, batch_size=2 * 16))
    found = largest_batch(BatchSearch(spec, 2, Linear(parts=2)), bisect=False)
    assert found["batch_size"] == 2 * 16 and found["tokens_per_chip"] == 2 * 8192


def test_a_line_that_promises_too_much_is_followed_back():
    found = largest_batch(BatchSearch(step_spec(), 16, Linear(odd=16)), bisect=False)
    assert found["batch_size"] == 12 * 16


def test_the_search_ends_where_the_next_row_does_not_fit():
    compile = Linear(odd=16)
    found = largest_batch(BatchSearch(step_spec(), 16, compile), bisect=True)
    assert found["batch_size"] == 15 * 16
    assert found["how"] == "compiled, fits; one row more a device does not"


def test_where_memory_hardly_grows_the_guess_is_held_back():
    flat = CompiledStep({"peak": 10**9}, ProgramCost(), 0.0, (16, 1, 1))
    found = largest_batch(BatchSearch(step_spec(), 16, lambda spec: flat), bisect=False)
    assert found["batch_size"] == 1024 * 128 and "more may" in found["how"]


def test_nothing_fits():
    found = largest_batch(BatchSearch(step_spec(), 16, Linear(odd=1)), bisect=False)
    assert found["batch_size"] > 0
    training = replace(step_spec().training, batch_size=16)
    assert largest_batch(BatchSearch(step_spec(training=training), 16, Linear(odd=1)), bisect=False)["batch_size"] == 0


@pytest.fixture
def checked_in() -> dict:
    return json.loads(budget.BUDGET.read_text())


def test_the_budget_is_complete_and_within_its_own_limits(checked_in):
    assert set(checked_in["steps"]) == {*steps.TRAINED, steps.SHARED}
    assert budget.faults(checked_in, checked_in) == []
    assert to_text(checked_in, budget.SECTIONS) == budget.BUDGET.read_text()
    limits = checked_in["limits"][steps.SHARED]
    assert limits["forward_operand"] == limits["backward_operand"] == steps.shared_scan_limit()


def test_what_exceeds_the_budget_is_named(checked_in):
    first, fsdp = list(steps.TRAINED)[:2]
    found = copy.deepcopy(checked_in)
    found["steps"][first]["peak"] = 5_000_000_001
    found["steps"][first]["hbm_bytes"] *= 2
    found["steps"][first]["compile_seconds"] = 121
    found["steps"][fsdp]["collectives"].append("collective-permute")
    del found["steps"][steps.SHARED]
    message = "\n".join(budget.faults(found, checked_in))
    for part in (
        f"{steps.SHARED} is not in the steps any more",
        f"{first}: peak 5,000,000,001 is over the limit of 5,000,000,000",
        f"{first}: hbm_bytes grew",
        f"{first}: compile_seconds 121 is over the limit of 120",
        f"{fsdp}: collective-permute is not among the collectives allowed",
        f"{fsdp}: collectives have collective-permute, which the budget has not",
    ):
        assert part in message


def test_a_column_that_was_not_measured_is_a_fault(checked_in):
    found = copy.deepcopy(checked_in)
    first = next(iter(steps.TRAINED))
    del found["steps"][first]["peak"]
    assert f"{first}: peak was not measured, its limit is 5000000000" in budget.faults(found, checked_in)


SMALL = ("--topology", "v5e:2x2", "--preset", "nano", "--n-layers", "1", "--vocab-size", "512", "--seq-len", "32")


def planned(tmp_path, *flags: str) -> tuple[subprocess.CompletedProcess, dict]:
    out = tmp_path / "plan.json"
    command = [sys.executable, "-m", "tools.cli.main", "plan", *SMALL, "--json", str(out), *flags]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return ran, json.loads(out.read_text()) if out.exists() else {}


@needs_jax
@needs_compiler
def test_a_step_is_planned(tmp_path):
    ran, found = planned(tmp_path, "--mesh", "data=2,fsdp=2", "--explain", "3", "--largest-batch", "skip")
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    for part in ("peak memory", "HBM traffic", "sum of rooflines", "a model, not a measurement", "MFU", "all-gather"):
        assert part in ran.stdout
    assert found["chips"] == 4 and found["mesh"] == {"data": 2, "fsdp": 2, "sequence": 1}
    memory = found["memory"]
    assert memory["peak"] == memory["arguments"] + memory["outputs"] + memory["temporary"] - memory["aliased"]
    assert found["hbm_bytes"] > 0 and found["flops"] >= found["model_flops"] > 0 and not found["uncertain"]
    assert {row["kind"] for row in found["collectives"]} <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert len(found["dearest"]) == 3


@needs_jax
@needs_compiler
@pytest.mark.parametrize(
    "flags, message",
    [
        (("--mesh", "data=3"), "--mesh data=3 must read as"),
        (("--batch-size", "6"), "--batch-size 6 is not cut evenly between 4 parts"),
        (("--tokens-per-chip", "33"), "no whole number of sequences of 32"),
        (("--tokens-per-chip", "32", "--batch-size", "4"), "give one of them"),
        (("--preset", "huge"), "unknown preset 'huge'"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(tmp_path, flags, message):
    ran, _ = planned(tmp_path, *flags)
    assert ran.returncode == 2
    assert message in ran.stderr and ran.stderr.count("\n") == 1
