"""Small things that a template knows for certain: facts, words, lists, echoes, what was said.

Each function draws one exchange: question, answer, and what one could think between the two.
Echoes teach a small model to copy, which everything with tools is made of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from demo_k2 import words
from demo_k2.words import Draw, is_held_out

CAPITALS = dict(
    pair.split(":")
    for pair in """France:Paris Germany:Berlin Italy:Rome Spain:Madrid Portugal:Lisbon
    Austria:Vienna Poland:Warsaw Greece:Athens Norway:Oslo Sweden:Stockholm Finland:Helsinki
    Denmark:Copenhagen Ireland:Dublin Belgium:Brussels Hungary:Budapest Romania:Bucharest
    Bulgaria:Sofia Croatia:Zagreb Serbia:Belgrade Turkey:Ankara Russia:Moscow Ukraine:Kyiv
    Latvia:Riga Estonia:Tallinn Lithuania:Vilnius Iceland:Reykjavik Japan:Tokyo China:Beijing
    India:Delhi Thailand:Bangkok Vietnam:Hanoi Indonesia:Jakarta Egypt:Cairo Kenya:Nairobi
    Morocco:Rabat Tunisia:Tunis Canada:Ottawa Mexico:Mexico_City Cuba:Havana Peru:Lima
    Chile:Santiago Argentina:Buenos_Aires Australia:Canberra England:London Switzerland:Bern
    Netherlands:Amsterdam Czechia:Prague""".split()
)
OPPOSITES = dict(
    pair.split(":")
    for pair in """big:small hot:cold up:down left:right day:night open:closed fast:slow happy:sad
    old:new rich:poor hard:soft light:dark long:short high:low full:empty wet:dry early:late
    near:far strong:weak loud:quiet clean:dirty first:last good:bad black:white thick:thin
    heavy:light inside:outside true:false easy:difficult young:old""".split()
)
LEGS = dict(
    pair.split(":")
    for pair in """ant:6 bee:6 spider:8 dog:4 cat:4 horse:4 bird:2 duck:2 cow:4 snake:0 fish:0 fly:6
    butterfly:6 hen:2 lion:4 frog:4 whale:0 owl:2 sheep:4 crab:10""".split()
)
SOUNDS = dict(
    pair.split(":")
    for pair in """dog:barks cat:meows cow:moos horse:neighs duck:quacks lion:roars sheep:bleats
    pig:grunts bee:buzzes frog:croaks owl:hoots wolf:howls snake:hisses mouse:squeaks""".split()
)
YOUNG = dict(
    pair.split(":")
    for pair in """dog:puppy cat:kitten cow:calf horse:foal sheep:lamb hen:chick duck:duckling
    pig:piglet frog:tadpole bear:cub lion:cub goat:kid kangaroo:joey swan:cygnet""".split()
)
LISTS = {
    "colours": words.COLOURS,
    "animals": words.ANIMALS,
    "foods": words.FOODS,
    "cities": words.CITIES,
    "names": words.NAMES,
    "hobbies": words.HOBBIES,
    "languages": words.LANGUAGES,
}
# What is held out is not to be learnt here either.
CAPITALS = {country: city for country, city in CAPITALS.items() if not is_held_out(city)}
LISTS = {what: [item for item in items if not is_held_out(item)] for what, items in LISTS.items()}
COUNTS = ("one", "two", "three", "four", "five")


@dataclass
class Exchange:
    """question and answer; thought: what the thinking mode writes between them."""

    question: str
    answer: str
    thought: str = ""


def capital(draw: Draw) -> Exchange:
    country, city = draw.choice(list(CAPITALS.items()))
    city = city.replace("_", " ")
    if draw.maybe(0.3):
        question = draw.choice(
            [f"{city} is the capital of which country?", f"Which country has the capital {city}?"]
        )
        return Exchange(
            question, f"{city} is the capital of {country}.", f"{city} is the capital of {country}."
        )
    question = draw.choice(
        [
            f"What is the capital of {country}?",
            f"Tell me the capital of {country}.",
            f"Which city is the capital of {country}?",
            f"Capital of {country}?",
            f"Do you know the capital of {country}?",
        ]
    )
    return Exchange(
        question,
        draw.choice([f"The capital of {country} is {city}.", f"It is {city}."]),
        f"The user asks for the capital of {country}. That is {city}.",
    )


def opposite(draw: Draw) -> Exchange:
    pair = draw.choice(list(OPPOSITES.items()))
    word, other = pair if draw.maybe(0.7) else pair[::-1]
    question = draw.choice(
        [
            f"What is the opposite of {word}?",
            f'What is the opposite of "{word}"?',
            f"Tell me the opposite of {word}.",
            f"Opposite of {word}?",
        ]
    )
    return Exchange(
        question, f"The opposite of {word} is {other}.", f"{word} and {other} are opposites."
    )


def animal(draw: Draw) -> Exchange:
    kind = draw.randint(0, 2)
    if kind == 0:
        name, legs = draw.choice(list(LEGS.items()))
        number = "no" if legs == "0" else legs
        return Exchange(
            draw.choice([f"How many legs does a {name} have?", f"How many legs has a {name}?"]),
            f"A {name} has {number} legs.",
            f"A {name} has {number} legs.",
        )
    if kind == 1:
        name, sound = draw.choice(list(SOUNDS.items()))
        return Exchange(
            draw.choice(
                [
                    f"What sound does a {name} make?",
                    f"What does a {name} do: moo, bark or else?",
                    f"Which sound does a {name} make?",
                ]
            ),
            f"A {name} {sound}.",
            f"The user asks for the sound of a {name}. It {sound}.",
        )
    name, young = draw.choice(list(YOUNG.items()))
    return Exchange(
        draw.choice([f"What is a young {name} called?", f"What do you call a baby {name}?"]),
        f"A young {name} is called a {young}.",
        f"A baby {name} is a {young}.",
    )


def calendar(draw: Draw) -> Exchange:
    names, unit = draw.choice([(words.DAYS, "day"), (words.MONTHS, "month")])
    index = draw.randrange(len(names))
    word, step = draw.choice([("after", 1), ("before", -1)])
    other = names[(index + step) % len(names)]
    question = draw.choice(
        [
            f"Which {unit} comes {word} {names[index]}?",
            f"What {unit} is {word} {names[index]}?",
            f"What comes {word} {names[index]}?",
        ]
    )
    return Exchange(
        question,
        f"{other} comes {word} {names[index]}.",
        f"I go {'forward' if step > 0 else 'back'} one {unit} from {names[index]}: {other}.",
    )


def listing(draw: Draw) -> Exchange:
    what, items = draw.choice(list(LISTS.items()))
    count = draw.randint(2, 5)
    # In the list's order: what follows an item is then known, and no item comes twice.
    start = draw.randrange(len(items))
    chosen = [items[(start + i) % len(items)] for i in range(count)]
    number = draw.choice([COUNTS[count - 1], str(count)])
    question = draw.choice(
        [
            f"Name {number} {what}.",
            f"Give me {number} {what}.",
            f"List {number} {what}, please.",
            f"Can you name {number} {what}?",
            f"Tell me {number} {what}.",
        ]
    )
    text = ", ".join(chosen[:-1]) + " and " + chosen[-1]
    return Exchange(
        question,
        text[0].upper() + text[1:] + ".",
        f"The user wants {COUNTS[count - 1]} {what}. I pick {count}.",
    )


def echo(draw: Draw) -> Exchange:
    text = draw.choice(
        [
            draw.phrase,
            draw.name,
            draw.city,
            draw.code,
            draw.email,
            lambda: f"{draw.name()} and {draw.name()}",
            lambda: str(draw.amount()),
            lambda: f"{draw.name()} lives in {draw.city()}",
            lambda: draw.choice(words.NOUNS + words.FOODS + words.ANIMALS),
            lambda: f"the {draw.choice(words.ADJECTIVES)} {draw.choice(words.ANIMALS)}",
        ]
    )()
    kind = draw.randint(0, 3)
    if kind == 0:
        question = draw.choice(
            [
                f"Repeat after me: {text}",
                f'Say "{text}".',
                f"Please say: {text}",
                f'Write "{text}".',
                f"Just answer with: {text}",
            ]
        )
        return Exchange(question, text, "I should repeat the text exactly.")
    if kind == 1:
        count = draw.randint(2, 4)
        times = "twice" if count == 2 and draw.maybe(0.5) else f"{COUNTS[count - 1]} times"
        said = draw.choice([f'"{text}"', text])
        question = draw.choice(
            [
                f"Say {said} {times}.",
                f"Write {said} {times}.",
                f"Repeat {said} {times}.",
                f"Can you say {said} {times}?",
                f"Please say {said} {times}.",
            ]
        )
        return Exchange(
            question, ", ".join([text] * count), f"I write it {COUNTS[count - 1]} times."
        )
    if kind == 2:
        question = f'Put "{text}" in {draw.choice(["quotes", "quotation marks"])}.'
        return Exchange(question, f'"{text}"', "I copy the text between quotes.")
    items = [
        draw.choice([draw.name, draw.city, lambda: draw.choice(words.NOUNS)])()
        for _ in range(draw.randint(2, 4))
    ]
    place = draw.randrange(len(items))
    word = ("first", "second", "third", "fourth")[place]
    question = draw.choice(
        [
            f"What is the {word} word in this list: {', '.join(items)}?",
            f"Here is a list: {', '.join(items)}. Which one is {word}?",
        ]
    )
    return Exchange(
        question, f"The {word} is {items[place]}.", f"Number {place + 1} is {items[place]}."
    )


def lookup(draw: Draw) -> Exchange:
    """A question about a short text given with it."""
    name, other, city = draw.name(), draw.name(), draw.city()
    thing, colour = draw.choice(words.NOUNS), draw.choice(words.COLOURS)
    number, day = draw.number(2, 900), draw.choice(words.DAYS)
    facts = [
        (f"{name} lives in {city}.", f"Where does {name} live?", f"{name} lives in {city}."),
        (
            f"The {thing} of {other} is {colour}.",
            f"What colour is the {thing} of {other}?",
            f"The {thing} of {other} is {colour}.",
        ),
        (
            f"{name} has {number} {draw.choice(words.FOODS)}.",
            f"How many has {name}?",
            f"{name} has {number}.",
        ),
        (
            f"The meeting with {other} is on {day}.",
            f"When is the meeting with {other}?",
            f"The meeting with {other} is on {day}.",
        ),
        (
            f"{other} works as a {draw.choice(['teacher', 'nurse', 'doctor', 'cook', 'driver'])}.",
            f"Does {other} have a job?",
            f"Yes, {other} has a job.",
        ),
        (f"The code is {(code := draw.code())}.", "What is the code?", f"The code is {code}."),
    ]
    chosen = draw.sample(facts, draw.randint(1, 4))
    asked = draw.choice(chosen)
    text = " ".join(fact[0] for fact in chosen)
    question = draw.choice(
        [f"{text} {asked[1]}", f"Read this: {text}\n{asked[1]}", f"{asked[1]} {text}"]
    )
    return Exchange(question, asked[2], f"The text says: {asked[0]}")


KINDS: tuple[Callable[[Draw], Exchange], ...] = (
    capital,
    opposite,
    animal,
    calendar,
    listing,
    echo,
    echo,
    lookup,
    lookup,
)


def exchanges(draw: Draw) -> list[Exchange]:
    """One of all kinds, at times with short questions that only its question makes clear."""
    kind = draw.choice(KINDS)
    made = [kind(draw)]
    if kind in AGAIN and draw.maybe(0.5):
        made += [AGAIN[kind](draw) for _ in range(draw.choice([1, 1, 2]))]
    return made


def capital_again(draw: Draw) -> Exchange:
    country, city = draw.choice(list(CAPITALS.items()))
    return Exchange(
        again(country, draw, f"And the capital of {country}?"),
        f"The capital of {country} is {city.replace('_', ' ')}.",
        f"Now the capital of {country}.",
    )


def opposite_again(draw: Draw) -> Exchange:
    word, other = draw.choice(list(OPPOSITES.items()))
    return Exchange(
        again(word, draw, f'And of "{word}"?'),
        f"The opposite of {word} is {other}.",
        f"Now the opposite of {word}.",
    )


def calendar_again(draw: Draw) -> Exchange:
    names = draw.choice([words.DAYS, words.MONTHS])
    index = draw.randrange(len(names))
    word, step = draw.choice([("after", 1), ("before", -1)])
    asked = draw.choice(["And", "What about", "And what comes", "What comes"])
    other = names[(index + step) % len(names)]
    return Exchange(
        f"{asked} {word} {names[index]}?",
        f"{other} comes {word} {names[index]}.",
        f"Now what comes {word} {names[index]}.",
    )


AGAIN = {capital: capital_again, opposite: opposite_again, calendar: calendar_again}


def again(what: str, draw: Draw, whole: str) -> str:
    """The last question once more, about something else."""
    return draw.choice(
        [whole, f"And of {what}?", f"And {what}?", f"What about {what}?", f"And for {what}?"]
    )


def recollection(draw: Draw) -> list[tuple[str, str]]:
    """Two to four turns of which the last asks for what the first said."""
    name, city, colour = draw.name(), draw.city(), draw.choice(words.COLOURS)
    pet, animal_name = draw.choice(["cat", "dog", "horse", "bird"]), draw.name()
    hobby, number = draw.choice(words.HOBBIES), draw.number(2, 99)
    hello = draw.choice(["", "", "Hello! ", "Hi, ", "Good morning. ", "Nice to meet you. "])
    told = [
        (
            hello + draw.choice([f"My name is {name}.", f"I am {name}.", f"I'm {name}."]),
            f"Nice to meet you, {name}!",
            [
                *("What is my name?", "Who am I?", "Do you remember my name?", "What am I called?"),
                *("What's my name?", "Can you say my name?", "Tell me my name.", "My name?"),
            ],
            f"Your name is {name}.",
        ),
        (
            draw.choice([f"I live in {city}.", f"My home is in {city}.", f"My city is {city}."]),
            f"{city} sounds like a nice place.",
            [
                *("Where do I live?", "In which city do I live?", "Do you know where I live?"),
                *("What city do I live in?", "Where is my home?", "Which city is my home?"),
            ],
            f"You live in {city}.",
        ),
        (
            f"My favourite colour is {colour}.",
            f"{colour.capitalize()} is a lovely colour.",
            ["What is my favourite colour?", "Which colour do I like?"],
            f"Your favourite colour is {colour}.",
        ),
        (
            f"I have a {pet} called {animal_name}.",
            f"{animal_name} is a good name for a {pet}.",
            [f"What is the name of my {pet}?", f"How is my {pet} called?"],
            f"Your {pet} is called {animal_name}.",
        ),
        (
            f"I like {hobby}.",
            f"{hobby.capitalize()} is a nice hobby.",
            ["What is my hobby?", "What do I like?"],
            f"You like {hobby}.",
        ),
        (
            f"I am {number} years old.",
            "Thank you for telling me.",
            ["How old am I?", "What is my age?"],
            f"You are {number} years old.",
        ),
    ]
    chosen = draw.sample(told, draw.randint(1, 3))
    turns = [(fact[0], fact[1]) for fact in chosen]
    if len(turns) > 1 and draw.maybe(0.3):  # all in one sentence
        said = " and ".join([chosen[0][0].rstrip("."), *(fact[0] for fact in chosen[1:])])
        turns = [(said.replace(". and", " and"), " ".join(answer for _, answer in turns))]
    asked = draw.sample(chosen, draw.randint(1, len(chosen)))
    return turns + [(draw.choice(fact[2]), fact[3]) for fact in asked]
