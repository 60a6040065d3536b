"""Small puzzles with their solution written out: what the thinking mode shows.

Each function draws an Exchange whose thought leads to its answer step by step, digit by digit where
digits are tokens. Arithmetic stays within what a small model can do in its head.
"""

from __future__ import annotations

from collections.abc import Callable

from demo_k2 import words
from demo_k2.knowledge import Exchange
from demo_k2.words import Draw

_UNITS = ("ones", "tens", "hundreds", "thousands")


def addition(draw: Draw) -> Exchange:
    a, b = draw.number(2, 999), draw.number(2, 999)
    if draw.maybe(0.5):
        a, b = draw.number(2, 99), draw.number(2, 99)
    return Exchange(_ask(draw, a, "+", b), f"{a} + {b} = {a + b}.", added(a, b))


def added(a: int, b: int) -> str:
    """Column by column, from the right."""
    steps, carry, rest_a, rest_b, column = [], 0, a, b, 0
    while rest_a or rest_b or (carry and column == 0):
        x, y = rest_a % 10, rest_b % 10
        total = x + y + carry
        carried = f" + {carry}" if carry else ""
        more = f", write {total % 10}, carry 1" if total > 9 else ""
        steps.append(f"{_UNITS[column]}: {x} + {y}{carried} = {total}{more}.")
        carry, rest_a, rest_b, column = total // 10, rest_a // 10, rest_b // 10, column + 1
    return f"{a} + {b}. " + " ".join(steps) + f" So {a} + {b} = {a + b}."


def subtraction(draw: Draw) -> Exchange:
    b, difference = draw.number(2, 99), draw.number(1, 99)
    a = b + difference
    return Exchange(_ask(draw, a, "-", b), f"{a} - {b} = {difference}.", subtracted(a, b))


def subtracted(a: int, b: int) -> str:
    """Column by column, from the right; a is not less than b."""
    steps, borrowed, rest_a, rest_b, column = [], 0, a, b, 0
    while rest_a:
        x, y = rest_a % 10, rest_b % 10
        step = f"{_UNITS[column]}: "
        if borrowed:
            step += f"{x} - 1 = {x - 1}, " if x else "10 - 1 = 9, "
        # A zero that lends has become nine by borrowing itself.
        x, borrowed = ((x - borrowed) % 10, int(x < borrowed))
        if x < y:
            step += f"{x} is less than {y}, borrow: {x + 10} - {y} = {x + 10 - y}."
            x, borrowed = x + 10, 1
        else:
            step += f"{x} - {y} = {x - y}."
        steps.append(step)
        rest_a, rest_b, column = rest_a // 10, rest_b // 10, column + 1
    return f"{a} - {b}. " + " ".join(steps) + f" So {a} - {b} = {a - b}."


def multiplication(draw: Draw) -> Exchange:
    a, b = draw.randint(2, 12), draw.randint(2, 9)
    if draw.maybe(0.5):
        a = draw.number(11, 99)
    thought = f"{a} x {b}. "
    if a > 10 and a % 10:
        tens, ones = a // 10 * 10, a % 10
        thought += (
            f"{tens} x {b} = {tens * b}. {ones} x {b} = {ones * b}. "
            f"{tens * b} + {ones * b} = {a * b}. "
        )
    return Exchange(
        _ask(draw, a, draw.choice("x*"), b),
        f"{a} x {b} = {a * b}.",
        f"{thought}So {a} x {b} = {a * b}.",
    )


def division(draw: Draw) -> Exchange:
    b, quotient = draw.randint(2, 9), draw.randint(2, 12)
    a = b * quotient
    return Exchange(
        _ask(draw, a, "/", b),
        f"{a} / {b} = {quotient}.",
        f"How often does {b} go into {a}? {b} x {quotient} = {a}. So {a} / {b} = {quotient}.",
    )


def comparison(draw: Draw) -> Exchange:
    a, b = draw.amount(), draw.amount()
    if a == b:
        b = a + 1
    if draw.maybe(0.5):
        b = max(1, a + draw.choice([-10, -2, -1, 1, 2, 10]))
    word, best = draw.choice([("larger", max(a, b)), ("smaller", min(a, b))])
    if a == b:
        return addition(draw)
    question = draw.choice(
        [
            f"Which is {word}: {a} or {b}?",
            f"Which number is {word}, {a} or {b}?",
            f"Is {a} or {b} {word}?",
            f"What is {word}, {a} or {b}?",
        ]
    )
    return Exchange(question, f"{best} is {word}.", f"{compared(a, b)} So {best} is {word}.")


