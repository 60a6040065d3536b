"""How good a model is, on what it was not trained on: held-out dialogues, made by number.

Works on anything that answers prompts of token ids: the training model here (in batches, on the
GPU) or hybrid-k2's Engine. Owns the judging: calls are read by hybrid-k2's own parser and compared
as JSON; identity and usage answers must hold what about.txt says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from demo_k2 import dialogues, patterns, puzzles
from demo_k2.dialogues import Dialogue
from demo_k2.encode import Encoder, last_question
from demo_k2.model import TrainingK2, Weights
from demo_k2.words import Draw
from hybrid_k2.text import Tokenizer
from hybrid_k2.text.stream import TextStream
from hybrid_k2.text.tool_calls import collect_calls

Answerer = Callable[[Sequence[Sequence[int]], int], list[list[int]]]


@dataclass
class Score:
    """right of total; wrong: a few of the failures, for people to read."""

    right: int
    total: int
    wrong: list[str]

    @property
    def share(self) -> float:
        return self.right / max(self.total, 1)


class TorchAnswerer:
    """Greedy answers of a training model: no cache, but whole batches at once."""

    def __init__(
        self, model: TrainingK2, weights: Weights, end_ids: Sequence[int], device: str
    ) -> None:
        self._model, self._weights, self._device = model, weights, device
        self._end_ids = torch.tensor(list(end_ids), device=device)

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, rows: int = 128
    ) -> list[list[int]]:
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers: list[list[int]] = [[] for _ in prompts]
        for first in range(0, len(order), rows):
            chosen = order[first : first + rows]
            for i, answer in zip(
                chosen, self._batch([prompts[i] for i in chosen], max_tokens), strict=True
            ):
                answers[i] = answer
        return answers

    def _batch(self, prompts: list[Sequence[int]], max_tokens: int) -> list[list[int]]:
        lengths = torch.tensor([len(p) for p in prompts], device=self._device)
        width = int(lengths.max()) + max_tokens
        ids = torch.zeros((len(prompts), width), dtype=torch.int64, device=self._device)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt, device=self._device)
        rows = torch.arange(len(prompts), device=self._device)
        is_done = torch.zeros(len(prompts), dtype=torch.bool, device=self._device)
        at = lengths.clone()
        for _ in range(max_tokens):
            seen = int(at.max())
            h, _ = self._model.hidden(self._weights, ids[:, :seen])
            h = h.unflatten(0, (len(prompts), seen))[rows, at - 1]
            logits = self._model.head(self._weights, h)
            token = torch.where(is_done, self._end_ids[0], logits.argmax(-1))
            ids[rows, at] = token
            at += ~is_done
            is_done |= torch.isin(token, self._end_ids)
            if is_done.all():
                break
        made = []
        for row, prompt in enumerate(prompts):
            answer = ids[row, len(prompt) : int(at[row])].tolist()
            made.append([i for i in answer if i not in self._end_ids.tolist()])
        return made


def tool_prompts(count: int) -> list[Dialogue]:
    """Held-out dialogues cut behind a question that needs a tool, instruct template."""
    found: list[Dialogue] = []
    number = 0
    while len(found) < count:
        number += 1
        made = dialogues.dialogue(number, held_out=True)
        if made.kind != "tools" or made.variant != "instruct":
            continue
        calls = [i for i, m in enumerate(made.messages) if m.get("tool_calls")]
        if calls:
            made.messages = made.messages[: calls[number % len(calls)] + 1]
            found.append(made)
    return found


def tool_calls(answer: Answerer, encoder: Encoder, tokenizer: Tokenizer, count: int) -> Score:
    """Calls with the right names and arguments, in order and no others."""
    cut = tool_prompts(count)
    prompts = [encoder.template("instruct").render(d.messages[:-1], d.tools) for d in cut]
    right, wrong = 0, []
    for made, ids in zip(cut, answer(prompts, 160), strict=True):
        expected = [
            (call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in made.messages[-1]["tool_calls"]
        ]
        if parsed_calls(tokenizer, made.tools, ids) == expected:
            right += 1
        elif len(wrong) < 40:
            question = made.messages[last_question(made.messages)]["content"]
            wrong.append(f"{question} -> {tokenizer.decode(ids)}")
    return Score(right, len(cut), wrong)


def parsed_calls(
    tokenizer: Tokenizer, tools: Sequence[dict], ids: Sequence[int]
) -> list[tuple[str, object]] | None:
    """(name, arguments) of the calls in an answer, or None where arguments are no JSON."""
    stream = TextStream(tokenizer, tools=tools)
    deltas = [delta for token_id in ids for delta in stream.push(token_id)]
    deltas += stream.finish()
    try:
        return [(call.name, json.loads(call.arguments)) for call in collect_calls(deltas)]
    except ValueError:
        return None


def topics(answer: Answerer, encoder: Encoder, tokenizer: Tokenizer, each: int) -> Score:
    """Identity and usage: `each` held-out wordings of every topic of about.txt."""
    asked = []
    for topic in dialogues.about().values():
        draw = Draw(f"ask {topic.name}", held_out=True)
        asked += [(topic, topic.question(draw)) for _ in range(each)]
    return _answered(asked, answer, encoder, tokenizer)


def topics_as_written(answer: Answerer, encoder: Encoder, tokenizer: Tokenizer, name: str) -> Score:
    """Identity and usage in the wordings of a file, which are in no training text."""
    about = dialogues.about()
    asked = [
        (replace(about[topic], keys=about[topic].keys + keys), question)
        for topic, question, *keys in patterns.written(name)
    ]
    return _answered(asked, answer, encoder, tokenizer)


def _answered(
    asked: Sequence[tuple[patterns.Topic, str]],
    answer: Answerer,
    encoder: Encoder,
    tokenizer: Tokenizer,
) -> Score:
    prompts = [
        encoder.template("instruct").render([{"role": "user", "content": question}])
        for _, question in asked
    ]
    right, wrong = 0, []
    for (topic, question), ids in zip(asked, answer(prompts, 120), strict=True):
        text = tokenizer.decode(ids)
        if all(any(key in text for key in keys.split("|")) for keys in topic.keys):
            right += 1
        elif len(wrong) < 40:
            wrong.append(f"[{topic.name}] {question} -> {text}")
    return Score(right, len(asked), wrong)


def thinking(answer: Answerer, encoder: Encoder, tokenizer: Tokenizer, count: int) -> Score:
    """Puzzles in the thinking template: reasoning within its markers and the right answer."""
    draw = Draw("puzzles to judge", held_out=True)
    asked = [puzzles.exchange(draw) for _ in range(count)]
    prompts = [
        encoder.template("thinking").render([{"role": "user", "content": each.question}])
        for each in asked
    ]
    right, wrong = 0, []
    for each, ids in zip(asked, answer(prompts, 220), strict=True):
        text = tokenizer.decode(ids)
        head, _, tail = text.partition("</think>")
        if head.startswith("<think>") and len(head) > 12 and tail == each.answer:
            right += 1
        elif len(wrong) < 40:
            wrong.append(f"{each.question} -> {text}")
    return Score(right, len(asked), wrong)
