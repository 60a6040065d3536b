"""The words that templates are filled with, and seeded draws from them.

A part of the names, numbers and questions is kept for evaluation: which one is decided by a
checksum of its text, so that no list has to be cut by hand and nothing held out can slip in.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")

CITIES = """Amsterdam Ankara Athens Auckland Bangkok Barcelona Basel Beijing Belgrade Bergen
Berlin Bern Bogota Bologna Bordeaux Boston Bremen Bristol Brussels Bucharest Budapest Cairo
Calgary Cardiff Casablanca Chicago Cologne Copenhagen Cordoba Dakar Dallas Delhi Denver Detroit
Doha Dortmund Dresden Dubai Dublin Durban Edinburgh Florence Frankfurt Galway Geneva Genoa Ghent
Glasgow Granada Graz Hamburg Hanoi Havana Helsinki Houston Istanbul Jakarta Kathmandu Kyoto Lagos
Lahore Leeds Leipzig Lille Lima Lisbon Liverpool London Lyon Madrid Malaga Manchester Manila
Marseille Melbourne Miami Milan Montreal Moscow Mumbai Munich Nairobi Nantes Naples Nice Odessa
Osaka Oslo Ottawa Oxford Palermo Paris Perth Phoenix Porto Prague Quebec Quito Reykjavik Riga
Rome Rotterdam Salzburg Santiago Seattle Seoul Seville Shanghai Singapore Sofia Stockholm Sydney
Taipei Tallinn Tampa Tehran Tokyo Toronto Toulouse Tunis Turin Utrecht Valencia Vancouver Venice
Vienna Vilnius Warsaw Wellington York Zagreb Zurich""".split()
TWO_WORD_CITIES = [
    "New York",
    "Los Angeles",
    "San Francisco",
    "Cape Town",
    "Hong Kong",
    "Buenos Aires",
    "Mexico City",
    "Las Vegas",
    "New Delhi",
    "Abu Dhabi",
    "Tel Aviv",
    "Rio de Janeiro",
]
NAMES = """Ada Adam Aisha Alan Alice Amir Amy Ana Andrew Anna Anton Ben Bella Boris Carla Carlos
Chen Clara Daniel David Diana Elena Elias Emil Emma Eric Eva Fatima Felix Finn Frank Grace Greta
Hana Hannah Hans Hugo Ida Igor Ines Iris Ivan Jack Jacob James Jana Jim Joan John Jonas Julia Kai
Karim Kate Kim Lara Lea Leo Lena Lily Lina Linda Lisa Lucas Lucy Luis Maja Marco Maria Mark Marta
Martin Mary Max Mia Mila Milo Mohamed Mona Nadia Nico Nina Noah Nora Olga Oliver Omar Oscar Paul
Paula Pedro Peter Petra Rita Robert Rosa Ruth Sam Samir Sara Simon Sofia Sonia Stefan Tanja Theo
Tim Tina Tom Vera Victor Wei Yara Yuki Zoe""".split()
NOUNS = """account address album animal answer apple article bag ball bank basket battery bed
bell bike bill bird boat book bottle bowl box bread bridge brush bus button cable cake camera
candle car card carpet cat chair cheese church clock cloud coat coffee coin company computer
contract cup curtain customer delivery desk device doctor dog door dress drum egg engine event
farm fence file film fish flower folder forest fork garden gate glass glove guest guitar hammer
hat hill horse hospital hotel house invoice jacket job key kitchen knife ladder lake lamp leaf
lesson letter library light list lock map market meal medal meeting member message mirror moon
motor mountain mouse museum newspaper note nurse office onion orange order oven package page
paint paper park party path payment pencil phone photo piano picture pillow pipe plant plate
pocket police pond post potato printer prize product project queue radio rain recipe record
report restaurant ring river road robot roof room rope rose sail sample school screen season seat
server shelf ship shirt shoe shop sign snow sock sofa song soup spoon stamp star station stone
storm street sugar sun table task taxi teacher team tent test theatre ticket tiger tool tower
town toy train tree truck umbrella vase village violin visitor wall watch water wheel window
winter wolf wood yard""".split()
ADJECTIVES = """big small old new red blue green yellow black white long short happy sad warm
cold fast slow quiet loud bright dark soft hard clean heavy light round young kind brave
clever""".split()
FOODS = """apples bananas bread butter carrots cheese cherries chicken chocolate coffee cookies
eggs fish flour grapes honey jam lemons lettuce milk mushrooms noodles nuts olives onions oranges
pasta peaches pears peas pepper plums potatoes rice salad salt soup spinach strawberries sugar
tea tomatoes yoghurt""".split()
COLOURS = "red blue green yellow black white orange purple pink brown grey silver".split()
ANIMALS = """ant bear bee bird butterfly camel cat chicken cow crab deer dog dolphin donkey duck
eagle elephant fish fox frog giraffe goat goose hamster hen horse kangaroo lion monkey mouse
octopus owl panda parrot penguin pig rabbit rat shark sheep snail snake spider squirrel swan
tiger turtle whale wolf zebra""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = """January February March April May June July August September October November
December""".split()
LANGUAGES = """Arabic Chinese Danish Dutch English Finnish French German Greek Hindi Italian
Japanese Korean Norwegian Polish Portuguese Russian Spanish Swedish Turkish""".split()
FILLERS = "a the of for in with and to on at my your this more best about from good".split()
HOBBIES = """baking chess cooking cycling dancing drawing fishing football gardening hiking
knitting painting photography reading running sailing singing skating skiing swimming tennis
travelling walking writing yoga""".split()
SYLLABLES = """ba be bi bo bra bre cal can cas ce chi co cor da del den di dor dra el en er fa
fel fin fo ga gal gen go gra ha hel hin hu il in is ja jo ka kel ki kor la len li lo lu ma mar
mel mi mo na nel ni no nor o pa per pi por qua ra rel ri ro sa sel shi so sta ta tel ti tor tra u
va ven vi vo wa wen xa ya yo za zel zi""".split()
ENDINGS = (
    "ton ville ford burg na ra ska berg dor field ham lin mouth stad ria via nia polis".split()
)

