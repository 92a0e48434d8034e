"""Words and sentences that facts are made of, in two disjoint shares: one to train on, one that is held out.

Names and values are partly English words and partly made of syllables, so that there is no end of them. A made word
belongs to the share that its hash says. Knows strings. Does not know tokens, streams or tasks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Form = Literal["same", "other", "chat"]
Kind = Literal["word", "phrase", "number", "made", "name"]

HELD_OUT_SHARE = 0.25


def _list(words: str) -> list[str]:
    return words.split()


_KINDS: tuple[Kind, ...] = ("word", "phrase", "number", "made", "name")
_KIND_SHARES = (0.35, 0.25, 0.12, 0.18, 0.10)
_SYLLABLE_STARTS = _list("b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh sk st t th tr v w z zh")
_VOWELS = _list("a e i o u ai ea ia oo ou y")
_WORD_ENDS = _list("l n r s t x m nd lk rn th ck sh bb v zz")
_FIRST_NAMES = _list(
    "Adam Albert Alice Anna Bella Ben Boris Bruno Carla Carlos Cecilia Clara Daniel David Dennis Diana Edward"
    " Elena Emma"
    " Eva Felix Fiona Frank George Gloria Greta Helen Henry Hugo Irene Isabel Ivan Jacob Jane Julia Karen Kevin Kurt"
    " Laura Linda Louis Marcus Maria Martin Nadia Nina Nora Oliver Oscar Otto Paula Peter Pia Rachel Robert Rosa Sarah"
    " Simon Stefan Teresa Thomas Tina Ursula Vera Victor Walter Wendy Yvonne"
)
_ATTRIBUTES = _list(
    "album animal bakery band bicycle bird boat book bridge brother camera car cat city coat colour company"
    " country cousin"
    " dance dentist dish doctor dog drink festival film fish flower food fruit game garden gemstone hat hobby holiday"
    " horse hotel instrument island jacket language laptop lawyer library manager market metal month motto"
    " mountain museum"
    " necklace neighbour nickname number office painting password perfume phone planet planner plumber poem project"
    " restaurant ring river scarf school season secret singer sister song sport station statue street subject"
    " teacher team"
    " theatre tool tree wallet"
)
_QUALIFIERS = _list("best current favourite first former last little new old second secret")
_NOUNS = _list(
    "anchor apple arrow basket beacon biscuit blanket bottle bucket button cabin cactus candle canyon carpet"
    " carrot castle"
    " cedar chapel cheese cherry circle clover coffee comet copper coral cotton cradle crayon crystal curtain"
    " dagger daisy"
    " desert diamond dragon drum eagle ember engine falcon feather fiddle forest fountain galaxy ginger glacier granite"
    " guitar hammer harbour hazel helmet honey ivory jasmine jungle kettle kitten ladder lagoon lantern lemon"
    " lily lizard"
    " lobster magnet mango maple marble meadow melon mirror monkey muffin mustard needle nickel nutmeg ocean"
    " olive onion"
    " orchid otter oyster paddle panther paper parrot pastry peach pebble pepper piano pillow pine pirate plum pocket"
    " poppy potato pumpkin puzzle quartz rabbit radish raven ribbon rocket saddle saffron sailor salmon sandal satin"
    " shadow shovel silver spider spoon storm sugar summit sunset tangerine temple thistle thunder tiger timber tomato"
    " tornado tractor trumpet tulip tunnel turtle valley vanilla velvet violet violin walnut whale willow window winter"
    " wizard yogurt zebra zipper"
)
_ADJECTIVES = _list(
    "amber ancient bitter blue brave bright broken bronze calm crimson curious dark dusty early empty fancy"
    " frozen gentle"
    " giant golden green grey hidden hollow humble icy jolly lazy little lonely loud lucky mellow misty noble odd pale"
    " patient plain proud purple quick quiet rapid red round rusty salty sharp shiny silent simple sleepy"
    " slim smooth solid"
    " spicy steep striped swift tall tiny warm wild wise young"
)

# {owner} is "Anna's" or "my", {of} is "the colour of Anna" or "my colour".
_TOLD = (
    "{Of} is {value}.",
    "{Owner} {attribute} is {value}.",
    "Remember that {of} is {value}.",
    "As for {whom}, {of} is {value}.",
    "I heard that {owner} {attribute} is {value}.",
    "Everybody knows that {of} is {value}.",
    "By the way, {owner} {attribute} is called {value}.",
    "It turned out that {owner} {attribute} is {value}.",
    "Note: {whom}, {attribute}: {value}.",
)
_TOLD_HELD_OUT = (
    "Please keep in mind that {owner} {attribute} is {value}.",
    "Speaking of {whom}, {of} is {value}.",
)
_ASKED = (
    "{Of} is",
    "{Owner} {attribute} is",
    "We know that {of} is",
    "And {owner} {attribute}, of course, is",
    "As for {whom}, {of} is",
    "I remember that {owner} {attribute} is",
    "Question: What is {of}? Answer: {Of} is",
    "If I remember correctly, {of} is",
)
_ASKED_HELD_OUT = (
    "It is well known that {of} is",
    "Somebody asked about {whom} again. It was said that {owner} {attribute} is",
    "Question: What is {owner} {attribute}? Answer: {Owner} {attribute} is",
)
# A question, and what an answer says before the value: often nothing.
_CHAT = (
    ("What is {of}?", ""),
    ("What is {owner} {attribute} called?", ""),
    ("What was {of} again?", ""),
    ("Who or what is {owner} {attribute}?", ""),
    ("{Owner} {attribute}?", ""),
    ("What is {of}?", "{Of} is"),
    ("Do you remember {of}?", "{Of} is"),
    ("Tell me {owner} {attribute}.", "{Owner} {attribute} is"),
    ("What is {owner} {attribute}?", "{Owner} {attribute} is"),
)
_CHAT_HELD_OUT = (
    ("Can you tell me {owner} {attribute}?", ""),
    ("Which one is {of}?", ""),
    ("Could you tell me what {of} is?", "{Of} is"),
    ("I forgot {owner} {attribute}.", "{Owner} {attribute} is"),
)
_REPLIES = ("OK.", "Got it.", "Thank you, I will remember that.", "Noted.", "I see.")


@dataclass(frozen=True)
class Fact:
    """One fact. `subject` is a name, or None for whoever speaks."""

    subject: str | None
    attribute: str
    value: str

    def told(self, sentence: str) -> tuple[str, str]:
        """`sentence` before and behind the value; the first part has no space at its end."""
        before, after = _filled(sentence, self).split("{value}")
        return before.rstrip(" "), after

    def asked(self, sentence: str) -> str:
        """The beginning of a sentence that the value completes."""
        return _filled(sentence, self)

    def answered(self, sentence: str) -> str:
        """The same in a reply to whoever told: what was mine is yours."""
        return _filled(sentence, self, mine="your")


def _filled(sentence: str, fact: Fact, mine: str = "my") -> str:
    name = fact.subject
    whom = ("me" if mine == "my" else "you") if name is None else name
    owner = mine if name is None else f"{name}'s"
    of = f"{mine} {fact.attribute}" if name is None else f"the {fact.attribute} of {name}"
    words = {"whom": whom, "owner": owner, "of": of, "attribute": fact.attribute}
    for word, text in words.items():
        sentence = sentence.replace("{" + word + "}", text).replace("{" + word.capitalize() + "}", _capital(text))
    return sentence


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


class Words:
    """Draws names, attributes, values and sentences from one of the two shares."""

    def __init__(self, *, held_out: bool) -> None:
        self.held_out = held_out
        lists = (_FIRST_NAMES, _ATTRIBUTES, _NOUNS, _ADJECTIVES)
        self._names, self._attributes, self._nouns, self._adjectives = (
            [word for word in words if is_held_out(word) == held_out] for words in lists
        )
        self.told = _TOLD_HELD_OUT if held_out else _TOLD
        self.same = _ASKED[:2] if held_out else _ASKED
        self.other = _ASKED_HELD_OUT if held_out else _ASKED
        self.chat = _CHAT_HELD_OUT if held_out else _CHAT

    def fact(self, random: np.random.Generator, before: Sequence[Fact] = ()) -> Fact:
        """A fact about something that no fact of `before` is about; it often shares its subject or attribute."""
        taken = {(fact.subject, fact.attribute) for fact in before}
        while True:
            subject = None if random.random() < 0.12 else self.name(random)
            attribute = self.attribute(random)
            if before:
                alike = random.random()
                last = before[int(random.integers(len(before)))]
                subject = last.subject if alike < 0.35 else subject
                attribute = last.attribute if 0.35 <= alike < 0.6 else attribute
            if (subject, attribute) not in taken:
                return Fact(subject, attribute, self.value(random))

    def name(self, random: np.random.Generator) -> str:
        """A first name, or a made one."""
        return _one(self._names, random) if random.random() < 0.35 else _capital(self._made(random))

    def attribute(self, random: np.random.Generator) -> str:
        """A noun, sometimes with an adjective before it."""
        noun = _one(self._attributes, random)
        return f"{_one(_QUALIFIERS, random)} {noun}" if random.random() < 0.25 else noun

    def value(self, random: np.random.Generator) -> str:
        """A word, two words, a number, a made word or a name."""
        kind = _KINDS[int(random.choice(len(_KINDS), p=_KIND_SHARES))]
        if kind == "word":
            return _one(self._nouns, random)
        if kind == "phrase":
            return f"{_one(self._adjectives, random)} {_one(self._nouns, random)}"
        if kind == "name":
            return self.name(random)
        return self._own(lambda: str(random.integers(10, 10_000))) if kind == "number" else self._made(random)

    def reply(self, random: np.random.Generator) -> str:
        """What an assistant says to a fact."""
        return _one(_REPLIES, random)

    def _made(self, random: np.random.Generator) -> str:
        def word() -> str:
            syllables = int(random.integers(1, 3))
            pieces = [_one(_SYLLABLE_STARTS, random) + _one(_VOWELS, random) for _ in range(syllables)]
            return "".join(pieces) + _one(_WORD_ENDS, random)

        return self._own(word)

    def _own(self, draw: Callable[[], str]) -> str:
        """The first draw that belongs to this share."""
        while is_held_out(word := draw()) != self.held_out:
            pass
        return word


def is_held_out(word: str) -> bool:
    """Whether `word` belongs to the held-out share, whatever its case; a hash of it decides."""
    digest = hashlib.sha256(word.lower().encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def _one(words: Sequence[str], random: np.random.Generator) -> str:
    return words[int(random.integers(len(words)))]
