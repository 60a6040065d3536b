"""Tools in OpenAI's shape: what a request offers, and how calls look in an answer.

Knows nothing of how a call is found in what the model writes.
"""

from typing import Any

from hybrid_k2.server.errors import ApiError
from hybrid_k2.server.schemas import ChatCompletionRequest
from hybrid_k2.text.tool_calls import CallArguments, CallDelta, CallStart, ToolCall


def offered_tools(body: ChatCompletionRequest) -> list[dict[str, Any]]:
    """Returns the functions the model may call; ApiError for one that is wrong.

    Tools that are no functions are run by OpenAI's own servers; they are left out.
    """
    offered = []
    for index, tool in enumerate(body.tools or ()):
        if tool.get("type") == "function":
            function = tool.get("function")
            name = function.get("name") if isinstance(function, dict) else None
            if not isinstance(name, str) or not name:
                where = f"tools[{index}].function.name"
                raise ApiError(400, f"{where} must be a non-empty string", param=where)
            offered.append(tool)
    return [] if body.tool_choice == "none" else offered


def tool_call_object(call: ToolCall) -> dict[str, Any]:
    """One element of a message's tool_calls."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def tool_call_chunk(delta: CallDelta) -> dict[str, Any] | None:
    """One element of a chunk's tool_calls; None for what has no chunk of its own."""
    if isinstance(delta, CallStart):
        function = {"name": delta.name, "arguments": ""}
        return {"index": delta.index, "id": delta.id, "type": "function", "function": function}
    if isinstance(delta, CallArguments):
        return {"index": delta.index, "function": {"arguments": delta.text}}
    return None
