"""Small tasks on words, one after the other: saying, spelling, counting letters, turning round.

Owns conversations about one word, in which later questions name it no more. Answers are computed.
"""

from __future__ import annotations

from collections.abc import Callable

from demo_k2 import words
from demo_k2.knowledge import Exchange
from demo_k2.words import Draw

_WORDS = [
    word for word in words.NOUNS + words.FOODS + words.ANIMALS + words.COLOURS if " " not in word
]
_TIMES = {2: "twice", 3: "three times", 4: "four times", 5: "five times"}
_PHRASES = """\
hello|good morning|thank you|see you tomorrow|well done|happy birthday|good luck|I am here
we are friends|time to go|have a nice day|the sun shines|all is well|no problem|let us go
sleep well|come back soon|tea is ready|yes and no|happy new year|I like {}|my {} is here
the {} is old|where is the {}|look, a {}|a {} and a {}|bring the {}|one more {}|good night, {}
{} and {}|never without my {}"""


def exchanges(draw: Draw, most: int) -> list[Exchange]:
    """One to `most`: about one word, or things to say."""
    if draw.maybe(0.4):
        return [_said(draw, number > 0) for number in range(draw.randint(1, most))]
    word = _word(draw)
    tasks = draw.sample(_TASKS, min(most, draw.choice([1, 2, 2, 3, 4])))
    made = []
    for task in tasks:
        named = "" if made and draw.maybe(0.7) else word
        made.append(task(draw, word, named))
    return made


def _word(draw: Draw) -> str:
    """Seldom a name or letters put together, so that a spelling is read and not known."""
    kind = draw.random()
    if kind < 0.75:
        return draw.choice(_WORDS)
    return draw.of(words.NAMES if kind < 0.9 else words.CITIES)


def _said(draw: Draw, is_next: bool) -> Exchange:
    pattern = draw.choice([each for line in _PHRASES.splitlines() for each in line.split("|")])
    while "{}" in pattern:
        pattern = pattern.replace("{}", draw.choice(_WORDS), 1)
    if draw.maybe(0.5):
        pattern = draw.wording() if draw.pieces and draw.maybe(0.5) else _word(draw)
    start = draw.choice(["Now ", "And ", "Then ", ""]) if is_next else ""
    quoted = draw.choice([f'"{pattern}"', f'"{pattern}"', f"'{pattern}'", pattern])
    kind = draw.choice(["times", "times", "once", "quotes", "capitals"])
    if kind == "times":
        number, often = draw.choice(list(_TIMES.items()))
        verb = draw.choice(["say", "repeat", "write", "please say", "can you say", "type"])
        answer = ", ".join([pattern] * number)
        return _exchange(f"{start}{verb} {quoted} {often}.", answer + ".", f"{number} times.")
    if kind == "once":
        verb = draw.choice(["say", "repeat after me:", "just write", "echo", "answer with"])
        return _exchange(f"{start}{verb} {quoted}.", pattern + ".", "I repeat it.")
    if kind == "quotes":
        question = (
            f"{start}put {draw.choice([quoted, pattern])} in {draw.choice(['', 'double '])}quotes."
        )
        return _exchange(question, f'"{pattern}"', "I put quotes around it.")
    asked = draw.choice(["in capitals", "in capital letters", "in upper case", "all caps"])
    return _exchange(f"{start}write {quoted} {asked}.", pattern.upper(), "I use capitals.")


def _spelt(draw: Draw, word: str, named: str) -> Exchange:
    if named:
        asked = draw.choice(
            [f"spell {named}", f"spell the word {named}", f"how do you spell {named}?"]
        )
    else:
        asked = draw.choice(
            ["spell it", "now spell it", "how is it spelt?", "and how do I spell it?"]
        )
    return _exchange(asked, "-".join(word.lower()) + ".", _letters(word))


def _counted(draw: Draw, word: str, named: str) -> Exchange:
    if named:
        asked = draw.choice(
            [f"how many letters has {named}?", f"how many letters are in the word {named}?"]
        )
    else:
        asked = draw.choice(
            ["how many letters is that?", "how many letters are that?", "and how many letters?",
             "how long is it?", "how many letters does it have?", "count its letters"]
        )  # fmt: skip
    numbered = ", ".join(f"{i}: {letter}" for i, letter in enumerate(word.lower(), 1))
    return _exchange(asked, f"{word} has {len(word)} letters.", f"{word} is {numbered}.")


def _backwards(draw: Draw, word: str, named: str) -> Exchange:
    if named:
        asked = draw.choice([f"write {named} backwards", f"what is {named} backwards?"])
    else:
        asked = draw.choice(
            ["write it backwards", "now backwards", "and backwards?", "turn it round", "reverse it"]
        )
    turned = word.lower()[::-1]
    thought = f"{_letters(word)} Backwards: {' '.join(turned)}."
    return _exchange(asked, f"Backwards it is {'-'.join(turned)}.", thought)


def _end(draw: Draw, word: str, named: str) -> Exchange:
    which, letter = draw.choice([("first", word[0]), ("last", word[-1])])
    of = f"of {named}" if named else draw.choice(["of it", "", "then"])
    asked = f"{draw.choice(['what is', 'tell me', 'which is'])} the {which} letter {of}".strip()
    answer = f"The {which} letter of {word} is {letter.lower()}."
    return _exchange(asked, answer, _letters(word))


def _capitals(draw: Draw, word: str, named: str) -> Exchange:
    asked = draw.choice(
        [f"write {named or 'it'} in capitals", f"{named or 'it'} in capital letters"]
    )
    return _exchange(asked, word.upper(), _letters(word))


_TASKS: list[Callable[[Draw, str, str], Exchange]] = [
    _spelt, _spelt, _counted, _backwards, _end, _capitals,
]  # fmt: skip


def _letters(word: str) -> str:
    return f"{word} is {' '.join(word.lower())}."


def _exchange(question: str, answer: str, thought: str) -> Exchange:
    question = question[0].upper() + question[1:]
    if question[-1] not in "?.":
        question += "?" if question.split()[0] in ("What", "Which") else "."
    return Exchange(question, answer, thought)
