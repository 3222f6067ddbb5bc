"""acceptability: is this sentence grammatical (stands for CoLA).

Every sentence tests one rule of English grammar, and an unacceptable one breaks just that rule:
only some verbs take an object, a sentence has a verb, "ever" and "any" need a negation before them,
and a verb agrees with its subject though another noun stands nearer. The other words are the same
in both classes, so that only the form of the sentence tells. The last rule is hard, and rare.
Train and dev test the same rules in different frames.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from peftlab.tasks.base import BuiltIn, Examples
from peftlab.tasks.builtin.grammar import (
    PEOPLE,
    PLACES,
    THINGS,
    Example,
    plural,
    sample,
    sentence,
    word,
)

Frames = dict[str, tuple[str, ...]]
Words = dict[str, str]

# The frames of each rule in RULES; the rule's function fills the slots that decide the label.
TRAIN_TEMPLATES: Frames = {
    "object": ("the {person} {did} the {item}", "we saw that the {person} {did} the {item}"),
    "verb": ("the {person} {did_it} {place}", "{place} the {person} {did_it}"),
    "polarity": (
        "{nobody} has ever seen the {item}",
        "{nobody} wanted any {stuff} {place}",
        "{place} {nobody} ever needed the {item}",
    ),
    "agreement": (
        "the {thing} near the {other} {be} {state}",
        "we think the {thing} that the {person} sold {be} {state}",
    ),
}
DEV_TEMPLATES: Frames = {
    "object": ("later the {person} {did} this {item}", "{place} the {person} {did} my {item}"),
    "verb": ("later the {person} {did_it}", "we know that the {person} {did_it} {place}"),
    "polarity": ("{nobody} ever sold this {item}", "{nobody} found any {stuff} {place}"),
    "agreement": (
        "{place} the {thing} from the {other} {be} {state}",
        "the {thing} which the {person} found {be} {state}",
    ),
}
CYCLE = ("object", "verb", "polarity", "object", "verb", "polarity", "agreement")
TRAIN, DEV = 784, 168
SEED = 1

TRANSITIVE = ("lifted", "bought", "needed", "repaired", "lost")
INTRANSITIVE = ("slept", "arrived", "smiled", "sneezed", "waited")
NEGATIVE = ("nobody", "no one", "no {person}")
POSITIVE = ("somebody", "someone", "some {person}")
STUFF = ("bread", "water", "sand", "music", "paint", "furniture", "rice", "advice", "luggage")
BE = (("is", "are"), ("was", "were"), ("has been", "have been"), ("seems", "seem"))
STATES = ("old", "broken", "expensive", "dirty", "heavy", "missing", "ready", "ugly", "famous")


def taking_object(rng: Random, good: bool) -> Words:
    """Only transitive verbs take an object."""
    return {"did": rng.choice(TRANSITIVE if good else INTRANSITIVE)}


def having_verb(rng: Random, good: bool) -> Words:
    """A sentence has a verb."""
    thing = f"the {word(rng, THINGS)}"
    return {"did_it": f"{rng.choice(TRANSITIVE)} {thing}" if good else thing}


def polarity(rng: Random, good: bool) -> Words:
    """A negation must stand before "ever" and "any"."""
    subject = rng.choice(NEGATIVE if good else POSITIVE)
    return {"nobody": subject.format(person=word(rng, PEOPLE)), "stuff": rng.choice(STUFF)}


def agreement(rng: Random, good: bool) -> Words:
    """The verb has the number of its subject, whatever the number of the noun between."""
    is_plural, is_other_plural = rng.random() < 0.5, rng.random() < 0.5
    thing, other = word(rng, THINGS), word(rng, THINGS)
    return {
        "thing": plural(thing) if is_plural else thing,
        "other": plural(other) if is_other_plural else other,
        "be": rng.choice(BE)[is_plural == good],
        "state": rng.choice(STATES),
    }


RULES: dict[str, Callable[[Random, bool], Words]] = {
    "object": taking_object,
    "verb": having_verb,
    "polarity": polarity,
    "agreement": agreement,
}


def split(rng: Random, templates: Frames, count: int) -> Examples:
    """Sentences, every second one acceptable, with the rules in the order of CYCLE."""

    def make(index: int) -> Example:
        rule, good = CYCLE[index // 2 % len(CYCLE)], index % 2 == 1
        words = {"person": word(rng, PEOPLE), "item": word(rng, THINGS), "place": word(rng, PLACES)}
        text = sentence(rng.choice(templates[rule]), {**words, **RULES[rule](rng, good)})
        return (text,), int(good)

    return sample(count, make)


def generate() -> tuple[Examples, Examples]:
    """Train and dev, from frames that they don't share."""
    rng = Random(SEED)
    return split(rng, TRAIN_TEMPLATES, TRAIN), split(rng, DEV_TEMPLATES, DEV)


TASK = BuiltIn(
    name="acceptability",
    summary="is this sentence grammatical (synthetic)",
    kind="classes",
    metrics=("matthews", "accuracy"),
    labels=("unacceptable", "acceptable"),
    generate=generate,
)
