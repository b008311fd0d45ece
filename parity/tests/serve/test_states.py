"""States under a name, and texts that go on from them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("prometheus_client", reason="pip install 'liquidnet-dual[serve]'")

from parity.suite.support.fake_engine import fake_pack, fake_parse, written
from parity.suite.support.serve import NAME, serving
from tools.generation.request import SessionState

STATE = SessionState(np.ones((2, 1, 3), np.float32), 7, (1, 2), (3,))


@pytest.fixture(scope="module")
def keeper():
    with serving(most_states=2) as served:
        yield served


@pytest.fixture
def states(keeper):
    yield keeper
    for one in keeper.ask("GET", "/v1/states").json["data"]:
        assert keeper.ask("DELETE", f"/v1/states/{one['id']}").status == 200
    # No place is kept for what has not come to be.
    assert keeper.service.states._reserved == 0


def test_a_state_is_made_told_sent_and_forgotten(states):
    made = states.post("/v1/states", prompt="Once").json
    assert made.keys() == {"id", "object", "created", "tokens", "bytes", "model"}
    assert (made["object"], made["tokens"], made["model"]) == ("state", 4, NAME)
    asked = states.engine.requests[-1]
    assert (asked.prompt, asked.max_tokens, asked.keep_state) == (tuple(b"Once"), 0, True)
    assert states.ask("GET", "/v1/states").json == {"object": "list", "data": [made]}
    answer = states.ask("GET", f"/v1/states/{made['id']}")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert len(answer.content) == made["bytes"] and fake_parse(answer.content).tokens == 4
    assert answer.headers["content-disposition"] == f'attachment; filename="{made["id"]}.safetensors"'
    gone = {"id": made["id"], "object": "state", "deleted": True}
    assert states.ask("DELETE", f"/v1/states/{made['id']}").json == gone
    for method in ("GET", "DELETE"):
        answer = states.ask(method, f"/v1/states/{made['id']}")
        assert (answer.status, answer.error["code"]) == (404, "state_not_found")


def test_a_file_is_kept_under_a_name(states):
    answer = states.ask("PUT", "/v1/states/my-talk_1", fake_pack(STATE))
    assert answer.status == 200 and (answer.json["id"], answer.json["tokens"]) == ("my-talk_1", 8)
    assert states.ask("GET", "/v1/states/my-talk_1").content == fake_pack(STATE)
    other = SessionState(None, 0, (), (5,))
    assert states.ask("PUT", "/v1/states/my-talk_1", fake_pack(other)).json["tokens"] == 1
    assert len(states.ask("GET", "/v1/states").json["data"]) == 1


@pytest.mark.parametrize("name", ["a.b", "a%20b", "%2e%2e", "a" * 65, "%00", "..%2f..%2fetc%2fpasswd", "é"])
def test_names_that_are_none(states, name):
    quoted = name if name.isascii() else "%C3%A9"
    assert states.ask("PUT", f"/v1/states/{quoted}", fake_pack(STATE)).status in (400, 404)
    assert states.ask("GET", f"/v1/states/{quoted}").status == 404
    assert states.ask("GET", "/v1/states").json["data"] == []


def test_what_is_no_state(states):
    for content in (b"", b"\x00" * 100, b'["a", 1]'):
        answer = states.ask("PUT", "/v1/states/x", content)
        assert (answer.status, answer.error["code"]) == (400, "invalid_state")


def test_there_is_room_for_so_many(states):
    states.post("/v1/states", prompt="a")
    states.post("/v1/completions", prompt="a", save_state=True, max_tokens=1)
    for answer in (
        states.post("/v1/states", prompt="a"),
        states.post("/v1/completions", prompt="a", save_state=True),
        states.post("/v1/completions", prompt="a", save_state=True, stream=True),
        states.ask("PUT", "/v1/states/x", fake_pack(STATE)),
    ):
        assert (answer.status, answer.error["code"]) == (429, "too_many_states")
        assert int(answer.headers["retry-after"]) > 0


def test_a_text_goes_on_from_a_state(states):
    state = states.post("/v1/states", prompt="Once").json["id"]
    done = states.post("/v1/completions", prompt=" upon", state=state, seed=1, max_tokens=3, save_state=True).json
    assert done["choices"][0]["text"] == written(9, 1, 3) and done["usage"]["prompt_tokens"] == 5
    asked = states.engine.requests[-1]
    assert asked.state.tokens == 4 and asked.keep_state
    assert fake_parse(states.ask("GET", f"/v1/states/{done['state']}").content).tokens == 12
    # What it went on from is as it was.
    assert fake_parse(states.ask("GET", f"/v1/states/{state}").content).tokens == 4
    # An empty prompt goes on where the text is.
    assert states.post("/v1/completions", prompt="", state=done["state"], max_tokens=1).status == 200
    assert states.engine.requests[-1].prompt == () and states.engine.requests[-1].state.tokens == 12


def test_a_state_grows_by_another_prompt(states):
    state = states.post("/v1/states", prompt="Once").json["id"]
    assert states.post("/v1/states", prompt=[1, 2], state=state).json["tokens"] == 6


def test_a_chat_goes_on_from_a_state(states):
    messages = [{"role": "user", "content": "Hi"}]
    first = states.post("/v1/chat/completions", messages=messages, max_tokens=2, save_state=True).json
    states.post("/v1/chat/completions", messages=messages, max_tokens=2, state=first["state"])
    assert states.engine.requests[-1].state.tokens == len(states.engine.requests[-2].prompt) + 2


def test_a_stream_tells_the_state_at_its_end(states):
    body = {"prompt": "Once", "max_tokens": 2, "save_state": True, "stream": True}
    events = states.post("/v1/completions", **body, stream_options={"include_usage": True}).events
    assert ["state" in event for event in events] == [False] * 2 + [True] * 2
    assert states.ask("GET", f"/v1/states/{events[-1]['state']}").status == 200


def test_what_fails_keeps_no_place(states):
    for body in ({"prompt": "fail"}, {"prompt": "burst"}, {"prompt": ""}):
        assert states.post("/v1/states", **body).status in (400, 500)
        assert states.post("/v1/completions", **body, save_state=True).status in (400, 500)
    assert states.post("/v1/completions", prompt="fail", save_state=True, stream=True).status == 200
    for body, param in (
        ({"prompt": "a", "n": 2, "save_state": True}, "save_state"),
        ({"prompt": ["a", "b"], "save_state": True}, "save_state"),
        ({"prompt": "a", "state": "no-such"}, "state"),
        ({"prompt": "a", "state": "../x"}, "state"),
    ):
        assert states.post("/v1/completions", **body).error["param"] == param
