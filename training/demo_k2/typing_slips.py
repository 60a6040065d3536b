"""What people do to a question between thinking and sending it: short forms, slips, left-out words.

Seeded like everything else. A model that has only seen clean text takes a missing apostrophe for
another word.
"""

from __future__ import annotations

import re
from functools import cache

from demo_k2.words import Draw

_SHORT = {
    "I am": ("I'm", "im", "i am"),
    "I would": ("I'd", "id"),
    "I have": ("I've", "ive"),
    "do not": ("don't", "dont"),
    "does not": ("doesn't", "doesnt"),
    "cannot": ("can't", "cant"),
    "can't": ("cant", "cannot"),
    "don't": ("dont", "do not"),
    "what is": ("what's", "whats"),
    "how is": ("how's", "hows"),
    "where is": ("where's", "wheres"),
    "who is": ("who's", "whos"),
    "it is": ("it's", "its"),
    "that is": ("that's", "thats"),
    "you are": ("you're", "youre", "u are", "ur"),
    "are you": ("r u", "are u", "you are"),
    "want to": ("wanna", "wish to"),
    "going to": ("gonna",),
    "you": ("u", "ya"),
    "your": ("ur",),
    "please": ("pls", "plz"),
    "thanks": ("thx",),
    "because": ("cause", "since"),
    "something": ("sth", "smth"),
    "hybrid-k2": ("hybridk2", "hybrid k2", "Hybrid-K2", "the program", "the tool", "this"),
    "Kimi K2": ("kimi", "K2", "kimi-k2", "KimiK2"),
}
_ALIKE = {
    "machine": ("computer", "PC", "box", "workstation", "system"),
    "computer": ("machine", "PC", "box"),
    "program": ("tool", "software", "app", "thing"),
    "show": ("display", "print", "give"),
    "start": ("launch", "run", "open", "begin", "fire up"),
    "need": ("require", "want"),
    "needed": ("required", "necessary"),
    "big": ("large", "huge"),
    "fast": ("quick", "quickly", "speedy"),
    "answer": ("reply", "response"),
    "answers": ("replies", "responses"),
    "find": ("see", "get", "locate"),
    "change": ("adjust", "modify", "set"),
    "check": ("verify", "test", "control"),
    "file": ("model file", "document"),
    "error": ("failure", "problem", "bug"),
    "mistake": ("error", "typo"),
    "talk": ("speak", "chat"),
    "know": ("find out", "learn"),
    "tell": ("say to", "explain to"),
    "explain": ("clarify", "describe"),
    "works": ("runs", "functions"),
    "work": ("run", "function"),
    "memory": ("RAM", "mem"),
    "RAM": ("memory", "ram"),
    "graphics card": ("GPU", "video card", "gpu"),
    "GPU": ("graphics card", "gpu", "card"),
    "which": ("what",),
    "possible": ("doable", "feasible"),
    "possibly": ("maybe",),
    "way": ("method", "means"),
    "model": ("LLM", "network"),
    "option": ("flag", "switch", "parameter"),
    "wrong": ("incorrect", "false"),
    "easy": ("simple",),
    "install": ("set up", "instal"),
    "quickly": ("fast",),
    "maker": ("creator", "developer", "author"),
    "made": ("built", "created", "produced"),
    "small": ("little", "tiny", "compact"),
    "tiny": ("very small", "little"),
    "huge": ("enormous", "giant", "very big"),
    "laptop": ("notebook", "MacBook"),
    "server": ("service", "backend"),
    "app": ("application", "program"),
    "script": ("program", "shell script"),
    "text": ("document", "writing"),
    "question": ("query", "prompt"),
    "questions": ("queries", "things"),
    "happens": ("occurs", "goes on"),
    "happen": ("occur",),
    "get": ("obtain", "receive", "have"),
    "use": ("employ", "work with", "utilise"),
    "used": ("employed", "utilised"),
    "see": ("view", "find out", "look at"),
    "write": ("type", "enter"),
    "type": ("enter", "write"),
    "stop": ("end", "quit"),
    "load": ("open", "read in"),
    "loading": ("opening", "reading in"),
    "download": ("fetch", "pull", "get"),
    "measure": ("determine", "gauge", "test"),
    "choose": ("pick", "select"),
    "pick": ("choose", "select"),
    "set": ("define", "specify", "configure"),
    "list": ("overview", "enumeration"),
    "command": ("subcommand", "cmd", "call"),
    "commands": ("subcommands", "cmds"),
    "remember": ("recall", "keep in mind"),
    "save": ("store", "keep", "record"),
    "saved": ("stored", "kept", "recorded"),
    "feelings": ("emotions", "sensations"),
    "smart": ("clever", "intelligent", "bright"),
    "reliable": ("dependable", "trustworthy"),
    "bad": ("poor", "awful", "terrible"),
    "good": ("fine", "nice", "decent"),
    "right": ("correct", "accurate"),
    "better": ("improved", "superior"),
    "allowed": ("permitted", "ok"),
    "free": ("free of charge", "at no cost", "gratis"),
    "company": ("firm", "business"),
    "internet": ("net", "web", "network"),
    "private": ("confidential", "secret"),
    "privacy": ("data protection", "confidentiality"),
    "local": ("on-premises", "offline"),
    "supported": ("possible", "accepted", "covered"),
    "support": ("handle", "work with", "accept"),
    "enough": ("sufficient", "ok"),
    "slow": ("sluggish", "not fast"),
    "speed": ("pace", "performance", "throughput"),
    "broken": ("defective", "damaged", "kaputt"),
    "wrong with": ("the matter with", "up with"),
    "strange": ("odd", "weird"),
    "trained": ("taught", "fitted"),
    "learn": ("pick up", "study"),
    "reasoning": ("thoughts", "thinking steps"),
    "manual": ("handbook", "guide"),
    "documentation": ("docs", "doc"),
    "tests": ("checks", "test cases"),
    "code": ("source", "source code"),
    "bug": ("defect", "error", "mistake"),
    "patch": ("fix", "change"),
    "rule file": ("rules file", "YAML", "rule set"),
    "rules": ("rule file", "placement rules"),
    "cores": ("CPU cores", "processors"),
    "threads": ("worker threads", "cores"),
    "longer": ("bigger", "larger"),
    "long": ("lengthy", "big"),
    "tell me": ("let me know", "say"),
    "how much": ("what amount of", "how many"),
    "is there": ("do you have", "does there exist"),
    "can I": ("could I", "may I", "am I able to"),
    "how do I": ("how can I", "how to", "how would I", "how does one"),
    "what is": ("what exactly is", "what would be"),
    "do I need": ("must I have", "is there need for", "do I require"),
    "without": ("w/o", "with no", "lacking"),
    "with": ("w/",),
    "and": ("&",),
    "also": ("too", "as well"),
}
_SMALL = frozenset("a an the do does is are to of for that it me my".split())
_NEAR = dict(
    zip("abcdefghijklmnopqrstuvwxyz", "svxswdgfjuhjknbokpwtrydczuxz", strict=False)
)  # a key beside it


