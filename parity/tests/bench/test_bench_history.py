"""`liquidnet bench` as a command on a processor: its flags, what it shows and keeps, and the pictures drawn of that."""

from __future__ import annotations

import copy
import json
import re

import pytest

from spec import LiquidNetConfig
from tools.bench import measure, sizes
from tools.bench import results as bench_results
from tools.bench.sizes import Sizes
from tools.cli import backends
from tools.cli.main import main

MODEL = LiquidNetConfig(vocab_size=61, d_model=16, d_ff=24, n_layers=2, max_seq_len=8)
LIMIT = {"limit": 3.0, "most": True, "holds": True}
RUN = {
    "when": "2026-01-02T03:04:05Z",
    "environment": {"processor": "AMD Ryzen(TM) 7 @ 3 GHz", "cores": 8, "threads": {"torch": 4}},
    "seconds": 1.0,
    "errors": [],
    "targets": [{"name": "scan torch a: passes", "measured": 2.0, **LIMIT},
                {"name": "train: x GPT-2", "measured": 1.5, "limit": 1.3, "most": False, "holds": True}],
    "sections": {
        "growth": [{"name": "torch, T 512", "backend": "torch", "length": 512, "tokens": 1024, "milliseconds": 9.0,
                    "microseconds_a_token": 9.0, "times_first": 1.0, "peak_bytes": 2**20, "bytes_a_token": 2048.0},
                   {"name": "torch, T 1,024", "backend": "torch", "length": 1024, "tokens": 1024, "milliseconds": 9.1,
                    "microseconds_a_token": 9.1, "times_first": 1.01, "peak_bytes": 2**21, "bytes_a_token": 2048.0}],
        "decode": [{"name": "torch numba", "what": "small", "context": 32, "batch": 1, "milliseconds": 1.0,
                    "tokens_per_second": 400.0, "auto": True, "bytes": 10**6},
                   {"name": "GPT-2, KV cache", "what": "small", "context": 32, "batch": 1, "milliseconds": 1.0,
                    "tokens_per_second": 90.0, "peer": True},
                   {"name": "jax pallas", "what": "small", "context": 32, "batch": 1, "not_run": "interpreted"}],
    },
}  # fmt: skip


def letters(svg) -> str:
    return "\n".join(re.findall(r"<(?:text|tspan)[^>]*>([^<]+)<", svg.read_text()))


@pytest.fixture
def history(tmp_path):
    """Two runs of a machine, one of another."""
    directory = tmp_path / "history"
    for when, processor in (("2026-01-02", "A"), ("2026-02-03", "A"), ("2026-02-04", "B 2")):
        run = copy.deepcopy(RUN)
        run["when"] = f"{when}T00:00:00Z"
        run["environment"]["processor"] = processor
        bench_results.append(directory, run)
    return directory


def test_a_run_is_kept_by_machine_and_time_and_never_replaced(tmp_path):
    first = bench_results.append(tmp_path, RUN)
    assert first == tmp_path / "amd-ryzen-tm-7-3-ghz-4-threads" / "20260102T030405Z.json"
    before = first.read_bytes()
    second = bench_results.append(tmp_path, {**RUN, "seconds": 2.0})
    third = bench_results.append(tmp_path, {**RUN, "seconds": 3.0})
    assert [path.name for path in (second, third)] == ["20260102T030405Z-2.json", "20260102T030405Z-3.json"]
    assert first.read_bytes() == before and json.loads(before) == RUN
    assert [run["seconds"] for run in bench_results.runs(tmp_path)[first.parent.name]] == [1.0, 2.0, 3.0]


def test_the_ratios_are_drawn_over_time_by_machine(history, tmp_path, capsys):
    for name in ("a.svg", "b.svg", "a.png"):
        main(["plot", str(history), "--what", "bench", "--out", str(tmp_path / name)])
        assert capsys.readouterr() == (f"{tmp_path / name}\n", "")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    shown = letters(tmp_path / "a.svg")
    for text in ("scan torch a: passes (at most 3)", "train: x GPT-2 (at least 1.3)", "a-4-threads", "b-2-4-threads"):
        assert text in shown
    main(["plot", str(history), "--what", "bench"])
    assert capsys.readouterr().out == f"{history / 'bench.png'}\n"


def test_one_run_is_drawn_over_length_and_context(history, tmp_path, capsys):
    file = sorted(history.glob("a-*/*.json"))[0]
    main(["plot", str(file), "--what", "scaling", "--out", str(tmp_path / "s.svg")])
    shown = letters(tmp_path / "s.svg")
    for text in ("tokens of context", "torch, 2.0 kB a token", "small: torch numba", "small: GPT-2, KV cache"):
        assert text in shown
    main(["plot", str(file), "--what", "scaling"])
    assert capsys.readouterr().out.endswith(f"{file.with_name(f'{file.stem}-scaling.png')}\n")


