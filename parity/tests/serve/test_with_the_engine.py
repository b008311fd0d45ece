"""The server and the true engine, of both backends: texts, figures and states are those of a session alone."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest

pytest.importorskip("prometheus_client", reason="pip install 'liquidnet-dual[serve]'")

from parity.proof.problems.cases import perturbed_parameters
from parity.suite.support.serve import serving
from spec import LiquidNetConfig
from spec.checkpoint.format import Checkpoint, write_checkpoint
from spec.checkpoint.tensors import pack
from spec.sampling import Sampling, logprobs
from tools.cli import backends
from tools.generation.engine import Engine
from tools.generation.session import RECENT, open_model, parse_state
from tools.tokenizer import build_tokenizer

CONFIG = LiquidNetConfig(vocab_size=257, d_model=12, d_ff=16, n_layers=2, max_seq_len=16)
#: It never draws an end of text, nor what is no letter of ASCII.
LETTERS = {str(token): -100 for token in range(257) if not 32 <= token < 127}
ASKED = {"temperature": 0.9, "top_p": 0.95, "max_tokens": 12, "logit_bias": LETTERS}
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "logit_bias": tuple((int(k), -100.0) for k in LETTERS)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "checkpoint"
    parameters = perturbed_parameters(CONFIG, 3)
    write_checkpoint(path, Checkpoint(CONFIG, parameters, tokenizer=build_tokenizer("byte").to_json()))
    return {backend: open_model(path, backend) for backend in backends.installed()}


@pytest.fixture(scope="module", params=["torch", "jax"])
def served(models, request):
    if request.param not in models:
        pytest.skip(f"{request.param} is not installed")
    with serving(Engine(models[request.param], slots=3, queue=20)) as running:
        yield running


def alone(model, prompt, seed, tokens=12):
    """What a session of its own writes."""
    session = model.session()
    session.append(prompt)
    return "".join(session.write(Sampling(seed=seed, **SAMPLED), tokens)), session


def test_many_clients_get_what_each_would_get_alone(served):
    texts: dict[int, str] = {}

    def ask(k):
        body = {**ASKED, "prompt": "Once " * (k + 1), "seed": k, "stream": k % 2 == 0}
        answer = served.post("/v1/completions", **body)
        texts[k] = "".join(e["choices"][0]["text"] for e in (answer.events if k % 2 == 0 else [answer.json]))

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {k: alone(served.service.model, "Once " * (k + 1), k)[0] for k in range(8)}


def test_a_prompt_is_scored_as_the_model_scores_it(served):
    """As `lm_eval --model local-completions` asks for it: of the last token nothing is used."""
    model, ids = served.service.model, [79, 110, 99, 101]
    body = {"prompt": [ids, [65]], "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0, "seed": 1234}
    choices = served.post("/v1/completions", **body).json["choices"]
    states, expected = None, [None]
    for token, following in itertools.pairwise(ids):
        logits_bv, states = model.step(np.array([[token]]), states)
        expected.append(logprobs(logits_bv[0], following, 1)[0])
    told = choices[0]["logprobs"]
    assert told["token_logprobs"][0] is None and len(told["tokens"]) == 5
    assert told["token_logprobs"][1:-1] == pytest.approx(expected[1:], abs=1e-4)
    pairs = zip(told["token_logprobs"][1:], told["top_logprobs"][1:], strict=True)
    assert all(max(top.values()) >= logprob for logprob, top in pairs)
    assert len(choices[1]["logprobs"]["tokens"]) == 2


def test_an_end_of_text_is_a_token_that_is_told(served):
    """Else a client that scores, and drops the one token which it had to ask for, would drop one of the prompt's."""
    body = {"prompt": [79, 110], "echo": True, "logprobs": 1, "max_tokens": 1, "logit_bias": {"256": 100}}
    choice = served.post("/v1/completions", **body, temperature=0).json["choices"][0]
    assert len(choice["logprobs"]["tokens"]) == 3 and choice["logprobs"]["tokens"][:2] == ["O", "n"]
    assert (choice["text"], choice["finish_reason"]) == ("On", "stop")
    streamed = served.post("/v1/completions", **body, temperature=0, stream=True).events
    assert [t for e in streamed for t in e["choices"][0]["logprobs"]["tokens"]] == choice["logprobs"]["tokens"]


def test_a_state_is_that_of_a_session(served):
    model = served.service.model
    text, session = alone(model, "Once upon", 5)
    answer = served.post("/v1/completions", **ASKED, prompt="Once upon", seed=5, save_state=True).json
    assert answer["choices"][0]["text"] == text
    content = served.ask("GET", f"/v1/states/{answer['state']}").content
    kept, expected = parse_state(content, model), session.state()
    assert (kept.position, kept.pending) == (expected.position, expected.pending)
    np.testing.assert_array_equal(kept.states, expected.states)
    # What a session has kept goes on here.
    assert served.ask("PUT", "/v1/states/mine", content).json["tokens"] == len("Once upon") + 12
    session.append(" a time")
    expected = "".join(session.write(Sampling(seed=6, **SAMPLED), 12))
    more = served.post("/v1/completions", **ASKED, prompt=" a time", seed=6, state="mine").json
    assert more["choices"][0]["text"] == expected
    broken = content[:-1] + bytes([content[-1] ^ 0x7F])
    for wrong in (content[:-5], content[:50], b"", broken[:8] + b"x" + broken[9:]):
        assert served.ask("PUT", "/v1/states/other", wrong).error["code"] == "invalid_state"


