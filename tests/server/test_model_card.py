"""The examples of Kimi K2's model card, word for word but for the printing, and asynchronously."""

import asyncio
import json

import anthropic
import openai
from server.scripted_engine import ENDLESS, ScriptedEngine

KIMI = {"role": "system", "content": "You are Kimi, an AI assistant created by Moonshot AI."}
INTRODUCTION = "Please give a brief self-introduction."
WEATHER = "What's the weather like in Beijing today? Use the tool to check."
B, E = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
b, a, e = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
CALL = [B, b, "functions.get_weather:0", a, '{"city": "Beijing"}', e, E]
RESULT = '## Return of functions.get_weather:0\n{"weather": "Sunny"}'
REPLIES = {INTRODUCTION: ["I am Kimi."], WEATHER: CALL, RESULT: ["It is sunny in Beijing."]}


def simple_chat(client, model_name):
    messages = [
        {"role": "system", "content": "You are Kimi, an AI assistant created by Moonshot AI."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Please give a brief self-introduction."}],
        },
    ]
    response = client.chat.completions.create(
        model=model_name,
        messages=messages,
        stream=False,
        temperature=0.6,
        max_tokens=256,
    )
    return response.choices[0].message.content


# Your tool implementation
def get_weather(city: str) -> dict:
    return {"weather": "Sunny"}


# Tool schema definition
tools = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Retrieve current weather information. Call this when the user asks "
            "about the weather.",
            "parameters": {
                "type": "object",
                "required": ["city"],
                "properties": {"city": {"type": "string", "description": "Name of the city"}},
            },
        },
    }
]

# Map tool names to their implementations
tool_map = {"get_weather": get_weather}


def tool_call_with_client(client, model_name):
    messages = [
        {"role": "system", "content": "You are Kimi, an AI assistant created by Moonshot AI."},
        {
            "role": "user",
            "content": "What's the weather like in Beijing today? Use the tool to check.",
        },
    ]
    finish_reason = None
    while finish_reason is None or finish_reason == "tool_calls":
        completion = client.chat.completions.create(
            model=model_name,
            messages=messages,
            temperature=0.6,
            tools=tools,  # tool list defined above
            tool_choice="auto",
        )
        choice = completion.choices[0]
        finish_reason = choice.finish_reason
        if finish_reason == "tool_calls":
            messages.append(choice.message)
            for tool_call in choice.message.tool_calls:
                tool_call_name = tool_call.function.name
                tool_call_arguments = json.loads(tool_call.function.arguments)
                tool_function = tool_map[tool_call_name]
                tool_result = tool_function(**tool_call_arguments)
                messages.append(
                    {
                        "role": "tool",
                        "tool_call_id": tool_call.id,
                        "name": tool_call_name,
                        "content": json.dumps(tool_result),
                    }
                )
    return choice.message.content


def test_the_cards_chat_is_answered(serve):
    assert simple_chat(serve(ScriptedEngine(REPLIES)).client(), "k2") == "I am Kimi."


def test_the_cards_tool_is_called_and_its_result_read(serve):
    client = serve(ScriptedEngine(REPLIES)).client()
    assert tool_call_with_client(client, "k2") == "It is sunny in Beijing."


def test_the_asynchronous_client_calls_the_tool_in_a_stream(serve):
    server = serve(ScriptedEngine(REPLIES))

    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
            messages = [KIMI, {"role": "user", "content": WEATHER}]
            async with client.chat.completions.stream(
                model="k2", messages=messages, tools=tools
            ) as stream:
                first = (await stream.get_final_completion()).choices[0].message
            [call] = first.tool_calls
            assert call.function.parsed_arguments is None
            assert json.loads(call.function.arguments) == {"city": "Beijing"}
            result = {"role": "tool", "tool_call_id": call.id, "content": '{"weather": "Sunny"}'}
            messages += [first.model_dump(exclude_none=True), result]
            stream = await client.chat.completions.create(
                model="k2", messages=messages, tools=tools, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(ask()) == "It is sunny in Beijing."


def test_anthropics_asynchronous_client_calls_the_tool(serve):
    server = serve(ScriptedEngine(REPLIES))
    tool = {"name": "get_weather", "input_schema": tools[0]["function"]["parameters"]}

    async def ask():
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="x") as client:
            messages = [{"role": "user", "content": WEATHER}]
            options = {"model": "k2", "max_tokens": 100, "tools": [tool]}
            async with client.messages.stream(messages=messages, **options) as stream:
                first = await stream.get_final_message()
            [call] = first.content
            assert (call.name, call.input) == ("get_weather", {"city": "Beijing"})
            result = {"type": "tool_result", "tool_use_id": call.id}
            result["content"] = '{"weather": "Sunny"}'
            messages += [
                {"role": "assistant", "content": first.content},
                {"role": "user", "content": [result]},
            ]
            return (await client.messages.create(messages=messages, **options)).content[0].text

    assert asyncio.run(ask()) == "It is sunny in Beijing."


def test_many_asynchronous_requests_are_answered_and_a_cancelled_one_frees_its_place(serve):
    server = serve(ScriptedEngine(context=1_000_000))

    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x") as client:

            def chat(text):
                messages = [{"role": "user", "content": text}]
                return client.chat.completions.create(model="k2", messages=messages)

            endless = asyncio.create_task(chat(ENDLESS))
            assert await asyncio.to_thread(server.engine.model.entered.acquire, timeout=20)
            endless.cancel()
            assert await asyncio.to_thread(server.next_end) == "abort"
            answers = await asyncio.gather(*(chat(f"number {index}") for index in range(8)))
            return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(ask()) == [f"You said: number {index}" for index in range(8)]
