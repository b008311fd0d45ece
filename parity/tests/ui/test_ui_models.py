"""What the page of `liquidnet ui` offers: checkpoints by their labels alone, models that are loaded once, and few."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from parity.suite.support.ui import write_run
from tools.cli import backends
from tools.generation.session import open_model
from tools.ui.models import OPEN_MODELS, Catalogue, ModelCache, run_metrics

BACKENDS = backends.installed()


@pytest.fixture(scope="module")
def handed_over(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("ui") / "tale")


def test_labels_are_the_newest_first_with_the_best_marked(handed_over):
    run, checkpoints = handed_over, handed_over / "checkpoints"
    assert Catalogue((run,)).labels() == {
        "tale, step 30": checkpoints / "step_00000030",
        "tale, step 20 (best)": checkpoints / "step_00000020",
        "tale, step 10": checkpoints / "step_00000010",
    }
    several = Catalogue((checkpoints / "step_00000010", run)).labels()
    assert list(several) == ["step_00000010", "tale, step 30", "tale, step 20 (best)", "tale, step 10"]


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    runs = [tmp_path / where / "tale" for where in ("a", "b")] + [tmp_path / "c" / "other"]
    for run in runs:
        (run / "checkpoints" / "step_00000010").mkdir(parents=True)
        (run / "checkpoints" / "step_00000010" / "SHA256SUMS").touch()
    assert Catalogue(tuple(runs)).labels() == {
        label: run / "checkpoints" / "step_00000010"
        for label, run in zip((f"{runs[0]}, step 10", f"{runs[1]}, step 10", "other, step 10"), runs, strict=True)
    }


@pytest.mark.parametrize("label", ["/etc/passwd", "../tale", "tale, step 40", "", None, 3, ["tale, step 30"]])
def test_a_browser_names_no_path(handed_over, label):
    catalogue = Catalogue((handed_over,))
    with pytest.raises(ValueError, match="not there any more"):
        catalogue.find(label)


@pytest.mark.parametrize("name", ["nowhere", "empty", "data", "notes.txt"])
def test_what_is_no_checkpoint_is_refused_at_the_start(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "checkpoints").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(ValueError, match=r"name (another run|a directory|a checkpoint directory)"):
        Catalogue((tmp_path / name,))


def test_the_best_is_that_of_the_newest_checkpoint_and_its_absence_is_no_fault(handed_over, tmp_path):
    run = tmp_path / "tale"
    (run / "checkpoints" / "step_00000010").mkdir(parents=True)
    (run / "checkpoints" / "step_00000010" / "SHA256SUMS").touch()
    assert list(Catalogue((run,)).labels()) == ["tale, step 10"]
    (run / "checkpoints" / "step_00000010" / "state.json").write_text("[" * 100_000)
    assert list(Catalogue((run,)).labels()) == ["tale, step 10"]
    assert run_metrics(run / "checkpoints" / "step_00000010") == []
    assert len(run_metrics(handed_over / "checkpoints" / "step_00000010")) == 31


def test_a_model_is_loaded_once_and_few_are_kept(handed_over, monkeypatch):
    loads, models = [], ModelCache()

    def slow(path, backend, weights):
        loads.append(path)
        time.sleep(0.05)
        if path.name == "broken":
            raise ValueError("broken")
        return open_model(handed_over, backend, weights)

    monkeypatch.setattr("tools.ui.models.open_model", slow)
    threads = [threading.Thread(target=models.open, args=(handed_over, BACKENDS[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == [handed_over] and models.is_open(handed_over, BACKENDS[0])
    first = models.open(handed_over, BACKENDS[0])
    for _ in range(2):  # what failed is tried again
        with pytest.raises(ValueError, match="broken"):
            models.open(Path("broken"), BACKENDS[0])
    for i in range(OPEN_MODELS):
        models.open(Path(f"other {i}"), BACKENDS[0])
    assert len(loads) == 3 + OPEN_MODELS and not models.is_open(handed_over, BACKENDS[0])
    # What was put away ends its thread, which would keep it in memory.
    first.engine._thread.join(30)
    assert not first.engine._thread.is_alive()
