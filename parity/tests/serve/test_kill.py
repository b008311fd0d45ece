"""A server that is killed in mid-stream loses what was in its memory, and nothing that a client holds."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
from contextlib import closing, contextmanager

import pytest

from parity.suite.support.serve import Served
from parity.suite.support.ui import free_port, wandering
from spec.checkpoint.format import write_checkpoint
from spec.sampling import Sampling
from tools.cli import backends
from tools.generation.session import open_model

pytestmark = pytest.mark.long


@contextmanager
def running(checkpoint, backend):
    port = free_port()
    command = [sys.executable, "-m", "tools.cli", "serve", "--checkpoint", str(checkpoint), "--port", str(port)]
    process = subprocess.Popen([*command, "--backend", backend], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None and re.search(rb"http://127", process.stdout.readline())
        none = None
        yield process, Served(port, none, none, none)
    finally:
        process.kill()
        process.communicate()


def test_a_state_from_before_goes_on_after_a_kill(tmp_path):
    """In mid-stream, and on the other backend where there is one."""
    checkpoint = tmp_path / "tale"
    write_checkpoint(checkpoint, wandering())
    first, second = backends.installed()[0], backends.installed()[-1]
    with running(checkpoint, first) as (process, served):
        body = {"prompt": "Once", "max_tokens": 20, "seed": 1, "temperature": 0.8, "save_state": True}
        answer = served.ask("POST", "/v1/completions", body).json
        kept = served.ask("GET", f"/v1/states/{answer['state']}").content
        with closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)) as connection:
            endless = {"prompt": "x", "max_tokens": 4096, "stream": True, "logit_bias": {"256": -100}}
            content, header = json.dumps(endless), {"Content-Type": "application/json"}
            connection.request("POST", "/v1/completions", content, header)
            stream = connection.getresponse()
            assert stream.readline().startswith(b"data: ")
            process.kill()
            process.wait()
            with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
                stream.read()
    with running(checkpoint, second) as (_, served):
        assert served.ask("POST", "/v1/completions", {"prompt": "x", "state": answer["state"]}).status == 404
        assert served.ask("PUT", "/v1/states/kept", kept).json["tokens"] == 24
        body = {"prompt": " and", "max_tokens": 20, "seed": 2, "temperature": 0.8, "state": "kept"}
        onward = served.ask("POST", "/v1/completions", body).json
    session = open_model(checkpoint, first).session()
    session.append("Once")
    assert "".join(session.write(Sampling(0.8, seed=1), 20)) == answer["choices"][0]["text"]
    session.append(" and")
    assert "".join(session.write(Sampling(0.8, seed=2), 20)) == onward["choices"][0]["text"]
