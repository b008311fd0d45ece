"""POST /v1/completions, as OpenAI's own client asks for it."""

from __future__ import annotations

import pytest

pytest.importorskip("prometheus_client", reason="pip install 'liquidnet-dual[serve]'")

from parity.suite.support.fake_engine import written
from parity.suite.support.serve import NAME
from spec.sampling import Sampling


def last(server):
    return server.engine.requests[-1]


def test_a_text_is_gone_on_with(server, client):
    done = client.completions.create(model=NAME, prompt="Once", seed=3, max_tokens=5)
    choice = done.choices[0]
    assert (choice.text, choice.index, choice.finish_reason, choice.logprobs) == (written(4, 3, 5), 0, "length", None)
    assert (done.object, done.model, done.system_fingerprint) == ("text_completion", NAME, "fp_0123456789abcdef")
    assert done.id.startswith("cmpl-") and done._request_id.startswith("req_")
    usage = done.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (4, 5, 9)
    assert usage.prompt_tokens_details.cached_tokens == 2


def test_what_is_said_by_default(server, client):
    client.completions.create(model=NAME, prompt="Once")
    asked = last(server)
    assert (asked.prompt, asked.max_tokens, asked.stop, asked.state) == (tuple(b"Once"), 16, (), None)
    assert (asked.logprobs, asked.prompt_logprobs, asked.keep_state) == (None, False, False)
    assert asked.sampling == Sampling(seed=asked.sampling.seed)
    client.completions.create(model=NAME, prompt="Once")
    assert last(server).sampling.seed != asked.sampling.seed


def test_every_number_reaches_the_engine(server, client):
    client.completions.create(
        model=NAME, prompt="Once", temperature=0.5, top_p=0.9, presence_penalty=0.25, frequency_penalty=-1,
        logit_bias={"104": 5, "97": -2.5}, seed=-1, stop=["ab", "", "cd"], max_tokens=3,
        extra_body={"top_k": 7, "min_p": 0.05},
    )  # fmt: skip
    asked = last(server)
    bias = ((97, -2.5), (104, 5.0))
    assert asked.sampling == Sampling(
        0.5, 7, 0.9, 2**64 - 1, min_p=0.05, presence_penalty=0.25, frequency_penalty=-1.0, logit_bias=bias
    )
    assert (asked.stop, asked.max_tokens) == (("ab", "cd"), 3)
    client.completions.create(model=NAME, prompt="Once", stop="x", extra_body={"top_k": -1})
    assert last(server).stop == ("x",) and last(server).sampling.top_k == 0


@pytest.mark.parametrize(
    "prompt, texts",
    [
        ("Once", ["Once"]),
        (["Once", "upon a"], ["Once", "upon a"]),
        ([79, 110], ["On"]),
        ([[79, 110], [97]], ["On", "a"]),
        ("é€😀", ["é€😀"]),
    ],
)
def test_kinds_of_prompts(server, client, prompt, texts):
    done = client.completions.create(model=NAME, prompt=prompt, seed=1, max_tokens=4, echo=True)
    assert [choice.index for choice in done.choices] == list(range(len(texts)))
    assert [c.text for c in done.choices] == [text + written(len(text.encode()), 1, 4) for text in texts]
    assert done.usage.prompt_tokens == sum(len(text.encode()) for text in texts)
    assert done.usage.completion_tokens == 4 * len(texts)


def test_choices_have_seeds_of_their_own(server, client):
    done = client.completions.create(model=NAME, prompt=["a", "bc"], n=3, seed=2**64 - 1, max_tokens=2)
    sizes = [(1, 2**64 - 1), (1, 0), (1, 1), (2, 2**64 - 1), (2, 0), (2, 1)]
    assert [choice.text for choice in done.choices] == [written(size, seed, 2) for size, seed in sizes]
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (3, 12)


def test_more_texts_than_the_queue_takes(server, client):
    """A list is worked off as there is room; it is refused only where nothing of it can begin."""
    done = client.completions.create(model=NAME, prompt=[[k] for k in range(1, 61)], n=2, seed=0, max_tokens=1)
    assert [choice.text for choice in done.choices] == [written(1, k % 2, 1) for k in range(120)]