def as_people_type(text: str, draw: Draw, synonyms: bool = True) -> str:
    """The same question, as it was thought or with a few of these things done to it.

    synonyms: whether words may become others that mean the same where programs are talked about.
    """
    if draw.maybe(0.35):
        return text
    if synonyms and draw.maybe(0.45):
        text = _replaced(text, _ALIKE, 0.35, draw)
    if draw.maybe(0.45):
        text = _replaced(text, _SHORT, 0.5, draw)
    if draw.maybe(0.2):
        text = _without_small_words(text, draw)
    if draw.maybe(0.25):
        text = _with_slips(text, draw)
    if draw.maybe(0.3):
        text = text.lower()
    if draw.maybe(0.2):
        text = text.replace("'", "")
    style = draw.random()
    if style < 0.2:
        text = text.rstrip("?.!") or text
    elif style < 0.26 and text.endswith("?"):
        text += draw.choice(["?", "??", "!", " :)"])
    return text


def _replaced(text: str, table: dict[str, tuple[str, ...]], share: float, draw: Draw) -> str:
    """With some of the table's words as one of their alternatives."""

    def other(found: re.Match[str]) -> str:
        word = found[0]
        choices = table.get(word) or table.get(word.lower())
        if choices is None or not draw.maybe(share):
            return word
        return draw.choice(choices)

    return _expression(tuple(table)).sub(other, text)


@cache
def _expression(keys: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(keys, key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b", re.I)


def _without_small_words(text: str, draw: Draw) -> str:
    """As people write who are in a hurry or whose language has no articles."""
    said = text.split(" ")
    kept = [word for word in said if word.lower() not in _SMALL or draw.maybe(0.4)]
    return " ".join(kept if len(kept) > 1 else said)


def _with_slips(text: str, draw: Draw) -> str:
    """One or two letters left out, doubled, swapped or taken from the next key."""
    for _ in range(draw.choice([1, 1, 2])):
        places = [i for i in range(1, len(text) - 1) if text[i - 1 : i + 2].isalpha()]
        if not places:
            break
        i, kind = draw.choice(places), draw.randrange(4)
        if kind == 0:
            text = text[:i] + text[i + 1 :]
        elif kind == 1:
            text = text[:i] + text[i] + text[i:]
        elif kind == 2:
            text = text[:i] + text[i + 1] + text[i] + text[i + 2 :]
        else:
            text = text[:i] + _NEAR.get(text[i].lower(), text[i]) + text[i + 1 :]
    return text
