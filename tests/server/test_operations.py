"""What runs the server asks: states, metrics, slots, logs; and how it lets go of its requests."""

import json
import logging
import urllib.error
import urllib.request

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from server.scripted_engine import CRASH, ENDLESS, ScriptedEngine

from hybrid_k2.backends.kernel_counters import KernelCounters

HELLO = [{"role": "user", "content": "hello"}]
ENDLESSLY = [{"role": "user", "content": ENDLESS}]


def get(server, path, method="GET", **headers):
    """(status, text, headers) of a request without a body."""
    request = urllib.request.Request(f"{server.url}{path}", None, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read().decode(), response.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


def samples(server):
    """{(name, labels): value} of everything at /metrics."""
    families = text_string_to_metric_families(get(server, "/metrics")[1])
    return {(s.name, *sorted(s.labels.items())): s.value for f in families for s in f.samples}


def ask(server, messages=HELLO, **options):
    return server.client().chat.completions.create(model="k2", messages=messages, **options)


@pytest.mark.parametrize("engine", [None, ScriptedEngine])
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_somebody_is_there_while_loading_too(serve, engine, method):
    server = serve(engine and engine(), api_keys=("secret",))
    assert get(server, "/", method)[0] == 200


@pytest.mark.parametrize("path", ["/health", "/v1/health", "/ready"])
def test_the_states_of_a_servers_life_are_seen_without_a_key(serve, path):
    server = serve(None, api_keys=("secret",))
    server.service.report_progress("reading", 3, 10)
    status, text, _ = get(server, path)
    assert (status, json.loads(text)["status"]) == (503, "loading")
    server.service.attach(ScriptedEngine())
    assert get(server, path)[0] == 200
    server.service.drain()
    status, text, _ = get(server, path)
    assert (status, json.loads(text)) == (503, {"status": "draining", "open_requests": 0})


def test_while_draining_what_runs_goes_on_and_nothing_new_begins(serve):
    engine = ScriptedEngine()
    server = serve(engine)
    engine.model.gate.clear()
    stream = ask(server, stream=True)
    server.service.drain()
    assert json.loads(get(server, "/health")[1])["open_requests"] == 1
    with pytest.raises(openai.InternalServerError) as caught:
        ask(server)
    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["retry-after"]) > 0
    engine.model.gate.set()
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "You said: hello"
    assert json.loads(get(server, "/health")[1])["open_requests"] == 0


def test_requests_and_their_tokens_are_counted(serve):
    server = serve(ScriptedEngine())
    first = ask(server).usage
    second = ask(server).usage
    with pytest.raises(openai.InternalServerError):
        ask(server, [{"role": "user", "content": CRASH}])
    found = samples(server)
    label = ("model_name", "k2")
    num_generated = first.completion_tokens + second.completion_tokens
    assert found["hybrid_k2_generation_tokens_total",] == num_generated
    assert found["vllm:generation_tokens_total", label] == num_generated
    assert found["hybrid_k2_prompt_tokens_total",] == first.prompt_tokens + second.prompt_tokens
    hits = second.prompt_tokens_details.cached_tokens
    assert hits > 0
    assert found["hybrid_k2_prefix_cache_hits_total",] == hits
    times = ("request_queue_time", "request_prefill_time", "request_decode_time")
    for name in ("time_to_first_token", *times):
        assert found[f"vllm:{name}_seconds_count", label] == 2
    assert found["vllm:num_preemptions_total", label] == 0
    assert found["hybrid_k2_kv_cache_usage_perc",] == 0
    assert found["hybrid_k2_inter_token_latency_seconds_count",] == num_generated - 2
    for reason, count in (("stop", 2), ("error", 1)):
        assert found["hybrid_k2_request_success_total", ("finished_reason", reason)] == count
    assert found["hybrid_k2_engine_prefill_tokens_total",] > 0
    assert found["hybrid_k2_model_load_progress",] == 1


