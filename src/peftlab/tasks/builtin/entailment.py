"""entailment: does the first sentence imply the second (stands for RTE).

The second sentence, the claim, tells the same event with fewer facts and sometimes less exactly
("a couch" is "a piece of furniture"). It isn't implied if the first sentence only reports a doubted
event ("we doubt that ...") or if one to three of its facts differ. The hard cases are rare: a
single different fact, or a claim that is more exact than the first sentence.
Train and dev use different frames.
"""

from __future__ import annotations

from random import Random

from peftlab.tasks.base import BuiltIn, Examples
from peftlab.tasks.builtin.grammar import (
    HANDLING,
    PEOPLE,
    PLACES,
    THINGS,
    Example,
    Facts,
    Lexicon,
    article,
    concepts,
    group_of,
    sample,
    sentence,
    unrelated,
)

ENTAILED = 0
SLOTS: dict[str, Lexicon] = {"agent": PEOPLE, "act": HANDLING, "thing": THINGS, "place": PLACES}
Frames = dict[str, tuple[str, ...]]

# Premises are "fact" or "report" frames: the former imply what stands in them, the latter don't.
TRAIN_TEMPLATES: Frames = {
    "fact": (
        "{place} the {agent} {act} {thing}",
        "{thing} was {act} by the {agent} {place}",
        "we know that the {agent} {act} {thing} {place}",
    ),
    "report": (
        "we doubt that the {agent} {act} {thing} {place}",
        "nobody thinks that the {agent} {act} {thing} {place}",
    ),
    "claim": ("the {agent} {act} {thing}", "{thing} was {act} {place}"),
}
DEV_TEMPLATES: Frames = {
    "fact": (
        "it was the {agent} who {act} {thing} {place}",
        "{place} {thing} was {act} by the {agent}",
        "it is known that the {agent} {act} {thing} {place}",
    ),
    "report": (
        "it is doubtful that the {agent} {act} {thing} {place}",
        "nobody claims that {thing} was {act} by the {agent} {place}",
    ),
    "claim": ("{thing} was {act} by the {agent}", "someone {act} {thing} {place}"),
}
KINDS = (
    *("report", "three", "two", "report", "three", "report", "two", "exact"),
    *("report", "three", "two", "report", "three", "report", "two", "one"),
)
CHANGES = {"one": 1, "two": 2, "three": 3}  # each claim states three facts
TRAIN, DEV = 960, 240
SEED = 3


def wording(rng: Random, frame: str, facts: Facts, exact: bool) -> str:
    """A sentence that states the facts and names the thing by its hypernym unless `exact`."""
    words = {slot: rng.choice(concept) for slot, concept in facts.items()}
    thing = words["thing"] if exact else group_of(THINGS, facts["thing"])
    return sentence(frame, {**words, "thing": article(thing)})


def replace_facts(rng: Random, facts: Facts, claim: str, changes: int) -> Facts:
    """The facts, with `changes` of those that the frame `claim` states replaced."""
    stated = [slot for slot in SLOTS if f"{{{slot}}}" in claim]
    slots = rng.sample(stated, changes)
    return {**facts, **{slot: unrelated(rng, SLOTS[slot], facts[slot]) for slot in slots}}


def pair(rng: Random, frames: Frames, kind: str) -> tuple[str, str]:
    """Premise and claim; `kind` is "entailed" or one of KINDS, the ways not to be entailed."""
    facts = {slot: rng.choice(concepts(lexicon)) for slot, lexicon in SLOTS.items()}
    premise = rng.choice(frames["report" if kind == "report" else "fact"])
    claim = rng.choice(frames["claim"])
    claimed_facts = replace_facts(rng, facts, claim, CHANGES.get(kind, 0))
    exact = kind == "exact" or rng.random() < 0.5
    return (
        wording(rng, premise, facts, exact=kind != "exact"),
        wording(rng, claim, claimed_facts, exact),
    )


def split(rng: Random, frames: Frames, count: int) -> Examples:
    """Pairs, every second one entailed, the others of each of KINDS in turn."""

    def make(index: int) -> Example:
        label = index % 2
        kind = "entailed" if label == ENTAILED else KINDS[index // 2 % len(KINDS)]
        return pair(rng, frames, kind), label

    return sample(count, make)


def generate() -> tuple[Examples, Examples]:
    """Train and dev, from frames that they don't share."""
    rng = Random(SEED)
    return split(rng, TRAIN_TEMPLATES, TRAIN), split(rng, DEV_TEMPLATES, DEV)


TASK = BuiltIn(
    name="entailment",
    summary="does one sentence imply another (synthetic)",
    kind="classes",
    metrics=("accuracy",),
    labels=("entailment", "not_entailment"),
    generate=generate,
)
