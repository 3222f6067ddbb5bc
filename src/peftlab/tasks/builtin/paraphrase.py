"""paraphrase: do two sentences say the same (stands for MRPC).

A sentence states who did what to whom, and where. A paraphrase states it in another word order and
partly in other wordings ("doctor", "physician"). In a pair that differs one to four of the facts
are replaced by related or unrelated ones, or one sentence is denied ("nobody believes that ...").
A single changed fact is the hard case: it is one word among synonyms that have changed as well.
Train and dev use different word orders and different denials.
"""

from __future__ import annotations

from random import Random

from peftlab.tasks.base import BuiltIn, Examples
from peftlab.tasks.builtin.grammar import (
    DEALING,
    DEV_DENIALS,
    PEOPLE,
    PLACES,
    TRAIN_DENIALS,
    Concept,
    Example,
    Facts,
    Lexicon,
    concepts,
    related,
    sample,
    unrelated,
    wording,
)

SLOTS: dict[str, Lexicon] = {"agent": PEOPLE, "act": DEALING, "patient": PEOPLE, "place": PLACES}
TRAIN_TEMPLATES = (
    "the {agent} {act} the {patient} {place}",
    "{place} the {patient} was {act} by the {agent}",
    "the {patient} was {act} {place} by the {agent}",
    "it was the {agent} who {act} the {patient} {place}",
)
DEV_TEMPLATES = (
    "{place} the {agent} {act} the {patient}",
    "the {patient} was {act} by the {agent} {place}",
    "{place} it was the {agent} who {act} the {patient}",
    "the {agent} {place} {act} the {patient}",
)
KINDS = (
    *("denied", "three", "denied", "two", "denied"),
    *("four", "denied", "one", "denied", "one"),
)
CHANGES = {"one": 1, "two": 2, "three": 3, "four": 4}
TRAIN, DEV = 960, 240
SEED = 2


def random_facts(rng: Random) -> Facts:
    facts = {slot: rng.choice(concepts(lexicon)) for slot, lexicon in SLOTS.items()}
    return {**facts, "patient": unrelated(rng, PEOPLE, facts["agent"])}


def replace_facts(rng: Random, facts: Facts, changes: int) -> Facts:
    """The facts with `changes` of them replaced; agent and patient remain two people."""
    other = dict(facts)
    for slot in rng.sample(list(SLOTS), changes):
        pick = rng.choice((related, unrelated))
        other[slot] = pick(rng, SLOTS[slot], facts[slot])
    return other if other["agent"] != other["patient"] else replace_facts(rng, facts, changes)


def pair(rng: Random, templates: tuple[str, ...], denials: Concept, kind: str) -> tuple[str, str]:
    """Two sentences; `kind` is "same" or one of KINDS, the ways to differ."""
    facts = random_facts(rng)
    other = replace_facts(rng, facts, CHANGES.get(kind, 0))
    first, second = rng.sample(templates, 2)
    if kind == "denied":
        second = f"{rng.choice(denials)} {second}"
    texts = [wording(rng, first, facts), wording(rng, second, other)]
    rng.shuffle(texts)
    return texts[0], texts[1]


def split(rng: Random, templates: tuple[str, ...], denials: Concept, count: int) -> Examples:
    """Pairs, every second one a paraphrase, the others of each of KINDS in turn."""

    def make(index: int) -> Example:
        is_paraphrase = index % 2 == 1
        kind = "same" if is_paraphrase else KINDS[index // 2 % len(KINDS)]
        return pair(rng, templates, denials, kind), int(is_paraphrase)

    return sample(count, make)


def generate() -> tuple[Examples, Examples]:
    """Train and dev, from word orders and denials that they don't share."""
    rng = Random(SEED)
    return (
        split(rng, TRAIN_TEMPLATES, TRAIN_DENIALS, TRAIN),
        split(rng, DEV_TEMPLATES, DEV_DENIALS, DEV),
    )


TASK = BuiltIn(
    name="paraphrase",
    summary="do two sentences say the same (synthetic)",
    kind="classes",
    metrics=("f1", "accuracy"),
    labels=("different", "paraphrase"),
    generate=generate,
)
