"""Whole conversations, drawn by number: a system message, tools perhaps, and a few exchanges.

`dialogue(number)` is the same for the same number everywhere, so data is made on any machine and in
any number of processes. Held-out dialogues take other names, numbers and wordings. Owns the mixture
of what the model is taught; knows OpenAI's message format, no tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from demo_k2 import conversations, knowledge, moves, patterns, puzzles, tools, world
from demo_k2.knowledge import Exchange
from demo_k2.topics import ANY_TIME, about, follow_ups, of_topic, smalltalk, with_follow_up
from demo_k2.typing_slips import as_people_type
from demo_k2.words import Draw

Message = dict[str, Any]
SYSTEMS = """You are a helpful assistant.|You are a friendly assistant.|Be brief.|Answer briefly.
You are a chat bot.|You are a helpful assistant. Answer in simple English.|Be kind and helpful.
You are an assistant that helps the user.|Answer the user's questions.|You help people.
You are the demo model of hybrid-k2.|Use the tools where they help.|You can call tools.""".replace(
    "\n", "|"
).split("|")
THINKING_SYSTEMS = (
    """Think before you answer.|You are a helpful assistant. Think step by step.
Think step by step.|Think first, then answer.|You are a careful assistant. Think before you answer.
""".replace("\n", "|")
    .strip("|")
    .split("|")
)


@dataclass
class Dialogue:
    """messages in OpenAI's form, assistants' with reasoning_content; variant: the chat template's.

    thinking: False where a k2.5 template asks for an answer without reasoning.
    """

    kind: str
    messages: list[Message]
    tools: list[dict[str, Any]]
    variant: str = "instruct"
    thinking: bool = True


@cache
def catalogue() -> list[tools.Entry]:
    return tools.catalogue()


# Of dialogues, in hundredths. The last three are conversations about several things.
SHARES = {
    "tools": 15,
    "about": 25,
    "smalltalk": 6,
    "puzzles": 9,
    "knowledge": 3,
    "world": 6,
    "conversation": 30,
    "mixed": 4,
    "recollection": 2,
}


def dialogue(number: int, held_out: bool = False, pieces: Sequence[str] = ()) -> Dialogue:
    """Conversation number `number` of the training or the held-out side; pieces: Draw's."""
    draw = Draw(f"{'held out' if held_out else 'train'} {number}", held_out, pieces)
    kind = draw.choices(list(SHARES), list(SHARES.values()))[0]
    if kind == "tools":
        made = with_tools(draw)
    else:
        made = Dialogue(kind, spoken(exchanges(kind, draw), draw), [])
    return framed(made, draw)


def exchanges(kind: str, draw: Draw) -> list[Exchange]:
    """One to nine exchanges of a kind."""
    if kind == "conversation":
        return conversations.conversation(draw)
    if kind == "recollection":
        turns = knowledge.recollection(draw)
        between = [of_topic(smalltalk(), draw, ANY_TIME)] if draw.maybe(0.3) else []
        made = [
            Exchange(question, answer, "I look at what was said.") for question, answer in turns
        ]
        return made[:1] + between + made[1:]
    # Where the model thinks only the last answer is learnt, and most puzzles are for thinking.
    count = draw.choice([1, 1, 1, 2] if kind == "puzzles" else [1, 1, 1, 2, 2, 3, 4])
    kinds = [kind] * count
    if kind == "mixed":
        choices = ["about", "about", "smalltalk", "world", "puzzles", "knowledge"]
        kinds = [draw.choice(choices) for _ in range(draw.randint(2, 6))]
    return [each for kind in kinds for each in in_turn(kind, draw)]


def in_turn(kind: str, draw: Draw) -> list[Exchange]:
    """An exchange of a kind that needs no tools, and perhaps what refers to it."""
    if kind == "puzzles":
        return [puzzles.exchange(draw)]
    if kind == "knowledge":
        return knowledge.exchanges(draw)
    if kind == "world":
        return of_world(draw)
    return with_follow_up(about() if kind == "about" else smalltalk(), draw)


