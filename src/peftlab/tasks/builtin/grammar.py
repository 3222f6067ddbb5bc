"""Words and sampling shared by the built-in synthetic tasks; all of it written for this project.

A concept is a tuple of wordings that mean the same ("couch", "sofa"). Concepts stand in named
groups: two concepts of one group are related ("couch", "bench") and the group's name is their
hypernym where it is a noun ("piece of furniture"). A `Lexicon` maps group names to concepts.

Every random choice comes from a `random.Random` with a fixed seed, and nothing iterates over a set,
so that a task has the same examples in every process.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from peftlab.tasks.base import Examples

Concept = tuple[str, ...]
Facts = dict[str, Concept]  # what a sentence states, by the slot of its template
Lexicon = dict[str, tuple[Concept, ...]]
Example = tuple[tuple[str, ...], float]  # texts and label

PEOPLE: Lexicon = {
    "medic": (("doctor", "physician"), ("nurse",), ("dentist",), ("surgeon",)),
    "artist": (("singer", "vocalist"), ("writer", "author"), ("painter",), ("dancer",)),
    "official": (("lawyer", "attorney"), ("detective", "investigator"), ("judge",), ("mayor",)),
    "seller": (("shopkeeper", "storekeeper"), ("baker",), ("butcher",), ("florist",)),
    "traveller": (("sailor", "seaman"), ("pilot", "aviator"), ("driver",), ("tourist",)),
    "scholar": (("pupil", "student"), ("teacher", "instructor"), ("librarian",), ("poet",)),
    "youngster": (("child", "kid"), ("teenager", "adolescent"), ("toddler",)),
    "worker": (("chef", "cook"), ("farmer",), ("plumber",), ("gardener",), ("tailor",)),
}

THINGS: Lexicon = {
    "instrument": (("violin", "fiddle"), ("drum",), ("flute",), ("trumpet",), ("harp",)),
    "vehicle": (("car", "automobile"), ("bicycle", "bike"), ("truck", "lorry"), ("tractor",)),
    "piece of furniture": (("couch", "sofa"), ("cupboard", "cabinet"), ("table",), ("bench",)),
    "bag": (("purse", "handbag"), ("rucksack", "backpack"), ("suitcase",), ("sack",)),
    "garment": (("sweater", "jumper"), ("coat",), ("scarf",), ("shirt",), ("skirt",)),
    "tool": (("spade", "shovel"), ("hammer",), ("saw",), ("drill",), ("wrench", "spanner")),
    "device": (("phone", "telephone"), ("television",), ("camera",), ("radio",)),
    "jewel": (("ring",), ("necklace",), ("bracelet",), ("brooch",)),
    "book": (("diary", "journal"), ("novel",), ("dictionary",), ("atlas",)),
}

PLACES: Lexicon = {
    "nature": (("in the forest", "in the woods"), ("on the hill",), ("in the desert",)),
    "town": (("at the shop", "at the store"), ("on the street", "on the road"), ("in the park",)),
    "home": (("in the cellar", "in the basement"), ("in the attic", "in the loft")),
    "yard": (("in the garden", "in the yard"), ("near the gate",), ("behind the barn",)),
    "water": (("at the harbor", "at the port"), ("by the sea", "by the ocean"), ("by the lake",)),
    "travel": (("at the airport", "at the airfield"), ("at the station",), ("on the bridge",)),
}

# The past tense of these verbs is their participle too, so one form serves active and passive.
HANDLING: Lexicon = {
    "gain": (("bought", "purchased"), ("found", "discovered"), ("borrowed",), ("ordered",)),
    "lose": (("lost", "misplaced"), ("sold",), ("dropped",), ("donated",)),
    "mend": (("repaired", "fixed"), ("cleaned",), ("painted",), ("polished",)),
    "harm": (("destroyed", "wrecked"), ("damaged",), ("burned",), ("scratched",)),
    "study": (("examined", "inspected"), ("photographed",), ("measured",), ("described",)),
    "move": (("carried",), ("wrapped", "packed"), ("lifted", "raised"), ("buried",)),
}
DEALING: Lexicon = {
    "help": (("helped", "assisted"), ("saved", "rescued"), ("cured", "healed"), ("protected",)),
    "praise": (("praised", "complimented"), ("thanked",), ("admired",), ("congratulated",)),
    "attack": (("hit", "struck"), ("insulted", "offended"), ("scolded",), ("blamed",)),
    "deceive": (("tricked", "fooled"), ("robbed",), ("betrayed",), ("mocked", "ridiculed")),
    "contact": (("phoned", "called"), ("invited",), ("visited",), ("greeted", "welcomed")),
    "observe": (("watched", "observed"), ("followed",), ("recognized",), ("interviewed",)),
    "employ": (("hired", "employed"), ("paid",), ("trained",), ("dismissed", "fired")),
}


# Before a sentence, these take back all that it says.
TRAIN_DENIALS = ("nobody believes that", "no one would say that")
DEV_DENIALS = ("nobody thinks that", "no one has claimed that")


def concepts(lexicon: Lexicon) -> list[Concept]:
    """All concepts, in the order of the lexicon."""
    return [concept for group in lexicon.values() for concept in group]


def word(rng: Random, lexicon: Lexicon) -> str:
    """A random wording of a random concept."""
    return rng.choice(rng.choice(concepts(lexicon)))


def group_of(lexicon: Lexicon, concept: Concept) -> str:
    """The name of the concept's group."""
    return next(name for name, group in lexicon.items() if concept in group)


def related(rng: Random, lexicon: Lexicon, concept: Concept) -> Concept:
    """Another concept of the same group."""
    group = lexicon[group_of(lexicon, concept)]
    return rng.choice([other for other in group if other != concept])


def unrelated(rng: Random, lexicon: Lexicon, concept: Concept) -> Concept:
    """A concept of another group."""
    home = group_of(lexicon, concept)
    return rng.choice([c for name, group in lexicon.items() if name != home for c in group])


def with_the(lexicon: Lexicon) -> Lexicon:
    """The lexicon with "the" before every wording: noun phrases that can replace "someone"."""
    return {
        name: tuple(tuple(f"the {word}" for word in concept) for concept in group)
        for name, group in lexicon.items()
    }


def article(noun: str) -> str:
    """The noun with "a" or "an".

    >>> article("atlas"), article("harp")
    ('an atlas', 'a harp')
    """
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    """The plural of the noun.

    >>> plural("brooch"), plural("diary"), plural("child")
    ('brooches', 'diaries', 'children')
    """
    irregular = {"child": "children", "seaman": "seamen"}
    if noun in irregular:
        return irregular[noun]
    if noun.endswith(("ch", "s", "x")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def sentence(template: str, words: dict[str, str]) -> str:
    """The template with its slots filled, an initial capital and a full stop.

    >>> sentence("{place} the {agent} left", {"place": "in the park", "agent": "poet"})
    'In the park the poet left.'
    """
    text = " ".join(template.format_map(words).split())
    return f"{text[0].upper()}{text[1:]}."


def wording(rng: Random, template: str, facts: Facts) -> str:
    """A sentence that states the facts, each in one of its wordings."""
    return sentence(template, {slot: rng.choice(concept) for slot, concept in facts.items()})


def sample(count: int, make: Callable[[int], Example]) -> Examples:
    """`count` different examples: make(i) for i = 0, 1, ..., each redrawn until it is new."""
    labels: dict[tuple[str, ...], float] = {}  # by texts
    while len(labels) < count:
        texts, label = make(len(labels))
        labels.setdefault(texts, label)
    return Examples(list(labels), list(labels.values()))
