"""What no well-meaning client sends: the server answers with its API's error body and stays up."""

import http.client
import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server.running_server import serve  # noqa: F401  (a fixture)
from server.scripted_engine import ENDLESS, ScriptedEngine

HELLO = {"model": "k2", "messages": [{"role": "user", "content": "hello"}]}
PATH = "/v1/chat/completions"
MESSAGES_PATH = "/v1/messages"
RESPONSES_PATH = "/v1/responses"


def post(server, body, path=PATH, method="POST", **headers):
    """(status, decoded JSON, headers) of one request on a connection of its own."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read()), response.headers
    finally:
        connection.close()


def raw(server, request):
    """The status of a request spelt out, and everything that came back."""
    with server.connect() as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return int(answer.split()[1]), answer


def assert_alive(server):
    status, answer, _ = post(server, HELLO)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "You said: hello")


def assert_anthropic_error(answer):
    assert (set(answer), answer["type"]) == ({"type", "error", "request_id"}, "error")
    assert set(answer["error"]) == {"type", "message"}
    assert answer["error"]["message"]


def assert_openai_error(answer):
    assert set(answer) == {"error"}
    assert {"message", "type", "param", "code"} <= set(answer["error"])
    assert answer["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b'"hello"',
        b'{"messages": NaN}',
        b'{"temperature": Infinity, "messages": [{"role": "user", "content": "x"}]}',
        json.dumps({**HELLO, "metadata": float("nan")}).encode(),
        b'{"seed": ' + b"9" * 10_000 + b"}",
        b"[" * 200_000,
        b'{"messages": ' + b"[" * 500 + b"]" * 500 + b"}",
        json.dumps({**HELLO, "metadata": json.loads('{"a":' * 70 + "1" + "}" * 70)}).encode(),
    ],
    ids=lambda body: repr(body[:30]),
)
def test_a_body_that_is_no_request_is_a_400(serve, body):  # noqa: F811
    server = serve(ScriptedEngine())
    status, answer, _ = post(server, body)
    assert status == 400
    assert_openai_error(answer)
    assert len(answer["error"]["message"]) < 500
    assert_alive(server)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    "messages n stop seed top_p top_k logprobs top_logprobs logit_bias tools tool_choice "
    "stream_options response_format temperature model".split()
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(FIELDS, JSON, max_size=3), role=JSON, content=JSON)
def test_no_json_makes_the_server_fail(one_server, changes, role, content):
    messages = [{"role": role, "content": content}, HELLO["messages"][0]]
    for body in ({**HELLO, **changes}, {**HELLO, "messages": messages}):
        status, answer, _ = post(one_server, {"max_tokens": 4, **body})
        assert status < 500, answer
        if status != 200:
            assert_openai_error(answer)


CONTENT = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(
                ["text", "thinking", "redacted_thinking", "tool_use", "tool_result", "image"]
            )
        },
        optional={key: JSON for key in "text thinking id name input content is_error".split()},
    ),
    max_size=3,
)
MESSAGES_FIELDS = st.sampled_from(
    "messages system tools tool_choice stop_sequences temperature top_k max_tokens stream "
    "output_config thinking metadata".split()
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(MESSAGES_FIELDS, JSON, max_size=3),
    role=st.sampled_from(["user", "assistant", "system"]) | JSON,
    content=CONTENT | JSON,
)
def test_no_json_makes_messages_fail(one_server, changes, role, content):
    changes.pop("stream", None)  # events are no JSON; what is refused is refused before them
    messages = [{"role": role, "content": content}, HELLO["messages"][0]]
    for path in (MESSAGES_PATH, f"{MESSAGES_PATH}/count_tokens"):
        for body in ({**HELLO, **changes}, {**HELLO, "messages": messages}):
            status, answer, _ = post(one_server, {"max_tokens": 4, **body}, path)
            assert status < 500, answer
            if status != 200:
                assert_anthropic_error(answer)


ITEM = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            "message reasoning function_call function_call_output custom_tool_call item_reference"
            " namespace".split()
        )
        | JSON
    },
    optional={
        key: JSON
        for key in "role content call_id name namespace arguments output encrypted_content id"
        " input summary".split()
    },
)
RESPONSES_FIELDS = st.sampled_from(
    "input instructions tools tool_choice text reasoning include previous_response_id store"
    " max_output_tokens temperature metadata parallel_tool_calls".split()
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(RESPONSES_FIELDS, JSON, max_size=3), items=st.lists(ITEM, max_size=4)
)
def test_no_json_makes_responses_fail(one_server, changes, items):
    last = {"role": "user", "content": "hello"}
    for body in ({"input": "hello", **changes}, {"input": [*items, last]}):
        status, answer, _ = post(one_server, {"max_output_tokens": 4, **body}, RESPONSES_PATH)
        assert status < 500, answer
        if status != 200:
            assert_openai_error(answer)


@pytest.mark.parametrize(
    "kept",
    ["hybrid-k2:", "hybrid-k2:!", "hybrid-k2:/w==", "hybrid-k2:\ud800", "gAAAA", "", 3],
    ids=ascii,
)
def test_reasoning_that_is_not_this_servers_is_refused_or_left_out(serve, kept):  # noqa: F811
    items = [{"type": "reasoning", "summary": [], "encrypted_content": kept}, HELLO["messages"][0]]
    status, answer, _ = post(serve(ScriptedEngine()), {"input": items}, RESPONSES_PATH)
    assert status in (200, 400)
    if status == 400:
        assert "encrypted_content" in answer["error"]["message"]


TOKEN_BODIES = {
    "/v1/completions": {"prompt": "x", "max_tokens": 4},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [1]},
    "/apply-template": {"messages": HELLO["messages"]},
}
TOKEN_FIELDS = st.sampled_from(
    "prompt content tokens messages tools n stop echo add_generation_prompt".split()
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(TOKEN_FIELDS, JSON, min_size=1, max_size=3))
def test_no_json_makes_the_other_routes_fail(one_server, changes):
    for path, body in TOKEN_BODIES.items():
        status, answer, _ = post(one_server, {**body, **changes}, path)
        assert status < 500, answer
        if status != 200:
            assert_openai_error(answer)


@pytest.mark.parametrize(
    ("body", "headers", "status", "kind"),
    [
        (b"{", {}, 400, "invalid_request_error"),
        (b"[" * 200_000, {}, 400, "invalid_request_error"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "invalid_request_error"),
        (b"{}", {"Host": "evil.example"}, 403, "permission_error"),
        (b"{}", {"Origin": "http://evil.example"}, 403, "permission_error"),
        (b"{}" + b" " * 20_000, {}, 413, "request_too_large"),
    ],
    ids=str,
)
def test_what_never_reaches_messages_is_refused_in_anthropics_shape(
    serve,  # noqa: F811
    body,
    headers,
    status,
    kind,
):
    server = serve(ScriptedEngine(), max_body_bytes=10_000 if status == 413 else 1 << 20)
    got, answer, _ = post(server, body, MESSAGES_PATH, **headers)
    assert (got, answer["error"]["type"]) == (status, kind)
    assert_anthropic_error(answer)
    assert post(server, b"", MESSAGES_PATH, "GET")[1]["type"] == "error"
    assert_alive(server)


@pytest.fixture
def one_server(serve):  # noqa: F811
    return serve(ScriptedEngine())


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_form_that_any_page_could_post_is_refused(serve, kind):  # noqa: F811
    status, answer, _ = post(serve(ScriptedEngine()), HELLO, **{"Content-Type": kind})
    assert status == 415
    assert_openai_error(answer)


def test_a_200_mb_prompt_is_refused_before_it_is_sent(serve):  # noqa: F811
    server = serve(ScriptedEngine())
    started = time.monotonic()
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    status, answer = raw(server, f"{head}Content-Length: 200000000\r\n\r\n".encode())
    assert time.monotonic() - started < 5
    assert status == 413
    assert_openai_error(json.loads(answer.split(b"\r\n\r\n", 1)[1]))
    assert_alive(server)


def test_a_body_without_a_length_is_refused_at_the_limit(serve):  # noqa: F811
    server = serve(ScriptedEngine(), max_body_bytes=10_000)
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    chunk = b"1000\r\n" + b"x" * 0x1000 + b"\r\n"
    status, _ = raw(server, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + 3 * chunk)
    assert status == 413
    assert_alive(server)


def test_a_body_that_does_not_arrive_is_not_waited_for(serve):  # noqa: F811
    server = serve(ScriptedEngine(), body_timeout_s=0.1)
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    status, _ = raw(server, f'{head}Content-Length: 100\r\n\r\n{{"mess'.encode())
    assert status == 408
    assert_alive(server)


def test_a_prompt_far_beyond_the_context_is_refused_without_encoding_it(serve):  # noqa: F811
    server = serve(ScriptedEngine())
    body = {**HELLO, "messages": [{"role": "user", "content": "so many words " * 2_000_000}]}
    started = time.monotonic()
    status, answer, _ = post(server, body)
    assert time.monotonic() - started < 10
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert_alive(server)


@pytest.mark.parametrize(
    "text",
    ["\x00\x01\x1b[31m\x7f", "a<|im_end|>b", "<|im_assistant|>", "\u202e\ufeff\u0301", "\r\n\t "],
    ids=ascii,
)
def test_control_characters_and_markers_are_only_text(serve, text):  # noqa: F811
    body = {**HELLO, "messages": [{"role": "user", "content": text}]}
    status, answer, _ = post(serve(ScriptedEngine()), body)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, f"You said: {text}")


def test_half_a_surrogate_pair_is_replaced(serve):  # noqa: F811
    body = {**HELLO, "messages": [{"role": "user", "content": "\ud800"}]}
    status, answer, _ = post(serve(ScriptedEngine()), body)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "You said: \ufffd")


HOSTS = [
    ("localhost", 200),
    ("LOCALHOST:1", 200),
    ("app.localhost:8000", 200),
    ("127.0.0.1", 200),
    ("127.9.8.7:80", 200),
    ("[::1]:80", 200),
    ("localhost.", 200),
    ("friend.example", 200),
    ("evil.example", 403),
    ("127.0.0.1.evil.example", 403),
    ("evil-localhost", 403),
    ("localhost@evil.example", 403),
    ("user@localhost", 403),
    ("192.168.0.7", 403),
    ("[::1", 403),
    ("", 403),
]


@pytest.mark.parametrize(("host", "expected"), HOSTS)
def test_only_a_name_of_this_machine_is_served(serve, host, expected):  # noqa: F811
    server = serve(ScriptedEngine(), allowed_hosts=("friend.example",))
    status, answer, _ = post(server, HELLO, Host=host)
    assert status == expected
    if expected == 403:
        assert_openai_error(answer)


def test_a_request_without_one_host_is_refused(serve):  # noqa: F811
    server = serve(ScriptedEngine())
    assert raw(server, b"GET /v1/models HTTP/1.0\r\n\r\n")[0] == 403
    two = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert raw(server, two)[0] == 400


def test_bound_to_every_address_the_server_answers_to_each_but_to_no_name(serve):  # noqa: F811
    server = serve(ScriptedEngine(), host="0.0.0.0")
    assert post(server, HELLO, Host="192.168.0.7:8000")[0] == 200
    assert post(server, HELLO, Host="evil.example")[0] == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:3000"])
def test_a_foreign_pages_request_is_refused(serve, origin):  # noqa: F811
    server = serve(ScriptedEngine())
    status, answer, headers = post(server, HELLO, Origin=origin, Host="localhost:8000")
    assert status == 403
    assert_openai_error(answer)
    assert "access-control-allow-origin" not in headers
    assert post(server, HELLO, Origin="http://localhost:8000", Host="localhost:8000")[0] == 200


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "secret"}, 401),
        ({"Authorization": "Basic secret"}, 401),
        ({"Authorization": "Bearer s\xe9cret"}, 401),
        ({"X-Api-Key": "wrong"}, 401),
        ({"Authorization": "Bearer secret"}, 200),
        ({"Authorization": "bearer secret"}, 200),
        ({"X-Api-Key": "secret"}, 200),
    ],
    ids=str,
)
def test_a_key_is_needed_where_one_is_set(serve, headers, expected):  # noqa: F811
    server = serve(ScriptedEngine(), api_keys=("secret",))
    status, answer, _ = post(server, HELLO, **headers)
    assert status == expected
    if expected == 401:
        assert answer["error"]["code"] == "invalid_api_key"
        assert "secret" not in answer["error"]["message"]
    assert post(server, b"", "/health", "GET")[0] == 200
    assert post(server, b"", "/openapi.json", "GET", **headers)[0] == expected


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/", 405),
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/chat/completions/../../etc/passwd", 404),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", PATH, 405),
        ("DELETE", "/v1/models", 405),
    ],
)
def test_a_wrong_address_or_method_has_openais_error_body(serve, method, path, expected):  # noqa: F811
    status, answer, _ = post(serve(ScriptedEngine()), b"", path, method)
    assert status == expected
    assert_openai_error(answer)


def test_while_the_model_loads_requests_are_told_to_come_back(serve):  # noqa: F811
    server = serve(None)
    server.service.report_progress("loading", 3, 10)
    status, answer, headers = post(server, HELLO)
    assert (status, answer["error"]["type"]) == (503, "unavailable_error")
    assert int(headers["Retry-After"]) > 0
    status, answer, _ = post(server, b"", "/health", "GET")
    assert status == 503
    assert answer == {"status": "loading", "phase": "loading", "done_bytes": 3, "total_bytes": 10}
    engine = ScriptedEngine()
    server.service.attach(engine)
    assert post(server, b"", "/health", "GET")[:2] == (200, {"status": "ready", "model": "k2"})
    assert_alive(server)


def test_a_client_that_does_not_read_holds_nobody_up(serve):  # noqa: F811
    server = serve(ScriptedEngine(context=1_000_000))
    body = {**HELLO, "messages": [{"role": "user", "content": ENDLESS}], "stream": True}
    body = json.dumps(body).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with server.connect() as reader:
        reader.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert reader.recv(100).startswith(b"HTTP/1.1 200")
        for _ in range(3):
            assert_alive(server)
            assert server.next_end() == "stop"
    assert server.next_end() == "abort"
    assert_alive(server)


def test_requests_open_when_the_server_ends_are_told_so(serve):  # noqa: F811
    engine = ScriptedEngine()
    server = serve(engine)
    engine.model.gate.clear()
    stream = server.client().chat.completions.create(**HELLO, stream=True)
    closing = server.service.thread
    closing._commands.put(closing._stop)
    engine.model.gate.set()
    with pytest.raises(Exception, match="shutting down"):
        list(stream)
    status, answer, _ = post(server, HELLO)
    assert (status, answer["error"]["code"]) == (503, "unavailable")