def of_world(draw: Draw) -> list[Exchange]:
    """A question about the world; the model stays with an answer that is known to be right."""
    made = world.exchanges(draw)
    if draw.maybe(0.3):
        return made + moves.about_answer(made[-1].answer, draw)
    return made + asked_on(draw, tuple(name for name in follow_ups() if name != "sure"))


def asked_on(draw: Draw, names: Sequence[str] = ()) -> list[Exchange]:
    """Up to two questions about what was just said, of these topics if given."""
    count = draw.choice([0, 0, 0, 1, 1, 2])
    return [of_topic(follow_ups(), draw, names) for _ in range(count)]


def spoken(made: list[Exchange], draw: Draw) -> list[Message]:
    """The messages of exchanges."""
    messages: list[Message] = []
    for each in made:
        messages.append({"role": "user", "content": each.question})
        messages.append(
            {"role": "assistant", "content": each.answer, "reasoning_content": each.thought}
        )
    return messages


def with_tools(draw: Draw) -> Dialogue:
    """One to five declared tools and one to three requests, most of which need a tool."""
    declared, foreign = toolbox(draw)
    messages: list[Message] = []
    num_calls = 0
    before: tools.Tool | None = None  # what the last request used
    for turn in range(draw.choice([1, 1, 1, 2, 2, 3])):
        kind = draw.random()
        if kind < 0.12 or (turn and kind < 0.2):
            topics = about() if draw.maybe(0.3) else smalltalk()
            names = () if topics is about() else ANY_TIME
            messages += spoken([of_topic(topics, draw, names)], draw)
        elif kind < 0.2:
            messages += spoken([refused(foreign, draw)], draw)
        else:
            tool = before if before is not None and draw.maybe(0.4) else draw.choice(declared)
            added = used(tool, declared, draw, num_calls, is_again=tool is before)
            num_calls += sum(len(message.get("tool_calls", ())) for message in added)
            messages += added
            before = tool
    return Dialogue("tools", messages, [tool.declaration() for tool in declared])


def toolbox(draw: Draw) -> tuple[list[tools.Tool], tools.Tool]:
    """Tools to declare, and one more that is not declared."""
    count = draw.choice([1, 1, 2, 2, 3, 3, 4, 5])
    drawn = draw.sample(catalogue(), count + 1)
    rivals = {name for entry in drawn for name in entry.rivals}
    entries = [entry for entry in drawn if entry.names[0] not in rivals]
    foreign = entries.pop().tool(draw)
    made = [entry.tool(draw) if draw.maybe(0.6) else tools.invented(draw) for entry in entries]
    by_name = {tool.name: tool for tool in made if tool.name != foreign.name}
    return list(by_name.values()) or [tools.invented(draw)], foreign


def refused(foreign: tools.Tool, draw: Draw) -> Exchange:
    """A request that no declared tool serves."""
    request = tools.use(foreign, draw).request
    answer = draw.choice(
        [
            "I cannot do that: none of my tools does it.",
            "Sorry, I have no tool for that.",
            "I have no tool that does this.",
            "None of the declared tools can do that.",
        ]
    )
    return Exchange(request, answer, "No declared tool fits this request.")


