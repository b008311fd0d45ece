"""One server for all tests that leave it as it was."""

from collections.abc import Iterator

import pytest

for name in ("fastapi", "uvicorn", "jinja2", "prometheus_client"):
    pytest.importorskip(name, reason="pip install 'liquidnet-dual[serve]'")

from parity.suite.support.serve import KEY, Served, serving


@pytest.fixture(scope="session")
def server() -> Iterator[Served]:
    with serving(api_key=KEY) as served:
        yield served


@pytest.fixture(scope="session")
def client(server):
    openai = pytest.importorskip("openai", reason="pip install openai")
    base = f"http://127.0.0.1:{server.port}/v1"
    with openai.OpenAI(base_url=base, api_key=KEY, max_retries=0, timeout=10) as connected:
        yield connected
