"""What the teacher is asked: simple questions about everyday things, by the hundred thousand."""

from __future__ import annotations

import re

from demo_k2.patterns import fill
from demo_k2.words import Draw

SYSTEM = "You are a friendly assistant. Answer in one to three short, simple sentences."
THINGS = """rain snow wind ice fire smoke sand mud grass moss bread cheese milk honey soup salt sugar
coffee tea water juice paper glass wood stone iron gold silver copper plastic rubber cotton wool silk
leather light sound heat electricity gravity time money music art history science maths language
friendship love trust luck fear anger hope peace war work school sleep a_dream a_game a_toy a_ball
a_kite a_bicycle a_car a_train a_plane a_ship a_boat a_bridge a_road a_house a_tower a_castle a_farm
a_garden a_forest a_desert a_river a_lake an_ocean an_island a_beach a_mountain a_volcano a_valley
a_cave a_cloud a_storm thunder lightning a_rainbow the_sun the_moon a_star a_planet the_Earth Mars
a_rocket a_satellite a_telescope a_computer a_phone a_camera a_clock a_battery a_magnet an_engine
a_robot a_book a_library a_newspaper a_letter a_map a_song a_piano a_guitar a_drum a_painting a_film a_museum
a_market a_bank a_hospital a_doctor a_nurse a_teacher a_farmer a_baker a_pilot a_king a_friend a_family
a_baby a_birthday a_holiday Christmas spring summer autumn winter the_morning the_night a_tree a_flower
a_seed a_leaf an_apple an_egg a_potato rice corn a_tomato pizza chocolate ice_cream breakfast dinner
the_heart the_brain a_bone skin blood a_tooth a_virus medicine exercise football chess swimming running
cooking baking gardening painting dancing reading writing drawing camping fishing travelling""".split()
PATTERNS = """What is <thing>?
What {is|are} <thing> {used for|good for|made of}?
{Tell me|Can you tell me|Please tell me} {something|a fact|a fun fact|one interesting thing} about <thing>.
Explain <thing> to a {child|beginner|friend}.
Why {do people like|is it good to have|do we need|do people care about} <thing>?
Where can I {find|see|learn about} <thing>?
How does <thing> work?
How would you describe <thing>?
What do you think {about|of} <thing>?
What is the difference between <thing> and <thing2>?
What is {better|more important|more useful}, <thing> or <thing2>?
What is a <animal>?
What do <animal>s eat?
Where do <animal>s live?
Tell me {something|a fact|a fun fact} about <animal>s.
How big is a <animal>?
{Can|Could} a <animal> {swim|fly|climb|run fast|live in a house}?
{Is|Would} a <animal> {be |}a good pet?
Tell me a {very |}short story about a <adjective> <animal>.
Tell me a {very |}short story about a <animal> and a <animal2>.
Tell me a {very |}short story about <name> and a <adjective> <noun>.
Write two sentences about a <adjective> <noun>.
Write {one sentence|a sentence} with the words <noun> and <noun2>.
{Write|Make} a {short|little} poem about <thing>.
How do I {cook|prepare|store|cut|buy} <food>?
What can I {cook|make} with <food> and <food2>?
{Are|Is} <food> {healthy|good for me|expensive|easy to cook}?
What {goes well|tastes good} with <food>?
Describe {a|the} {perfect|normal|long|lazy|busy} {day|morning|evening|weekend}.
Describe the {colour|smell|taste|sound|shape} of <thing>.
How {can|do} I {learn|start|get better at|enjoy} <hobby>?
Why is <hobby> {fun|good for me|hard|popular}?
What do I need for <hobby>?
Give me {a tip|one tip|some advice} for {sleeping better|learning faster|saving money|making friends|staying healthy|keeping a room clean|getting up early|waiting|speaking in public|writing a letter|remembering names|being happy|eating less sugar|working from home|packing a bag|a long trip|a job interview|calming down|using less water}.
I {feel|am} {sad|tired|lonely|angry|nervous|bored|worried|happy|excited|stressed} {today|because of <thing>|about <thing>|because I lost my <noun>}. {What should I do?|Can you help me?||}
My {friend|sister|brother|mother|father|neighbour|teacher} {likes|hates|talks about|wants|is afraid of} <thing>. {What can I say?|What should I give them?|What do you think?}
I want to {buy|make|draw|learn about|write about|understand} <thing>. {Where do I start?|What should I know?|Any ideas?}
What should I do if {it rains|I am lost|I lose my <noun>|I see a <animal>|my <noun> is broken|I cannot sleep|I am late|I forget a name|it is very hot|it is very cold}?
Why is the {sky blue|grass green|sea salty|sun hot|night dark|snow white|moon bright}?
Why do {birds fly|cats purr|dogs bark|leaves fall|people dream|people laugh|people cry|fish swim|bees make honey|we sleep|we eat|stars shine}?
How do {birds fly|fish breathe|plants grow|bees make honey|planes fly|ships float|people learn|clouds form|magnets work|phones work|trees drink}?
What is it like to {live in a city|live on a farm|be a <animal>|be a teacher|be a doctor|fly in a plane|swim in the sea|walk in the snow|climb a mountain}?
What makes a good {friend|teacher|story|meal|book|holiday|house|song|team|question}?
What would you do with {a million dollars|a free day|a <noun>|a <animal>|a big garden|a magic <noun>}?
Imagine a <adjective> <animal> in a <noun>. What happens next?
What can I {do|eat|wear|play|read} {in|on} {summer|winter|spring|autumn|a rainy day|a hot day|a Sunday|the morning|the evening}?
What is your favourite <noun>, and why?
What {colour|shape|size} is a <noun>?
What is a <noun>?
What do people {use|need} a <noun> for?
Is it {good|bad|safe|hard|possible|normal} to {sleep in the day|eat at night|swim after lunch|walk alone|work at night|talk to plants|read every day|live without money|keep a <animal>|drink a lot of water}?""".splitlines()
FOLLOW_UPS = """Tell me more.|Can you tell me more about that?|Why?|Why is that?|Can you give me an example?|How?
What else?|Is that always true?|Can you say that in simpler words?|Can you say it again, but shorter?
That is interesting. What else do you know?|What happens next?|And then?|How do you know?|Are you sure?
What do you mean?|That sounds nice. What should I do first?|Is it hard?|Do many people think so?
What is the most important thing about it?|Who told you that?|Can children do that too?
Where can I learn more?|How long does it take?|I did not know that. What else is there?""".replace(
    "\n", "|"
).split("|")
_UNWANTED = re.compile(
    r"SmolLM|Hugging|language model|\bAI\b|[*#`\[\]{}<>|_=\\]|https?:|www|\d\.|\n|assistant", re.I
)


def question(draw: Draw) -> str:
    """What a user might ask first."""
    pattern = draw.choice(PATTERNS)
    while "<thing" in pattern:
        pattern = re.sub("<thing2?>", lambda _: draw.choice(THINGS).replace("_", " "), pattern, 1)
    return fill(pattern, draw, {}).strip()


def follow_up(draw: Draw) -> str:
    """What a user might say after any answer."""
    return draw.choice(FOLLOW_UPS)


def cleaned(answer: str, ended: bool) -> str | None:
    """The answer up to its last whole sentence, or None where it is not worth learning from."""
    text = answer.strip()
    if not ended:
        text = text[: max(text.rfind(mark) for mark in ".!?") + 1]
    if len(text) < 12 or text[-1] not in ".!?\"')" or _UNWANTED.search(text):
        return None
    sentences = [part for part in re.split(r"(?<=[.!?])\s+", text) if part]
    if len(set(sentences)) < len(sentences):  # it repeats itself
        return None
    return text


def repeats(answer: str, earlier: str) -> bool:
    """Whether most words of an answer are those of the one before it."""
    said, new = set(earlier.lower().split()), set(answer.lower().split())
    return len(said & new) > 0.6 * len(new)