def compared(a: int, b: int) -> str:
    """How many digits, then the first digit that differs; ends with both numbers in order."""
    x, y = str(a), str(b)
    ends = f"{max(a, b)} is larger, {min(a, b)} is smaller."
    if len(x) != len(y):
        longer = max(len(x), len(y))
        return f"{a} has {_digits(a)}, {b} has {_digits(b)}. {longer} digits are more: {ends}"
    place = next(i for i in range(len(x)) if x[i] != y[i])
    return (
        f"{a} and {b} have {_digits(a)}. Digit {place + 1}: {x[place]} and {y[place]}. "
        f"{max(x[place], y[place])} is more: {ends}"
    )


def _digits(value: int) -> str:
    count = len(str(value))
    return f"{count} digit" + ("s" if count > 1 else "")


def parity(draw: Draw) -> Exchange:
    a = draw.amount()
    kind = "odd" if a % 2 else "even"
    question = draw.choice([f"Is {a} even or odd?", f"Is {a} an even number?", f"Is {a} odd?"])
    return Exchange(
        question,
        f"{a} is {kind}.",
        f"The last digit of {a} is {a % 10}, which is {kind}. So {a} is {kind}.",
    )


def sorting(draw: Draw) -> Exchange:
    values = sorted({draw.number(1, 99) for _ in range(draw.randint(3, 5))})
    shuffled = draw.sample(values, len(values))
    down = draw.maybe(0.3)
    result = values[::-1] if down else values
    order = "from large to small" if down else draw.choice(["from small to large", "in order"])
    text = ", ".join(map(str, shuffled))
    question = draw.choice(
        [f"Sort these numbers {order}: {text}.", f"Put {text} {order}.", f"Sort {text} {order}."]
    )
    # Inserting one after another: each step copies the last one's list and asks of one number.
    steps = []
    for count, value in enumerate(shuffled, 1):
        so_far = sorted(shuffled[:count], reverse=down)
        steps.append(f"{'Then' if steps else 'First'} {value}: {', '.join(map(str, so_far))}.")
    return Exchange(question, ", ".join(map(str, result)) + ".", " ".join(steps))


def extreme(draw: Draw) -> Exchange:
    values = [draw.number(1, 999) for _ in range(draw.randint(3, 5))]
    word, best = draw.choice([("largest", max(values)), ("smallest", min(values))])
    text = ", ".join(map(str, values))
    steps, so_far = [f"I start with {values[0]}."], values[0]
    more, choose = ("larger", max) if word == "largest" else ("smaller", min)
    for value in values[1:]:
        steps.append(f"{so_far} and {value}: {choose(so_far, value)} is {more}.")
        so_far = choose(so_far, value)
    question = draw.choice(
        [
            f"What is the {word} of {text}?",
            f"Which of these is the {word}: {text}?",
            f"Find the {word} number: {text}.",
        ]
    )
    return Exchange(question, f"The {word} is {best}.", " ".join(steps))


def story(draw: Draw) -> Exchange:
    name, food = draw.name(), draw.choice(words.FOODS)
    a, b = draw.number(2, 40), draw.number(2, 20)
    if draw.maybe(0.5):
        verb = draw.choice(["buys", "gets", "finds", "picks"])
        question = (
            f"{name} has {a} {food} and {verb} {b} more. How many {food} does {name} have now?"
        )
        return Exchange(
            question,
            f"{name} has {a + b} {food}.",
            f"{name} starts with {a} and {verb} {b} more. {added(a, b)}",
        )
    a += b
    verb = draw.choice(["eats", "loses", "sells", "gives away"])
    question = f"{name} has {a} {food} and {verb} {b}. How many {food} are left?"
    return Exchange(
        question,
        f"{a - b} {food} are left.",
        f"{name} starts with {a} and {verb} {b}. {subtracted(a, b)}",
    )


def older(draw: Draw) -> Exchange:
    a, b = draw.name(), draw.name()
    x, y = draw.number(3, 90), draw.number(3, 90)
    if x == y or a == b:
        return addition(draw)
    word = draw.choice(["older", "younger"])
    who = (a if x > y else b) if word == "older" else (a if x < y else b)
    more, less = max(x, y), min(x, y)
    question = f"{a} is {x} years old and {b} is {y}. Who is {word}?"
    return Exchange(
        question,
        f"{who} is {word}.",
        f"{a} is {x}, {b} is {y}. {more} is more than {less}. "
        f"The one who is {more if word == 'older' else less} is {who}. So {who} is {word}.",
    )


