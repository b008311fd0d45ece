"""What no client should send: each is answered with 4xx and the contract's error, at once, and harms nobody."""

from __future__ import annotations

import contextlib
import json
import socket

import pytest

pytest.importorskip("prometheus_client", reason="pip install 'liquidnet-dual[serve]'")

from parity.suite.support.serve import HELLO, received

COMPLETIONS, CHAT, STATES = "/v1/completions", "/v1/chat/completions", "/v1/states"

GOOD = {
    COMPLETIONS: {"prompt": "Once", "max_tokens": 1},
    CHAT: {"messages": HELLO, "max_tokens": 1},
    STATES: {"prompt": "Once"},
    "/tokenize": {"prompt": "Once"},
    "/detokenize": {"tokens": [1]},
}
NO_INTEGER = ["5", "", 5.5, True, False, [5], {"a": 5}, 10**400, -(10**400), 1e300]
NO_NUMBER = ["0.5", "nan", True, [0.5], {}, 10**400, -(10**400)]
NO_BOOLEAN = [0, 1, "true", "false", [], {}, 0.0]
NO_STRING = [5, True, ["a"], {"a": "b"}, 1.5]
NO_PROMPT = [
    5,
    True,
    {},
    [1, "a"],
    ["a", 1],
    [[1], "a"],
    [[1, "a"]],
    [[[1]]],
    [True],
    [1.0],
    [None],
    "",
    [],
    [[]],
    [257],
]
NO_PROMPT += [[-1], [10**30], [[1], [300]], ["a", ""], [[1], []]]
NO_STOP = [5, True, {}, [5], [["a"]], ["a"] * 17, "a" * 501, [None]]
NO_BIAS = [5, [], "a", {"a": 1}, {"1.5": 1}, {"-1": 1}, {"257": 1}, {"1": "1"}, {"1": True}, {"1": 101}, {"1": -101}]
NO_BIAS += [{"1": None}, {"01": 1}, {"9" * 30: 1}, {"1": 10**400}, {str(k): 1 for k in range(1025)}, {"\u0661": 1}]
NO_MESSAGES = [
    5, "Hello", {}, [], [5], ["a"], [[]], [{}],
    [{"role": "user"}], [{"content": "a"}], [{"role": "user", "content": None}],
    [{"role": "tool", "content": "a"}], [{"role": "function", "content": "a"}], [{"role": 5, "content": "a"}],
    [{"role": "user", "content": 5}], [{"role": "user", "content": ["a"]}],
    [{"role": "user", "content": [{"type": "text"}]}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
    [{"role": "user", "content": [{"type": "text", "text": 5}]}], [{"role": "user", "content": "a", "name": 5}],
    [{"role": "user", "content": [{"type": "text", "text": "a", "more": 1}]}],
    [{"role": "assistant", "content": "a", "tool_calls": [{"id": "x"}]}], [{"role": "user", "content": "a", "what": 1}],
]  # fmt: skip
SAMPLED = {
    "n": [*NO_INTEGER, 0, -1, 17],
    "seed": [*NO_INTEGER, 2**64, -(2**63) - 1],
    "top_k": [*NO_INTEGER, -2],
    "temperature": [*NO_NUMBER, -0.1, 1001],
    "top_p": [*NO_NUMBER, 0, -0.1, 1.1],
    "min_p": [*NO_NUMBER, -0.1, 1.1],
    "presence_penalty": [*NO_NUMBER, -2.1, 2.1],
    "frequency_penalty": [*NO_NUMBER, -2.1, 2.1],
    "logit_bias": NO_BIAS,
    "stop": NO_STOP,
    "stream": NO_BOOLEAN,
    "save_state": NO_BOOLEAN,
    "state": [*NO_STRING, "no-such", "../../etc/passwd", "a" * 10_000],
    "user": NO_STRING,
    "model": NO_STRING,
    "stream_options": [5, "a", [], {"include_usage": 1}, {"what": True}, {"include_usage": True}],
    "store": [True, "false", 0],
    "service_tier": ["priority", 5],
    "what_is_this": [1, None, "a"],
}
BAD: dict[str, dict[str, list[object]]] = {
    COMPLETIONS: {
        **SAMPLED,
        "prompt": NO_PROMPT,
        "max_tokens": [*NO_INTEGER, -1, 4097, 2**31],
        "echo": NO_BOOLEAN,
        "logprobs": [*NO_INTEGER, -1, 6],
        "best_of": ["1", 2, True, 2.0],
        "suffix": ["a", 5],
    },
    CHAT: {
        **SAMPLED,
        "messages": NO_MESSAGES,
        "max_tokens": [*NO_INTEGER, 0, -1, 4097],
        "max_completion_tokens": [*NO_INTEGER, 0, -1, 4097, 1],
        "logprobs": [*NO_BOOLEAN, 5],
        "top_logprobs": [*NO_INTEGER, -1, 21, 5],
        "tools": [[{"type": "function"}], {}],
        "tool_choice": ["required", {"type": "function"}],
        "functions": [[{"name": "f"}]],
        "response_format": [{"type": "json_object"}, "text"],
        "reasoning_effort": ["low"],
        "modalities": [["audio"], []],
        "audio": [{"voice": "x"}],
    },
    STATES: {"prompt": [*NO_PROMPT[:8], "", []], "state": [*NO_STRING, "no-such"], "model": NO_STRING, "what": [1]},
    "/tokenize": {"prompt": NO_STRING, "messages": [HELLO, *NO_MESSAGES[:6]], "add_generation_prompt": NO_BOOLEAN},
    "/detokenize": {"tokens": [5, "a", ["a"], [257], [-1], [True], [1.0], [10**400], {}]},
}
CASES = [(path, name, value) for path, fields in BAD.items() for name, values in fields.items() for value in values]


def test_there_are_enough_of_them():
    assert len(CASES) > 200


@pytest.mark.parametrize("path, name", [(path, name) for path, fields in BAD.items() for name in fields])
def test_a_field_that_cannot_be(server, path, name):
    before = len(server.engine.requests)
    for value in BAD[path][name]:
        answer = server.ask("POST", path, {**GOOD[path], name: value})
        told = f"{path} {name} {str(value)[:80]}"
        known = {"no-such": 404, "../../etc/passwd": 404, "a" * 10_000: 404} if name == "state" else {}
        status = 404 if name == "model" and isinstance(value, str) else known.get(str(value), 400)
        assert answer.status == status, (told, answer)
        # Two that contradict each other are told by either.
        others = {"max_completion_tokens": "max_tokens", "messages": "prompt"}
        param = answer.error["param"]
        assert param is not None and (param.split(".")[0].split("[")[0] in (name, others.get(name))), (told, answer)
        assert len(answer.content) < 600, told
    assert len(server.engine.requests) == before


@pytest.mark.parametrize("path", GOOD)
def test_without_a_field_that_is_needed(server, path):
    needed = next(iter(GOOD[path]))
    answer = server.ask("POST", path, {})
    assert (answer.status, answer.error["param"]) == (400, needed if path != "/tokenize" else "prompt")


RAW = {
    "nothing": b"",
    "a space": b" ",
    "half": b'{"prompt": "Once"',
    "two": b'{"prompt": "Once"}{}',
    "more": b'{"prompt": "Once"} x',
    "a list": b"[]",
    "null": b"null",
    "a string": b'"Once"',
    "a number": b"5",
    "no JSON": b"prompt=Once",
    "quotes": b"{'prompt': 'Once'}",
    "a comma": b'{"prompt": "Once",}',
    "NaN": b'{"prompt": "Once", "temperature": NaN}',
    "Infinity": b'{"prompt": "Once", "temperature": Infinity}',
    "-Infinity": b'{"prompt": "Once", "temperature": -Infinity}',
    "1e999": b'{"prompt": "Once", "temperature": 1e999}',
    "-1e999": b'{"prompt": "Once", "seed": -1e999}',
    "digits": b'{"prompt": "Once", "seed": ' + b"9" * 5000 + b"}",
    "float digits": b'{"prompt": "Once", "temperature": 1' + b"0" * 5000 + b"}",
    "twice": b'{"prompt": "Once", "prompt": "Twice"}',
    "twice below": b'{"prompt": "Once", "logit_bias": {"1": 1, "1": 2}}',
    "deep lists": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "deep and open": b"[" * 1_000_000,
    "no UTF-8": b'{"prompt": "\xff\xfe"}',
    "half of UTF-8": b'{"prompt": "\xe2\x82"}',
    "long UTF-8": b'{"prompt": "\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"prompt": "\xed\xa0\x80"}',
    "UTF-16": '{"prompt": "Once"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"prompt": "Once"}',
    "a surrogate": b'{"prompt": "a\\ud800b"}',
    "the other surrogate": b'{"prompt": "\\udc00"}',
    "surrogates in a list": b'{"prompt": ["\\ud800\\ud800"]}',
    "a surrogate in a key": b'{"prompt": "Once", "\\ud800": 1}',
    "a line break": b'{"prompt": "a\nb"}',
    "a zero byte": b'{"prompt": "a\x00b"}',
    "a bad escape": b'{"prompt": "\\x41"}',
    "a long key": b'{"prompt": "Once", "' + b"k" * 100_000 + b'": 1}',
}


@pytest.mark.parametrize("body", RAW.values(), ids=RAW)
def test_a_body_that_means_nothing(server, body):
    for path in (COMPLETIONS, CHAT, STATES, "/tokenize"):
        answer = server.ask("POST", path, body)
        assert answer.status == 400 and answer.error["type"] == "invalid_request_error", answer
        assert len(answer.content) < 600


@pytest.mark.parametrize(
    "kind",
    [
        "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonx",
        "application/json; charset=latin-1", "application/octet-stream", "json", "text/json", "application/ld+json",
    ],
)  # fmt: skip
def test_another_kind_of_content(server, kind):
    for path in GOOD:
        answer = server.ask("POST", path, json.dumps(GOOD[path]).encode(), Content_Type=kind)
        assert answer.status == 415 and answer.error
    answer = server.ask("POST", COMPLETIONS, GOOD[COMPLETIONS], Content_Encoding="gzip")
    assert answer.status == 415 and answer.error


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", 'Application/JSON; Charset="UTF-8"'])
def test_the_same_kind_in_other_words(server, kind):
    assert server.ask("POST", COMPLETIONS, GOOD[COMPLETIONS], Content_Type=kind).status == 200


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/completions/", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/redoc", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/v1/states/", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "//etc/passwd", 404),
        ("GET", "/%00", 404),
        ("GET", "/" + "a" * 10_000, 404),
        ("GET", "/v1/completions", 405),
        ("PUT", "/v1/chat/completions", 405),
        ("DELETE", "/v1/completions", 405),
        ("POST", "/v1/models", 405),
        ("POST", "/health", 405),
        ("POST", "/metrics", 405),
        ("PATCH", "/v1/states/x", 405),
        ("OPTIONS", "/v1/completions", 405),
        ("TRACE", "/v1/completions", 405),
        ("CONNECT", "/v1/completions", 405),
        ("BREW", "/v1/completions", 405),
    ],
)
def test_no_such_path_or_method(server, method, path, status):
    answer = server.ask(method, path)
    assert answer.status == status and answer.error["code"]
    assert status != 405 or answer.headers["allow"]