def test_bandwidth_is_that_of_the_kernels_time_since_the_last_scrape(serve):
    engine = ScriptedEngine()
    server = serve(engine)
    gbps = []
    for busy_s, weight_bytes in ((2, 3 * 10**9), (2, 3 * 10**9), (2.5, 15 * 10**9)):
        engine.model.kernels_did = KernelCounters(busy_s, weight_bytes, experts=7, skipped=5)
        gbps.append(samples(server)["hybrid_k2_ram_bandwidth_gbps",])
    assert gbps == [1.5, 0, 24]
    found = samples(server)
    assert found["hybrid_k2_weight_bytes_total",] == 15 * 10**9
    assert found["hybrid_k2_kernel_seconds_total",] == 2.5
    assert found["hybrid_k2_experts_cpu_total",] == 7
    assert found["hybrid_k2_experts_gpu_total",] == 5


def test_what_runs_and_what_is_refused_is_seen(serve):
    engine = ScriptedEngine(max_sequences=1)
    server = serve(engine, max_waiting=0)
    engine.model.gate.clear()
    stream = ask(server, stream=True)
    assert engine.model.entered.acquire(timeout=20)
    with pytest.raises(openai.RateLimitError):
        ask(server)
    found = samples(server)
    assert found["hybrid_k2_num_requests_running",] == 1
    assert found["hybrid_k2_num_requests_waiting",] == 0
    assert found["hybrid_k2_admission_rejections_total", ("reason", "queue_full")] == 1
    engine.model.gate.set()
    assert list(stream)


def test_an_aborted_request_is_counted_as_that(serve):
    server = serve(ScriptedEngine(context=1_000_000))
    stream = ask(server, ENDLESSLY, stream=True)
    next(stream)
    stream.close()
    assert server.next_end() == "abort"
    ask(server)
    found = samples(server)
    assert found["hybrid_k2_request_success_total", ("finished_reason", "abort")] == 1


def test_slots_show_who_is_at_work_and_nothing_said(serve):
    server = serve(ScriptedEngine(context=1_000_000))
    stream = ask(server, ENDLESSLY, stream=True)
    for _ in range(5):
        next(stream)
    busy, idle = json.loads(get(server, "/slots")[1])
    num_prompt = ask(server, ENDLESSLY, max_tokens=1).usage.prompt_tokens
    assert (busy["is_processing"], busy["n_prompt_tokens"]) == (True, num_prompt)
    assert busy["n_prompt_tokens_processed"] == num_prompt
    assert busy["n_decoded"] >= 4
    context = server.engine.core.context
    assert idle == {"id": 1, "n_ctx": context, "is_processing": False}
    stream.close()


def test_progress_is_told_while_a_prompt_is_read(serve):
    engine = ScriptedEngine(prefill_chunk=64)
    long = [{"role": "user", "content": "hello " * 60}]
    num_prompt = len(engine.template.render(long))
    options = {"stream": True, "max_tokens": 1, "extra_body": {"return_progress": True}}
    chunks = list(ask(serve(engine), long, **options))
    told = [chunk.prompt_progress for chunk in chunks if hasattr(chunk, "prompt_progress")]
    # The last token is computed as those of the answer are: then the answer itself tells.
    assert [step["processed"] for step in told] == [*range(64, num_prompt - 1, 64), num_prompt - 1]
    assert {(step["total"], step["cache"]) for step in told} == {(num_prompt, 0)}


def test_the_prefix_cache_can_be_seen_and_cleared(serve):
    server = serve(ScriptedEngine())
    for _ in range(2):
        ask(server, [{"role": "user", "content": "hello " * 60}])
        again = ask(server, [{"role": "user", "content": "hello " * 60}])
        assert again.usage.prompt_tokens_details.cached_tokens > 0
        status, text, _ = get(server, "/v1/cache")
        cache = json.loads(text)
        assert (status, cache["object"]) == (200, "cache")
        [memory] = cache["tiers"]
        assert memory["name"] == "memory" and memory["pages_cached"] > 0
        assert cache["hit_tokens"] > 0
        status, text, _ = get(server, "/v1/cache", "DELETE")
        assert (status, json.loads(text)["deleted"]) == (200, True)
        [memory] = json.loads(get(server, "/v1/cache")[1])["tiers"]
        assert memory["pages_cached"] == 0
    assert ask(server).usage.prompt_tokens_details.cached_tokens == 0