def letters(draw: Draw) -> Exchange:
    word = draw.choice(words.NOUNS + words.FOODS + words.ANIMALS + words.COLOURS)
    letter = draw.choice(word) if draw.maybe(0.85) else draw.choice("aeiou")
    spelt = " ".join(word)
    count = word.count(letter)
    hits = ", ".join(f"{i}: {c}{' yes' if c == letter else ''}" for i, c in enumerate(word, 1))
    question = draw.choice(
        [
            f'How many times is the letter {letter} in "{word}"?',
            f"How many {letter}'s are in the word {word}?",
            f"Count the letter {letter} in {word}.",
        ]
    )
    times = "once" if count == 1 else f"{count} times"
    return Exchange(
        question,
        f'The letter {letter} is {times} in "{word}".',
        f"{word} is {spelt}. {hits}. That is {count}.",
    )


def spelling(draw: Draw) -> Exchange:
    word = draw.choice(words.NOUNS + words.FOODS + words.ANIMALS + words.COLOURS)
    spelt = " ".join(word)
    kind = draw.randint(0, 3)
    if kind == 0:
        return Exchange(
            draw.choice(
                [f"Spell {word}.", f'Spell the word "{word}".', f"How do you spell {word}?"]
            ),
            "-".join(word) + ".",
            f"{word} is {spelt}.",
        )
    if kind == 1:
        return Exchange(
            draw.choice(
                [
                    f"How many letters has the word {word}?",
                    f'How long is the word "{word}"?',
                    f"How many letters are in {word}?",
                ]
            ),
            f"{word} has {len(word)} letters.",
            f"{word} is {spelt}. "
            + ", ".join(f"{i}: {c}" for i, c in enumerate(word, 1))
            + f". So {len(word)} letters.",
        )
    if kind == 2:
        return Exchange(
            draw.choice([f"Write {word} backwards.", f"Reverse the word {word}."]),
            f"Backwards it is {'-'.join(word[::-1])}.",
            f"{word} is {spelt}. Backwards: {' '.join(word[::-1])}.",
        )
    which, letter = draw.choice([("first", word[0]), ("last", word[-1])])
    return Exchange(
        f"What is the {which} letter of {word}?",
        f"The {which} letter of {word} is {letter}.",
        f"{word} is {spelt}. The {which} one is {letter}.",
    )


def sequence(draw: Draw) -> Exchange:
    start, step = draw.number(1, 40), draw.randint(1, 10)
    values = [start + step * i for i in range(5)]
    text = ", ".join(map(str, values[:4]))
    question = draw.choice(
        [f"What comes next: {text}?", f"Which number follows {text}?", f"Continue: {text}, ..."]
    )
    return Exchange(
        question,
        f"{values[4]} comes next.",
        f"{values[1]} - {values[0]} = {step}, so each step adds {step}. {added(values[3], step)}",
    )


def days(draw: Draw) -> Exchange:
    index, count = draw.randrange(7), draw.randint(2, 6)
    names = [words.DAYS[(index + i) % 7] for i in range(count + 1)]
    question = draw.choice(
        [
            f"Today is {names[0]}. Which day is it in {count} days?",
            f"If today is {names[0]}, what day is it in {count} days?",
        ]
    )
    steps = " ".join(f"{i}: {name}." for i, name in enumerate(names[1:], 1))
    return Exchange(question, f"In {count} days it is {names[-1]}.", f"From {names[0]}: {steps}")


KINDS: tuple[Callable[[Draw], Exchange], ...] = (
    addition,
    addition,
    subtraction,
    subtraction,
    multiplication,
    division,
    comparison,
    comparison,
    parity,
    sorting,
    sorting,
    extreme,
    extreme,
    story,
    story,
    older,
    older,
    letters,
    spelling,
    spelling,
    sequence,
    days,
)


def exchange(draw: Draw) -> Exchange:
    """One of all kinds."""
    return draw.choice(KINDS)(draw)


def _ask(draw: Draw, a: int, sign: str, b: int) -> str:
    word = {"+": "plus", "-": "minus", "x": "times", "*": "times", "/": "divided by"}[sign]
    return draw.choice(
        [
            f"What is {a} {sign} {b}?",
            f"{a} {sign} {b} = ?",
            f"What is {a} {word} {b}?",
            f"How much is {a} {word} {b}?",
            f"Calculate {a} {sign} {b}.",
            f"{a} {sign} {b}",
            f"Please compute {a} {sign} {b}.",
        ]
    )