NO_HTTP = {
    "noise": b"\x00\x01\x02\x03\r\n\r\n",
    "TLS": bytes.fromhex("16030100") + b"\x00" * 60 + b"\r\n\r\n",
    "a line": b"hello\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "a space": b"GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n",
    "a long header": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    "a bad length": b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
    "a negative length": b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    "two lengths": b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
}


@pytest.mark.parametrize("content", NO_HTTP.values(), ids=NO_HTTP)
def test_what_is_no_http(server, content):
    head, _, body = server.raw(content).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and b"application/json" in head, head
    assert json.loads(body)["error"]["message"]


@pytest.mark.parametrize("chunk", [b"x\r\n", b"-5\r\n", b"5\r\nab\r\n", b"ffffffffffffffffffff\r\n"])
def test_a_broken_chunk_ends_the_connection(server, chunk):
    head = server.posted(COMPLETIONS, {}).partition(b"Content-Length")[0]
    with server.connected() as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        received(connection)
    assert server.ask("GET", "/health").status == 200


def test_a_key_given_twice_among_many_is_found_at_once(server):
    """A megabyte of names: whoever looks through all of them for each is at it for a minute."""
    names = ",".join(f'"{index}":0' for index in range(100_000))
    answer = server.ask("POST", "/v1/completions", b"{" + names.encode() + b',"7":0}')
    assert answer.status == 400 and "'7' is given twice" in answer.error["message"]


def test_hosts_that_are_not_this_machine(server):
    for host in (
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example:80",
        "[::2]",
        "a]b",
        "localhost:1@evil",
        "[::1].evil.example",
        "localhost: 1",
    ):
        answer = server.ask("GET", "/health", Host=host)
        assert (answer.status, answer.error["code"]) == (400, "invalid_host")
    for host in ("localhost", "localhost:", "LOCALHOST:5", "127.0.0.1:1"):
        assert server.ask("GET", "/health", Host=host).status == 200
