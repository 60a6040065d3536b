"""Every route of the served OpenAPI document, called as schemathesis finds its schemas to allow."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from server.running_server import serve  # noqa: F401  (a fixture)
from server.scripted_engine import ScriptedEngine

schemathesis = pytest.importorskip("schemathesis")

EXAMPLES = 4  # of each route; CI has minutes, not hours


def test_no_route_fails_whatever_its_schema_allows(serve):  # noqa: F811
    server = serve(ScriptedEngine(context=200))
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    called = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        call_all(operation, called)
    assert {"/v1/responses", "/v1/messages", "/v1/chat/completions", "/v1/cache"} <= called


def call_all(operation, called):
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy())
    def check(case):
        called.add(operation.path)
        response = case.call(timeout=20)
        assert response.status_code < 500, (case.as_curl_command(), response.text)

    check()
