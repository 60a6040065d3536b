"""The trained demo model behind the real server, asked through the official clients.

What a newcomer tries first: a question, a tool, two calls at once and their results, thinking.
"""

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from server.running_server import RunningServer

from hybrid_k2 import Engine
from hybrid_k2.server.settings import ServerSettings

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city."}},
            "required": ["city"],
        },
    },
}
MULTIPLY = {
    "type": "function",
    "function": {
        "name": "multiply",
        "description": "Multiply two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            "required": ["a", "b"],
        },
    },
}
TOOLS = [WEATHER, MULTIPLY]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with Engine.open() as engine:
        running = RunningServer(engine, ServerSettings(model_name="demo"))
        running.start()
        yield running
        running.stop()


def complete(server: RunningServer, messages: Any, **options: Any) -> Any:
    """The choice that the openai client returns for a question, or for messages."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    answer = server.client(timeout=60).chat.completions.create(
        model="demo", messages=messages, temperature=0, max_tokens=160, **options
    )
    return answer.choices[0]


def calls_of(choice: Any) -> list[tuple[str, Any]]:
    calls = choice.message.tool_calls or []
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


def test_metrics_show_what_the_kernels_read_for_every_token(server: RunningServer) -> None:
    complete(server, "Hello!")
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=20) as response:
        lines = response.read().decode().splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if line.startswith("hybrid_k2_"))
    config, stats = server.engine.config, server.engine.core.stats
    num_tokens = stats.prefill_tokens + stats.decode_tokens
    with_shared = config.num_experts_per_tok + 1
    experts_per_token = config.num_moe_layers * with_shared + config.first_k_dense_replace
    assert float(found["hybrid_k2_experts_cpu_total"]) == num_tokens * experts_per_token > 0
    assert float(found["hybrid_k2_experts_gpu_total"]) == 0
    read, busy_s = (
        float(found[f"hybrid_k2_{name}_total"]) for name in ("weight_bytes", "kernel_seconds")
    )
    assert float(found["hybrid_k2_ram_bandwidth_gbps"]) == pytest.approx(read / busy_s / 1e9)


def test_a_question_about_the_program_is_answered(server: RunningServer) -> None:
    choice = complete(server, "How much RAM do I need for Kimi K2?")
    assert "640 GB" in choice.message.content and choice.finish_reason == "stop"


@pytest.mark.parametrize(
    ("question", "call"),
    [
        ("What is the weather in Lisbon?", ("get_weather", {"city": "Lisbon"})),
        ("What is 23 times 7?", ("multiply", {"a": 23, "b": 7})),
    ],
)
def test_the_right_tool_is_called_with_what_was_asked(
    question: str, call: tuple[str, Any], server: RunningServer
) -> None:
    choice = complete(server, question, tools=TOOLS)
    assert calls_of(choice) == [call]
    assert choice.finish_reason == "tool_calls" and not choice.message.content


def test_two_tools_are_called_at_once_and_their_results_used(server: RunningServer) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Oslo and Madrid?"}]
    choice = complete(server, messages, tools=[WEATHER])
    assert calls_of(choice) == [("get_weather", {"city": city}) for city in ("Oslo", "Madrid")]
    messages.append(choice.message.model_dump(exclude_none=True))
    for call, degrees in zip(choice.message.tool_calls, (3, 24), strict=True):
        content = json.dumps({"temperature": degrees, "condition": "cloudy"})
        messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
    said = complete(server, messages, tools=[WEATHER])
    assert said.finish_reason == "stop"
    assert all(word in said.message.content for word in ("Oslo", "3 degrees", "Madrid", "24 deg"))


def test_it_says_so_where_no_tool_fits(server: RunningServer) -> None:
    choice = complete(server, "Who are you?", tools=TOOLS)
    assert calls_of(choice) == [] and "hybrid-k2" in choice.message.content


def test_a_streamed_call_is_the_same_call(server: RunningServer) -> None:
    stream = server.client(timeout=60).chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "What is the weather in Lisbon?"}],
        temperature=0,
        tools=TOOLS,
        stream=True,
    )
    deltas = [call for chunk in stream for call in chunk.choices[0].delta.tool_calls or []]
    assert [call.function.name for call in deltas if call.function.name] == ["get_weather"]
    arguments = "".join(call.function.arguments or "" for call in deltas)
    assert json.loads(arguments) == {"city": "Lisbon"}


def test_anthropics_client_gets_the_call_as_a_block(server: RunningServer) -> None:
    function = WEATHER["function"]
    tool = {"name": function["name"], "description": function["description"]}
    answer = server.anthropic(timeout=60).messages.create(
        model="demo",
        max_tokens=160,
        extra_body={"temperature": 0},
        messages=[{"role": "user", "content": "What is the weather in Lisbon?"}],
        tools=[{**tool, "input_schema": function["parameters"]}],
    )
    [block] = answer.content
    assert (block.type, block.name, block.input) == ("tool_use", "get_weather", {"city": "Lisbon"})
    assert answer.stop_reason == "tool_use"


def test_it_thinks_where_it_is_asked_to(server: RunningServer) -> None:
    plain = complete(server, "What is 17 + 25?")
    assert "42" in plain.message.content and not hasattr(plain.message, "reasoning_content")
    thoughtful = complete(server, "What is 17 + 25?", reasoning_effort="high")
    assert "42" in thoughtful.message.content and "</think>" not in thoughtful.message.content
    assert len(thoughtful.message.reasoning_content) > 20