def test_what_is_no_history_is_refused_in_one_line(tmp_path, history, refused):
    plot = "plot", str(tmp_path / "none"), "--what"
    assert "none is no directory; name the one given to `liquidnet bench --history`" in refused(*plot, "bench")
    (tmp_path / "empty").mkdir()
    assert "holds no run; make one with" in refused("plot", str(tmp_path / "empty"), "--what", "bench")
    assert "is a directory; name one of its files" in refused("plot", str(history), "--what", "scaling")
    file = next(history.glob("b-*/*.json"))
    run = json.loads(file.read_text())
    file.write_text(json.dumps({**run, "sections": {"growth": run["sections"]["growth"]}}))
    assert "did not measure decode; run" in refused("plot", str(file), "--what", "scaling")
    for text in ("[]", "{}", "{", "nothing"):
        file.write_text(text)
        assert "is no JSON of `liquidnet bench`" in refused("plot", str(history), "--what", "bench")
    assert "--data does nothing for --what bench" in refused("plot", str(history), "--what", "bench", "--data", "d")


def test_flags_of_a_processor_are_checked_before_the_work(refused, tmp_path):
    assert "no section 'scn'; did you mean 'scan'?" in refused("bench", "--sections", "machine,scn")
    assert "choose from machine,scan,mixer,train,decode,growth" in refused("bench", "--sections", "")
    for flag in (("--full",), ("--compiled",), ("--sections", "scan"), ("--history", str(tmp_path))):
        assert f"{flag[0]} goes with the measurements of a processor" in refused("bench", "--roofline", *flag)
    (tmp_path / "file").touch()
    assert "--history needs a directory that can be written" in refused("bench", "--history", str(tmp_path / "file"))
    assert measure.chosen("growth, scan") == ["scan", "growth"]
    assert measure.chosen(None) == measure.sections_of("cpu")


def test_the_command_measures_shows_and_keeps(monkeypatch, tmp_path, capsys):
    if not backends.installed():
        pytest.skip("times a backend")
    monkeypatch.setattr(sizes, "CPU", Sizes(large=2**10, square=8, shapes=((1, 8, 4),)))
    main(["bench", "--sections", "machine,scan", "--rounds", "1", "--history", str(tmp_path / "h"),
          "--json", str(tmp_path / "b.json")])  # fmt: skip
    shown = capsys.readouterr().out
    (kept,) = (tmp_path / "h").glob("*/*.json")
    assert kept.read_bytes() == (tmp_path / "b.json").read_bytes() and shown.splitlines()[-1] == str(kept)
    result = json.loads(kept.read_text())
    assert set(result["sections"]) == {"machine", "scan"} and result["environment"]["versions"]["numba"]
    # Of what was measured alone, and of each backend that was.
    scans = [one["name"] for one in result["targets"]]
    assert {name.split()[1] for name in scans} == {*backends.installed()} and "of least traffic" in shown
    assert [name for name in scans if not name.startswith("scan ")] == []
    assert kept.parent.name == bench_results.machine_of(result)


def test_a_target_that_is_missed_is_a_result_and_a_fault_is_not(monkeypatch, capsys):
    missed = copy.deepcopy(RUN)
    missed["targets"][0] |= {"measured": 9.0, "holds": False}
    monkeypatch.setattr(measure, "measured", lambda *_: missed)
    main(["bench"])
    shown = capsys.readouterr().out
    assert re.search(r"scan torch a: passes\W+9\W+<= 3\W+no", shown) and "jax pallas: not run: interpreted" in shown
    assert re.search(r"torch numba \*\W+32\W+400\W+1\b", shown)
    monkeypatch.setattr(measure, "measured", lambda *_: {**missed, "errors": ["scan: broken"]})
    with pytest.raises(SystemExit) as stop:
        main(["bench"])
    assert stop.value.code == 1


def test_a_section_that_fails_leaves_the_others_alone(monkeypatch):
    def fail(*_):
        raise RuntimeError("a fault")

    sections = {"machine": fail, "scan": lambda *_: [{"name": "a peer", "peer": True, "error": "its own"}]}
    monkeypatch.setattr(measure, "SECTIONS", {name: measure.Section(each) for name, each in sections.items()})
    result = measure.measured("cpu", 1, Sizes())
    assert result["errors"] == ["machine: machine: RuntimeError: a fault"] and result["targets"] == []
    assert result["sections"]["scan"] == [{"name": "a peer", "peer": True, "error": "its own"}]


def test_full_measures_more_of_everything():
    quick, full = Sizes(), sizes.full(Sizes())
    assert full.lengths == tuple(2**power for power in range(9, 17)) and set(quick.lengths) <= set(full.lengths)
    small, nano = full.decoding
    assert small.batches == (1, 4, 16) and nano.contexts[-1] == 1_000_000 and full.peers and not quick.peers
    assert full.training == quick.training
    assert set(measure.sections_of("gpu")) - {"peak", "loss"} <= set(measure.sections_of("cpu"))