def test_stop_strings_and_scoring_end_with_their_reasons(server, client):
    text = written(4, 0, 6)
    done = client.completions.create(model=NAME, prompt="Once", seed=0, stop=text[2:4], max_tokens=6)
    assert done.choices[0].finish_reason == "stop"
    done = client.completions.create(model=NAME, prompt="Once", max_tokens=0, echo=True)
    assert (done.choices[0].text, done.choices[0].finish_reason) == ("Once", "length")


def test_logprobs(server, client):
    done = client.completions.create(model=NAME, prompt="Oé", seed=0, max_tokens=2, logprobs=2, echo=True)
    told = done.choices[0].logprobs
    text = written(3, 0, 2)
    assert told.tokens == ["O", r"bytes:\xc3", r"bytes:\xa9", *text]
    assert told.token_logprobs == [None, -0.5, -0.5, -0.5, -0.5]
    assert told.text_offset == [0, 1, 1, 2, 3]
    assert told.top_logprobs[0] is None and told.top_logprobs[3] == {text[0]: -0.5, chr(ord(text[0]) + 1): -1.5}
    done = client.completions.create(model=NAME, prompt="Oé", seed=0, max_tokens=2, logprobs=1)
    told = done.choices[0].logprobs
    assert (told.tokens, told.text_offset) == (list(text), [2, 3]) and not last(server).prompt_logprobs
    done = client.completions.create(model=NAME, prompt="O", max_tokens=2, logprobs=0)
    assert len(done.choices[0].logprobs.tokens) == 2 and done.choices[0].logprobs.top_logprobs is None


def test_as_lm_eval_asks(server):
    """`lm_eval --model local-completions`: ids, scored, and one token that it leaves out again."""
    body = {"prompt": [[79, 110, 99], [101]], "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0, "seed": 9}
    choices = server.post("/v1/completions", **body).json["choices"]
    assert [len(choice["logprobs"]["token_logprobs"]) for choice in choices] == [4, 2]
    for choice in choices:
        scored = choice["logprobs"]
        assert scored["token_logprobs"][0] is None
        for logprob, top in zip(scored["token_logprobs"][1:-1] or [-0.5], scored["top_logprobs"][1:], strict=False):
            assert logprob == max(top.values())


def test_a_stream_is_the_text_in_pieces(server, client):
    same = {"model": NAME, "prompt": ["Once", "a"], "seed": 5, "max_tokens": 6, "n": 2, "logprobs": 1, "echo": True}
    whole = client.completions.create(**same)
    chunks = [*client.completions.create(**same, stream=True, stream_options={"include_usage": True})]
    for index, choice in enumerate(whole.choices):
        mine = [c for chunk in chunks for c in chunk.choices if c.index == index]
        assert "".join(c.text for c in mine) == choice.text
        assert [token for c in mine for token in c.logprobs.tokens] == choice.logprobs.tokens
        assert [at for c in mine for at in c.logprobs.text_offset] == choice.logprobs.text_offset
        assert [c.finish_reason for c in mine] == [None] * (len(mine) - 1) + ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert {chunk.usage for chunk in chunks[:-1]} == {None} and len({chunk.id for chunk in chunks}) == 1


def test_a_stream_as_it_is_sent(server):
    answer = server.post("/v1/completions", prompt="Once", max_tokens=2, stream=True, echo=True, seed=0)
    headers = answer.headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8" and answer.is_done
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-store", "no")
    first = answer.events[0]
    assert first["choices"] == [{"index": 0, "text": "Once", "logprobs": None, "finish_reason": None}]
    assert "usage" not in first and "".join(e["choices"][0]["text"] for e in answer.events) == "Once" + written(4, 0, 2)


@pytest.mark.parametrize(
    "neutral",
    [
        {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
        {"n": 1, "best_of": 1, "suffix": None},
        {"n": 2, "best_of": 2, "logit_bias": None, "stop": None, "stream": None, "temperature": None, "seed": None},
        {"suffix": "", "logprobs": None, "echo": None, "max_tokens": None, "stream_options": None, "state": None},
    ],
)
def test_what_changes_nothing_is_taken(server, neutral):
    assert server.post("/v1/completions", prompt="Once", **neutral).status == 200
