"""similarity: how much of what two sentences say is the same, from 0 to 5 (stands for STS-B).

A sentence states three facts: who did what to which thing. Its pair says the same in another word
order with other wordings ("couch", "sofa"), but some facts are changed. A fact counts 1 if its
concept is the same, 1/2 if it is a related one ("couch", "bench") or left vague ("something"), 0
otherwise. The label is 5 times the mean, and only a quarter of that if one of the two sentences is
denied ("nobody believes that ..."). Counting shared words isn't enough: a model must see through
synonyms and the passive. Train and dev use different word orders and different denials.
"""

from __future__ import annotations

from random import Random

from peftlab.tasks.base import BuiltIn, Examples
from peftlab.tasks.builtin.grammar import (
    DEV_DENIALS,
    HANDLING,
    PEOPLE,
    THINGS,
    TRAIN_DENIALS,
    Concept,
    Example,
    Facts,
    Lexicon,
    concepts,
    related,
    sample,
    unrelated,
    with_the,
    wording,
)

SLOTS: dict[str, Lexicon] = {
    "agent": with_the(PEOPLE),
    "act": HANDLING,
    "thing": with_the(THINGS),
}
VAGUE: dict[str, Concept] = {"agent": ("somebody", "someone"), "thing": ("something",)}
TRAIN_TEMPLATES = (
    "{agent} {act} {thing}",
    "{thing} was {act} by {agent}",
    "it was {thing} that {agent} {act}",
)
DEV_TEMPLATES = (
    "it was {agent} who {act} {thing}",
    "{thing} had been {act} by {agent}",
    "{agent} had {act} {thing}",
)
TRAIN, DEV = 600, 168
SEED = 4


def random_facts(rng: Random) -> Facts:
    return {slot: rng.choice(concepts(lexicon)) for slot, lexicon in SLOTS.items()}


def change_facts(rng: Random, facts: Facts, changes: int) -> tuple[Facts, float]:
    """The facts with `changes` of them changed, and the label of the pair."""
    other, points = dict(facts), float(len(SLOTS))
    for slot in rng.sample(list(SLOTS), changes):
        change = rng.choice(("vague", "related", "unrelated"))
        if change == "vague" and slot in VAGUE:
            other[slot], loss = VAGUE[slot], 0.5
        elif change == "unrelated":
            other[slot], loss = unrelated(rng, SLOTS[slot], facts[slot]), 1.0
        else:
            other[slot], loss = related(rng, SLOTS[slot], facts[slot]), 0.5
        points -= loss
    return other, 5 * points / len(SLOTS)


def split(rng: Random, templates: tuple[str, ...], denials: Concept, count: int) -> Examples:
    """Pairs in which 0, 1, 2 or 3 facts differ, equally often; in every third one is denied."""

    def make(index: int) -> Example:
        facts = random_facts(rng)
        other, label = change_facts(rng, facts, index % (len(SLOTS) + 1))
        first, second = rng.sample(templates, 2)
        if index % 3 == 0:
            second, label = f"{rng.choice(denials)} {second}", label / 4
        texts = [wording(rng, first, facts), wording(rng, second, other)]
        rng.shuffle(texts)
        return tuple(texts), round(label, 3)

    return sample(count, make)


def generate() -> tuple[Examples, Examples]:
    """Train and dev, from word orders and denials that they don't share."""
    rng = Random(SEED)
    return (
        split(rng, TRAIN_TEMPLATES, TRAIN_DENIALS, TRAIN),
        split(rng, DEV_TEMPLATES, DEV_DENIALS, DEV),
    )


TASK = BuiltIn(
    name="similarity",
    summary="how much two sentences say in common, 0 to 5 (synthetic)",
    kind="regression",
    metrics=("pearson", "spearman"),
    labels=(),
    generate=generate,
)
