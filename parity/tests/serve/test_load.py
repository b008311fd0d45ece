"""The load run in short: what it is to find, it finds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parity.suite.runs import serve_load
from parity.suite.runs.serve_load import Load
from tools.cli import backends

pytestmark = pytest.mark.long
SHORT = Load(clients=12, minutes=0.08, texts=12)


@pytest.mark.parametrize("backend", backends.installed())
def test_many_clients_get_the_right_texts(backend):
    assert serve_load.run(replace(SHORT, backend=backend)) == []


def test_a_wrong_text_is_found(monkeypatch):
    right = serve_load.wanted_texts

    def wrong(checkpoint, load):
        texts = right(checkpoint, load)
        return [replace(one, text=one.text + "!") for one in texts]

    monkeypatch.setattr(serve_load, "wanted_texts", wrong)
    faults = serve_load.run(replace(SHORT, backend=backends.default(), minutes=0.04))
    assert faults and all("and not" in fault for fault in faults)
