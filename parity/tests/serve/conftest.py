"""One server for all tests that leave it as it was."""

import pytest


@pytest.fixture(scope="session")
def server():
    from parity.suite.support.serve import KEY, serving

    with serving(api_key=KEY) as served:
        yield served


@pytest.fixture(scope="session")
def client(server):
    openai = pytest.importorskip("openai", reason="pip install 'liquidnet-dual[dev]'")
    key = server.headers["Authorization"].removeprefix("Bearer ")
    base = f"http://127.0.0.1:{server.port}/v1"
    with openai.OpenAI(base_url=base, api_key=key, max_retries=0, timeout=10) as connected:
        yield connected
