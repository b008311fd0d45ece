"""`liquidnet bench --serving`: what is measured adds up, on a model that is served in no time."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="pip install 'liquidnet-dual[serve]'")
pytest.importorskip("torch", reason="it serves with torch")

from spec import LiquidNetConfig
from tools.bench import serving

TINY = serving.Sizes(LiquidNetConfig(300, 16, 24, 2, 16), clients=(1, 3), tokens=5, prompt=150, positions=64)


@pytest.mark.long
def test_the_server_is_measured_beside_the_steps(capsys, monkeypatch):
    monkeypatch.setattr(serving, "QUIET_SECONDS", 0.0)
    result = serving.compare(2, TINY)
    assert [row["clients"] for row in result["throughput"]] == [1, 3]
    for row in result["throughput"]:
        assert row["tokens_per_second"].keys() >= {serving.STEPS, serving.OURS}
        assert all(speed > 0 for speed in row["tokens_per_second"].values()) and row["ratios"][serving.STEPS] > 0
    first = result["first_token"]
    assert first["steps"]["step"] == 1.0
    for name, seconds in first["seconds"].items():
        assert first["steps"][name] == pytest.approx(seconds / first["seconds"]["step"])
    # Three pieces against none.
    assert first["seconds"]["known"] < first["seconds"]["new"]
    assert serving.PEER in result["throughput"][0]["tokens_per_second"] or result["peer"]["not_run"]
    serving.show(result, TINY)
    shown = capsys.readouterr().out
    assert serving.OURS in shown and "150 tokens" in shown