def test_a_state_in_two_steps_is_that_of_one(served):
    whole = served.post("/v1/states", prompt="Once upon a time").json
    half = served.post("/v1/states", prompt="Once upon").json
    both = served.post("/v1/states", prompt=" a time", state=half["id"]).json
    assert (whole["tokens"], whole["bytes"]) == (both["tokens"], both["bytes"])
    texts = [
        served.post("/v1/completions", **ASKED, prompt="!", seed=2, state=one["id"]).json["choices"][0]["text"]
        for one in (whole, both)
    ]
    assert texts[0] == texts[1] == alone(served.service.model, "Once upon a time!", 2)[0]


def test_a_prefix_that_is_known_is_told(served):
    prompt = "a long one, " * 30
    first, second = (served.post("/v1/completions", prompt=prompt, max_tokens=1).json["usage"] for _ in range(2))
    assert second["prompt_tokens"] == first["prompt_tokens"] == len(prompt)
    assert second["prompt_tokens_details"]["cached_tokens"] > first["prompt_tokens_details"]["cached_tokens"]


def test_choices_share_the_reading_of_their_prompt(served):
    prompt, before = [*b"It was a dark night. " * 12, served.port % 250], served.engine.stats()
    answer = served.post("/v1/completions", prompt=prompt, n=5, max_tokens=3, temperature=1.0, seed=3).json
    after = served.engine.stats()
    assert after.prompt_pieces - before.prompt_pieces == len(prompt) // 64 + 1
    assert after.cached_tokens - before.cached_tokens == 4 * (len(prompt) - 1)
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    assert len({choice["text"] for choice in answer["choices"]}) > 1


def forget_all(served):
    """The states of the tests before."""
    for one in served.ask("GET", "/v1/states").json["data"]:
        served.ask("DELETE", f"/v1/states/{one['id']}")


def test_a_state_is_of_one_size_where_a_stop_string_comes_first(served):
    """The prompt has been read: the state must not go back to before it, however often."""
    forget_all(served)
    sizes, state = [], {}
    for _ in range(3):
        body = {"prompt": "a" * 500, "max_tokens": 9, "stop": ["z"], "logit_bias": {"122": 100}, "save_state": True}
        state = {"state": served.post("/v1/completions", **body, **state).json["state"]}
        kept = parse_state(served.ask("GET", f"/v1/states/{state['state']}").content, served.service.model)
        sizes.append((kept.tokens, len(kept.pending)))
    assert sizes == [(500, 1), (1000, 1), (1500, 1)]


def test_a_state_file_is_as_strict_as_a_request(served):
    """What another program has written into it: nothing is kept that could not be listed, read or gone on from."""
    forget_all(served)
    model = served.service.model
    shape = (CONFIG.n_layers, 1, CONFIG.d_model)
    good = {"weights": model.identity, "position": "5", "recent": "[97]", "pending": "[98]"}

    def put(**changed):
        content = pack({"states": np.full(shape, 0.5, np.float32)}, {**good, **changed})
        return served.ask("PUT", "/v1/states/strict", content)

    for wrong in (
        {"position": "9" * 4300},
        {"position": "1_0"},
        {"position": "\u0664"},
        {"position": "-1"},
        {"pending": "[97.9]"},
        {"pending": "[true]"},
        {"pending": '["97"]'},
        {"pending": "[]"},
        {"pending": "{}"},
        {"pending": "[257]"},
        {"recent": "[[97]]"},
        {"recent": "7"},
    ):
        answer = put(**wrong)
        assert (answer.status, answer.error["code"]) == (400, "invalid_state"), wrong
    assert served.ask("GET", "/v1/states").json["data"] == []
    assert put(recent=f"[{','.join(['97'] * 100_000)}]").status == 200
    assert len(served.service.states.get("strict").state.recent) == RECENT
    assert put(pending=f"[{','.join(['97'] * (served.service.limits.max_prompt_tokens + 1))}]").status == 200
    answer = served.post("/v1/completions", prompt="a", state="strict", max_tokens=1)
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    served.ask("DELETE", "/v1/states/strict")


def test_a_state_that_overflows_is_told_of(served):
    forget_all(served)
    content = pack(
        {"states": np.full((CONFIG.n_layers, 1, CONFIG.d_model), 3e38, np.float32)},
        {"weights": served.service.model.identity, "position": "5", "pending": "[98]"},
    )
    assert served.ask("PUT", "/v1/states/huge", content).status == 200
    for asked in ({}, {"echo": True, "logprobs": 1}):
        answer = served.post("/v1/completions", prompt="ab", state="huge", max_tokens=2, **asked)
        assert answer.status == 500 and "not finite" in answer.error["message"]
    served.ask("DELETE", "/v1/states/huge")


def test_what_clients_ask_of_the_tokenizer(served):
    """As lm-evaluation-harness does with tokenizer_backend=remote: the end of text by its name alone."""
    info = served.ask("GET", "/tokenizer_info").json
    assert info == {"eos_token": "<|endoftext|>", "bos_token": None, "chat_template": served.service.template.source}
    asked = {"add_special_tokens": False}
    assert served.post("/tokenize", prompt=info["eos_token"], **asked).json["tokens"] == [256]
    within = f"a{info['eos_token']}"
    assert served.post("/tokenize", prompt=within, **asked).json["tokens"] == [*within.encode()]