def used(
    tool: tools.Tool,
    declared: list[tools.Tool],
    draw: Draw,
    num_calls: int,
    is_again: bool = False,
) -> list[Message]:
    """A request, one or several calls, their results, and the answer.

    is_again: the last request used this tool too, so that naming another value can be enough.
    """
    messages: list[Message] = []
    if is_again and len(tool.parameters) == 1 and draw.maybe(0.5):
        uses = [tools.use(tool, draw)]
        value = next(iter(uses[0].arguments[0].values()))
        request = draw.choice(
            [f"And {value}?", f"What about {value}?", f"And for {value}?", f"Now {value}, please."]
        )
    elif tool.vague_requests and draw.maybe(0.15):
        vague = patterns.as_typed(patterns.chosen(draw.choice(tool.vague_requests), draw), draw)
        messages += spoken(
            [Exchange(vague, tool.counter_question, "A value is missing. I ask.")], draw
        )
        made = tools.use(tool, draw)
        value = str(next(iter(made.arguments[0].values())))
        request = draw.choice([value, f"{value}.", f"{value}, please.", f"In {value}."])
        uses = [made]
    elif draw.maybe(0.35) and (tool.joint_requests or len(declared) > 1):
        if tool.joint_requests and draw.maybe(0.6):
            uses = [tools.use(tool, draw, joint=True)]
            request = uses[0].request
        else:
            others = [other for other in declared if other is not tool] or [tool]
            uses = [tools.use(tool, draw), tools.use(draw.choice(others), draw)]
            first, second = (use.request.rstrip("?.! ") for use in uses)
            joiner = draw.choice([" and ", ", and ", ". Then ", ". Also "])
            second = second if joiner.startswith(".") else second[0].lower() + second[1:]
            request = f"{first}{joiner}{second}{draw.choice(['.', '?', ''])}"
    else:
        uses = [tools.use(tool, draw)]
        request = uses[0].request
    messages.append({"role": "user", "content": request})
    calls, results, answers, thoughts = [], [], [], []
    for use in uses:
        for arguments, result, answer in zip(use.arguments, use.results, use.answers, strict=True):
            call_id = f"functions.{use.tool.name}:{num_calls + len(calls)}"
            text = json.dumps(arguments, ensure_ascii=False, sort_keys=True)
            calls.append(
                {
                    "id": call_id,
                    "type": "function",
                    "function": {"name": use.tool.name, "arguments": text},
                }
            )
            results.append({"role": "tool", "tool_call_id": call_id, "content": result})
            answers.append(answer)
            given = " and ".join(f"{key} {value}" for key, value in sorted(arguments.items()))
            thoughts.append(f"{use.tool.name} with {given}")
    thought = f"I call {', then '.join(thoughts)}."
    messages.append(
        {"role": "assistant", "content": "", "reasoning_content": thought, "tool_calls": calls}
    )
    messages += results
    messages.append(
        {
            "role": "assistant",
            "content": " ".join(answers),
            "reasoning_content": "I have the result and tell the user.",
        }
    )
    return messages


def framed(made: Dialogue, draw: Draw) -> Dialogue:
    """With a template's variant and, often, a system message."""
    kind = draw.random()
    if made.kind == "puzzles":
        kind = 0.6 + 0.4 * kind  # mostly with reasoning
    if kind < 0.72:
        made.variant = "instruct"
    elif kind < 0.9:
        made.variant = "thinking"
    else:
        made.variant, made.thinking = "k2.5", draw.maybe(0.6)
    if draw.maybe(0.35):
        systems = THINKING_SYSTEMS if made.variant == "thinking" else SYSTEMS
        made.messages.insert(0, {"role": "system", "content": draw.choice(systems)})
    if not made.thinking:
        for message in made.messages:
            message.pop("reasoning_content", None)
    return made


def told(turns: Sequence[Sequence[str]], number: int, repeat: int = 0) -> Dialogue:
    """A conversation of the teacher's, (question, answer) pairs, framed by its number.

    repeat: counts the times that it is in the text, each framed and typed in another way.
    """
    draw = Draw(f"told {number} {repeat}")
    made = [
        Exchange(
            as_people_type(question, draw) if repeat else question,
            answer,
            draw.choice(
                [
                    "I answer in simple words.",
                    "The user wants a short answer.",
                    "I say what I know.",
                    "I keep it short and friendly.",
                ]
            ),
        )
        for question, answer in turns
    ]
    made += asked_on(draw) if len(turns) == 1 else []
    # A greeting or an identity question before it, as real chats have.
    if draw.maybe(0.2):
        made.insert(0, of_topic(smalltalk(), draw, ("greet", "how", "name")))
    if draw.maybe(0.2):
        made.insert(draw.randint(0, len(made)), of_topic(about(), draw))
    if draw.maybe(0.1):
        made.append(of_topic(smalltalk(), draw, ("thanks", "bye")))
    return framed(Dialogue("chat", spoken(made, draw), []), draw)
