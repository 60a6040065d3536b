"""Very short stories about what the user names, and the questions that follow them.

Owns stories of four or five simple sentences, put together from a hero, its trouble and its end.
"""

from __future__ import annotations

from demo_k2 import words
from demo_k2.knowledge import Exchange
from demo_k2.words import Draw, with_article

_HEROES = """robot frog king queen dragon cat dog mouse bear fox owl snail whale witch wizard knight
princess pirate ghost farmer baker sailor giant rabbit lion duck snowman fisherman teacher painter
gardener boy girl clown elephant penguin monkey hedgehog star tree boat clock cloud train""".split()
_TRAITS = {
    "lonely": "It had nobody to talk to.",
    "small": "Everything was too high for it.",
    "brave": "It was afraid of nothing.",
    "tired": "It wanted to sleep all day.",
    "hungry": "It had not eaten since yesterday.",
    "curious": "It wanted to know what was behind the hill.",
    "lazy": "It never wanted to get up.",
    "sad": "It had lost its best friend.",
    "old": "It had seen a hundred winters.",
    "shy": "It always hid when somebody came.",
    "happy": "It sang all day.",
    "proud": "It thought that it needed nobody.",
    "kind": "It helped everybody it met.",
    "clever": "It had an answer for everything.",
    "forgetful": "It forgot even its own name.",
    "young": "It had never been away from home.",
}
_PLACES = [
    "in a big forest",
    "by the sea",
    "on a high mountain",
    "in an old castle",
    "in a small village",
    "near a river",
    "in a quiet garden",
    "at the edge of the town",
    "on a small island",
    "in a house with a red roof",
    "under a bridge",
    "in a city that never slept",
]
_EVENTS = [
    "One day a storm came, and {other} knocked at the door",
    "One evening it met {other} that had lost the way",
    "One morning it found {thing}, and {other} asked for it",
    "One night {other} cried for help outside",
    "Then {other} came and said: let us look for the golden {thing}",
    "One winter {other} had no place to sleep",
    "On its birthday {other} brought it {thing}",
]
_DEEDS = [
    "They shared bread and tea and talked until the sun came up.",
    "Together they searched for three days and found more than they had looked for.",
    "It was afraid, but it opened the door and helped.",
    "They laughed about it, and the {other} stayed for a week.",
    "It gave the {other} all that it had, and both were glad.",
    "They sang so loudly that the whole village came to dance.",
]
_ENDS = [
    "From that day on they were friends.",
    "And if you go there, you can still hear them laugh.",
    "So the {trait} {hero} learnt that two see more than one.",
    "And they lived there happily for many years.",
]
_THINGS = """key ring book lamp stone coin box flower letter bell crown egg map boat hat cake apple
song mirror picture watch spoon candle ball kite drum feather shell"""
_FOLLOWING = {
    "how did it end?": "It ended well: they stayed friends.",
    "is that true?": "No, I made it up. It is only a story.",
    "did you make that up?": "Yes, I made it up from a few words.",
    "that was nice": "I am glad that you liked it. Do you want another one?",
    "that was short": "Yes, I can only tell short ones. Do you want another one?",
    "I liked it": "I am glad that you liked it. Do you want another one?",
    "what is the moral?": "That it is better to have a friend.",
}


def exchanges(draw: Draw, most: int) -> list[Exchange]:
    """One to `most`: stories and what is said about them."""
    hero, trait, told = _told(draw)
    asked = draw.choice(
        ["tell me", "tell", "I want to hear", "can you tell me", "write", "make up", "give me"]
    )
    kind = draw.choice(["a short story", "a story", "a little story", "a tale", "a bedtime story"])
    subject = _subject(draw, hero, trait)
    named = draw.choice([f" about {subject}", f" about {subject}", f" with {subject}", ""])
    made = [_exchange(f"{asked} {kind}{named}", told)]
    while len(made) < most and draw.maybe(0.75):
        if draw.maybe(0.4):
            question, answer = draw.choice(list(_FOLLOWING.items()))
            about = draw.choice(["who was it about?", "who was in the story?", "what was it?"])
            if draw.maybe(0.3):
                question, answer = about, f"It was about {with_article(trait)} {hero}."
            made.append(_exchange(question, answer))
            continue
        hero, trait, told = _told(draw)
        subject = _subject(draw, hero, trait)
        again = draw.choice(
            [
                f"another one about {subject}",
                f"now one about {subject}",
                f"and one about {subject}?",
                f"nice. another one, with {subject}",
                f"that was nice. another one about {subject}?",
                "another one, please",
                "one more",
                "again, please",
                f"the same with {subject}",
            ]
        )
        made.append(_exchange(again, told))
    return made


def _told(draw: Draw) -> tuple[str, str, str]:
    """Hero, trait and story."""
    heroes = _HEROES + words.ANIMALS
    hero, other = draw.sample(sorted(set(heroes)), 2)
    trait = draw.choice(list(_TRAITS))
    thing = draw.choice(_THINGS.split())
    place = draw.choice(_PLACES)
    parts = [f"Once there was {with_article(trait)} {hero} {place}.", _TRAITS[trait]]
    event = draw.choice(_EVENTS)
    golden = event.endswith("golden {thing}")
    what = thing if golden else with_article(thing)
    parts.append(event.format(other=with_article(other), thing=what) + ".")
    parts.append(draw.choice(_DEEDS).format(other=other))
    parts.append(draw.choice(_ENDS).format(trait=trait, hero=hero))
    return hero, trait, " ".join(parts)


def _subject(draw: Draw, hero: str, trait: str) -> str:
    """What the user says of the story's hero; the trait may be left to the model."""
    return f"{with_article(trait)} {hero}" if draw.maybe(0.5) else with_article(hero)


def _exchange(question: str, answer: str) -> Exchange:
    question = question[0].upper() + question[1:]
    if question[-1] not in "?.":
        question += "?" if question.startswith("Can") else "."
    return Exchange(question, answer, "The user wants to hear a story.")