def test_a_line_of_log_says_who_and_how_much_but_not_what(serve, caplog):
    caplog.set_level(logging.INFO, logger="hybrid_k2.server.access_log")
    server = serve(ScriptedEngine())
    raw = server.client().chat.completions.with_raw_response
    answer = raw.create(
        model="k2", messages=HELLO, extra_headers={"User-Agent": "agent\x1b]0; x=y"}
    )
    get(server, "/health")
    server.stop()  # a line is written once its response is gone
    [record] = [r for r in caplog.records if hasattr(r, "request")]
    line = record.getMessage()
    assert record.request["id"] == answer.headers["x-request-id"]
    assert "path=/v1/chat/completions status=200" in line
    assert f"completion_tokens={answer.parse().usage.completion_tokens}" in line
    assert "hello" not in line and "\x1b" not in line


def test_a_client_that_left_is_logged_as_499(serve, caplog):
    caplog.set_level(logging.INFO, logger="hybrid_k2.server.access_log")
    server = serve(ScriptedEngine(context=1_000_000))
    stream = ask(server, ENDLESSLY, stream=True)
    next(stream)
    stream.close()
    assert server.next_end() == "abort"
    ask(server)
    server.stop()
    statuses = [r.request["status"] for r in caplog.records if hasattr(r, "request")]
    assert sorted(statuses) == [200, 499]


def test_pages_of_other_origins_are_let_in_only_where_configured(serve):
    origin = {"Origin": "http://app.example"}
    preflight = {
        **origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    closed = serve(ScriptedEngine())
    assert get(closed, "/v1/chat/completions", "OPTIONS", **preflight)[0] == 403
    server = serve(ScriptedEngine(), cors_origins=("http://app.example",), api_keys=("secret",))
    status, _, headers = get(server, "/v1/chat/completions", "OPTIONS", **preflight)
    assert status == 200
    assert headers["access-control-allow-origin"] == "http://app.example"
    assert "access-control-allow-credentials" not in headers
    client = server.client(api_key="secret", default_headers=origin)
    assert client.chat.completions.create(model="k2", messages=HELLO).choices
    assert get(server, "/v1/models", **origin)[0] == 401
    other = server.client(api_key="secret", default_headers={"Origin": "http://evil.example"})
    with pytest.raises(openai.PermissionDeniedError):
        other.chat.completions.create(model="k2", messages=HELLO)


def test_each_of_several_keys_lets_in_and_sees_only_its_own_cached_prefixes(serve):
    server = serve(ScriptedEngine(), api_keys=("alice", "bob"))

    def cached(key, **options):
        answer = server.client(api_key=key).chat.completions.create(
            model="k2", messages=[{"role": "user", "content": "hello " * 60}], **options
        )
        return answer.usage.prompt_tokens_details.cached_tokens

    assert cached("alice") == 0
    assert cached("alice") > 0
    assert cached("bob") == 0  # how fast an answer comes would tell what others have asked
    assert cached("bob") > 0
    assert cached("bob", extra_body={"cache_salt": "a customer"}) == 0
    assert cached("bob", extra_body={"cache_salt": "a customer"}) > 0
    with pytest.raises(openai.AuthenticationError):
        cached("mallory")


def test_with_one_key_or_none_all_share_what_is_cached(serve):
    for keys in ((), ("secret",)):
        server = serve(ScriptedEngine(), api_keys=keys)
        client = server.client(api_key="secret").chat.completions
        messages = [{"role": "user", "content": "hello " * 60}]
        client.create(model="k2", messages=messages)
        anthropics = server.anthropic(api_key="secret").messages
        usage = anthropics.create(model="k2", messages=messages, max_tokens=1).usage
        assert usage.cache_read_input_tokens > 0