PIECED = 0.35  # the share of names that are put together from tokens


class Draw(random.Random):
    """Seeded random choices, either of what may be trained on or of what is held out.

    pieces: a vocabulary's words and parts of words. With them a part of the names is put together
    from tokens drawn alike: a token that no text has is one that a model cannot copy.
    """

    def __init__(self, seed: int | str, held_out: bool = False, pieces: Sequence[str] = ()) -> None:
        super().__init__(seed)
        self.held_out, self.pieces = held_out, pieces

    def __new__(cls, seed: int | str, held_out: bool = False, pieces: Sequence[str] = ()) -> Draw:
        return super().__new__(cls)

    def choice(self, seq: Sequence[Item]) -> Item:
        """As Random's own, but for a bias of less than a billionth, in a third of the time."""
        return seq[int(self.random() * len(seq))]

    def mine(self, make: Callable[[], str]) -> str:
        """The first text of `make` that belongs to this side; ValueError where none seems to."""
        for _ in range(10_000):
            if is_held_out(text := make()) == self.held_out:
                return text
        raise ValueError(f"nothing here is {'held out' if self.held_out else 'for training'}")

    def of(self, items: Sequence[str]) -> str:
        """One of the items of this side."""
        return self.mine(lambda: self.choice(items))

    def maybe(self, share: float) -> bool:
        return self.random() < share

    def city(self) -> str:
        if self.pieces and self.maybe(PIECED):
            return self.pieced() + (f" {self.pieced()}" if self.maybe(0.2) else "")
        kind = self.random()
        if kind < 0.45:
            return self.of(CITIES)
        if kind < 0.5:
            return self.of(TWO_WORD_CITIES)
        return self.mine(lambda: self.invented(2) + self.choice(ENDINGS))

    def name(self) -> str:
        if self.pieces and self.maybe(PIECED):
            return self.pieced()
        return self.of(NAMES) if self.maybe(0.5) else self.mine(lambda: self.invented(3))

    def pieced(self) -> str:
        """A name of one to three of the pieces."""

        def make() -> str:
            first, *rest = self.choices(self.pieces, k=self.randint(1, 3))
            return first[0].upper() + first[1:] + "".join(rest).lower()

        return self.mine(make)

    def wording(self) -> str:
        """One to five words, of which some are real."""
        lists = (NOUNS, ADJECTIVES, FOODS, COLOURS, HOBBIES, FILLERS)
        said = [
            self.choice(self.choice(lists)) if self.maybe(0.6) else self.pieced().lower()
            for _ in range(self.randint(1, 5))
        ]
        return " ".join(said)

    def invented(self, most_syllables: int) -> str:
        """A name that nobody bears, as a rule."""
        count = self.randint(min(2, most_syllables), most_syllables)
        return "".join(self.choice(SYLLABLES) for _ in range(count)).capitalize()

    def number(self, low: int, high: int) -> int:
        """An integer of this side; below 20 all are on both."""
        if high < 20:
            return self.randint(low, high)
        while True:
            value = self.randint(low, high)
            if value < 20 or is_held_out(str(value)) == self.held_out:
                return value

    def amount(self) -> int:
        """A number of any usual size: small ones are as frequent as large ones."""
        return self.number(1, 10 ** self.randint(1, 4))

    def code(self) -> str:
        """An order number, a flight, a serial number."""
        letters = "".join(
            self.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(self.randint(1, 3))
        )
        digits = "".join(self.choice("0123456789") for _ in range(self.randint(2, 5)))
        return self.choice([f"{letters}{digits}", f"{letters}-{digits}", digits])

    def clock(self) -> str:
        if self.maybe(0.2):
            return f"{self.randint(1, 12)}{self.choice([' ', ''])}{self.choice(['am', 'pm'])}"
        return f"{self.randint(0, 23)}:{self.choice(['00', '15', '30', '45', '10', '20', '05'])}"

    def date(self) -> str:
        day, month = self.randint(1, 28), self.randint(1, 12)
        return self.choice(
            [
                f"{self.randint(2019, 2031)}-{month:02}-{day:02}",
                f"{day} {MONTHS[month - 1]}",
                f"{MONTHS[month - 1]} {day}",
            ]
        )

    def email(self) -> str:
        host = self.choice(["example.com", "mail.org", f"{self.invented(2).lower()}.net"])
        return f"{self.name().lower()}@{host}"

    def phrase(self) -> str:
        """A few words that mean little: what a note, a title or a search can be about."""
        noun, adjective = self.choice(NOUNS), self.choice(ADJECTIVES)
        forms = [
            f"{adjective} {noun}",
            f"{noun} and {self.choice(NOUNS)}",
            f"the {adjective} {noun} of {self.name()}",
            f"{noun} in {self.city()}",
            f"{self.choice(FOODS)} for {self.name()}",
        ]
        if self.pieces and self.maybe(PIECED):
            return self.wording()
        return self.choice(forms)


def is_held_out(text: str) -> bool:
    """Whether this text is kept for evaluation: one in six is."""
    return zlib.crc32(text.lower().encode()) % 6 == 0


def with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
