"""POST /v1/chat/completions, as OpenAI's own client asks for it."""

from __future__ import annotations

import pytest

pytest.importorskip("prometheus_client", reason="pip install 'liquidnet-dual[serve]'")

from parity.suite.support.fake_engine import END_OF_TEXT, written
from parity.suite.support.serve import HELLO, NAME, serving

#: What the template makes of it.
PROMPT = (*b"user: Hello", END_OF_TEXT, *b"assistant:")


def test_a_reply(server, client):
    done = client.chat.completions.create(model=NAME, messages=HELLO, seed=3, max_completion_tokens=5)
    asked = server.engine.requests[-1]
    assert (asked.prompt, asked.max_tokens, asked.stop) == (PROMPT, 5, ("\nuser:",))
    choice = done.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", written(len(PROMPT), 3, 5))
    assert (choice.finish_reason, choice.index, choice.logprobs) == ("length", 0, None)
    assert done.object == "chat.completion" and done.id.startswith("chatcmpl-")
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (len(PROMPT), 5)


def test_what_is_said_by_default(server, client):
    with serving() as served:
        answer = served.post("/v1/chat/completions", messages=HELLO, stop="e", seed=0)
        assert served.engine.requests[-1].max_tokens == served.service.limits.max_tokens
        assert served.engine.requests[-1].stop == ("e",) and answer.json["choices"][0]["finish_reason"] == "stop"
    client.chat.completions.create(model=NAME, messages=HELLO, max_tokens=2)
    assert server.engine.requests[-1].max_tokens == 2


@pytest.mark.parametrize(
    "messages, text",
    [
        ([{"role": "developer", "content": "Be kind"}, *HELLO], b"system: Be kind\xffuser: Hello\xffassistant:"),
        (
            [*HELLO, {"role": "assistant", "content": "Hi", "refusal": None, "tool_calls": None}, *HELLO],
            b"user: Hello\xffassistant: Hi\xffuser: Hello\xffassistant:",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}],
            b"user: Hello\xffassistant:",
        ),
        ([{"role": "user", "content": "<|endoftext|>"}], b"user: <|endoftext|>\xffassistant:"),
    ],
)
def test_messages_become_text(server, messages, text):
    assert server.post("/v1/chat/completions", messages=messages, max_tokens=1).status == 200
    expected = tuple(END_OF_TEXT if byte == 0xFF else byte for byte in text)
    assert server.engine.requests[-1].prompt == expected


def test_a_stream(server, client):
    same = {"model": NAME, "messages": HELLO, "seed": 3, "max_tokens": 5, "n": 2}
    whole = client.chat.completions.create(**same)
    chunks = [*client.chat.completions.create(**same, stream=True)]
    for index, choice in enumerate(whole.choices):
        mine = [c for chunk in chunks for c in chunk.choices if c.index == index]
        assert [c.delta.role for c in mine] == ["assistant"] + [None] * (len(mine) - 1)
        assert "".join(c.delta.content or "" for c in mine) == choice.message.content
        assert [c.finish_reason for c in mine] == [None] * (len(mine) - 1) + ["length"]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert all(chunk.usage is None for chunk in chunks)
    with_usage = client.chat.completions.create(**same, stream=True, stream_options={"include_usage": True})
    assert [*with_usage][-1].usage == whole.usage


def test_the_clients_own_helper_puts_a_stream_together(server, client):
    text = written(len(PROMPT), 3, 6)
    with client.chat.completions.stream(model=NAME, messages=HELLO, seed=3, stop=text[5]) as stream:
        for _ in stream:
            pass
        done = stream.get_final_completion()
    assert done.choices[0].message.content == text[:5]


def test_logprobs(server, client):
    same = {"model": NAME, "messages": HELLO, "seed": 0, "max_tokens": 2, "logprobs": True, "top_logprobs": 2}
    done = client.chat.completions.create(**same)
    content = done.choices[0].logprobs.content
    text = written(len(PROMPT), 0, 2)
    assert [(one.token, one.logprob, one.bytes) for one in content] == [(c, -0.5, [ord(c)]) for c in text]
    assert [one.logprob for one in content[0].top_logprobs] == [-0.5, -1.5]
    streamed = [c for chunk in client.chat.completions.create(**same, stream=True) for c in chunk.choices]
    assert [one for c in streamed if c.logprobs for one in c.logprobs.content] == content
    done = client.chat.completions.create(model=NAME, messages=HELLO, max_tokens=1, logprobs=True)
    assert done.choices[0].logprobs.content[0].top_logprobs == []


@pytest.mark.parametrize(
    "neutral",
    [
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "functions": None},
        {"tools": None, "response_format": {"type": "text"}, "modalities": ["text"], "reasoning_effort": None},
        {"service_tier": "auto", "store": False, "metadata": {}, "user": "me", "audio": None, "prediction": None},
    ],
)
def test_what_changes_nothing_is_taken(server, neutral):
    assert server.post("/v1/chat/completions", messages=HELLO, max_tokens=1, **neutral).status == 200


def test_without_a_template_there_is_no_chat():
    with serving(template=None) as served:
        for path in ("/v1/chat/completions", "/tokenize"):
            answer = served.post(path, messages=HELLO)
            assert (answer.status, answer.error["code"]) == (400, "no_chat_template")


def test_what_the_template_refuses():
    template = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('the user begins') }}{% endif %}{{ messages.x.y }}"
    )
    with serving(template=template) as served:
        answer = served.post("/v1/chat/completions", messages=[{"role": "system", "content": "x"}])
        assert (answer.status, answer.error["message"]) == (400, "messages: the user begins")
        answer = served.post("/v1/chat/completions", messages=HELLO)
        assert answer.status == 400 and "the chat template fails on these messages" in answer.error["message"]
