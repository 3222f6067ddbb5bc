"""acceptability: is this sentence grammatical (stands for CoLA).

Every sentence tests one rule of English grammar; the unacceptable one breaks just that rule:
agreement of the verb with a noun that is not the nearest, the verb's form after an auxiliary,
reflexives, which verbs take an object, "much" and "many", "ever" without a negation. A sentence
has sensible words in a sensible order either way, so that only its form tells.
Train and dev test the same rules in different frames.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from peftlab.tasks.base import BuiltIn, Examples
from peftlab.tasks.grammar import (
    PEOPLE,
    PLACES,
    THINGS,
    Example,
    concepts,
    plural,
    sample,
    sentence,
)

Words = dict[str, str]

# A frame's name is the rule that it tests; see RULES for the slots.
TRAIN_TEMPLATES = {
    "agreement": (
        "the {thing} near the {other} {be} {state}",
        "we think the {thing} that the {person} sold {be} {state}",
    ),
    "object": (
        "the {person} {does} the {simple}",
        "we saw that the {person} {does} the {simple} {place}",
    ),
    "complement": (
        "the {person} {likes} the {simple}",
        "{place} the {person} {likes} the {simple}",
    ),
    "comparison": (
        "the {simple} is {more} the {unlike}",
        "we think that this {simple} was {more} the {unlike}",
    ),
    "amount": ("the {person} needs {much}", "there was not {much} {place}"),
    "polarity": ("{nobody} has ever seen the {simple}", "{nobody} wanted any {stuff} {place}"),
    "order": ("the {person} {slowly} the {simple}", "{place} the {person} {slowly} the {simple}"),
}
DEV_TEMPLATES = {
    "agreement": (
        "{place} the {thing} from the {other} {be} {state}",
        "the {thing} which the {person} found {be} {state}",
    ),
    "object": ("later the {person} {does} a {simple}", "{place} the {person} {does} my {simple}"),
    "complement": (
        "later the {person} {likes} my {simple}",
        "we know that the {person} {likes} a {simple}",
    ),
    "comparison": (
        "my {simple} looks {more} the {unlike}",
        "{place} the {simple} seemed {more} our {unlike}",
    ),
    "amount": ("we did not see {much} {place}", "did the {person} buy {much}?"),
    "polarity": ("{nobody} ever sold a {simple}", "{nobody} found any {stuff} {place}"),
    "order": ("later the {person} {slowly} my {simple}", "we know the {person} {slowly} a {simple}"),
}
CYCLE = ("object", "polarity", "order", "object", "polarity", "order", "agreement")
TRAIN, DEV = 960, 280
SEED = 1

STATES = ("old", "broken", "expensive", "dirty", "heavy", "missing", "ready", "ugly", "famous")
STUFF = ("bread", "water", "sand", "music", "paint", "furniture", "rice", "advice", "luggage")
BE = (("is", "are"), ("was", "were"), ("has been", "have been"), ("seems", "seem"))
TRANSITIVE = ("lifted", "bought", "needed", "repaired", "carried", "dropped", "noticed", "lost")
INTRANSITIVE = ("slept", "arrived", "smiled", "vanished", "coughed", "sneezed", "waited", "fainted")
TO_VERBS = ("wanted", "hoped", "refused", "decided", "promised", "agreed", "planned", "offered")
ING_VERBS = ("enjoyed", "avoided", "finished", "kept", "denied", "suggested", "practiced")
DEEDS = ("paint", "repair", "clean", "sell", "photograph", "carry", "polish", "draw", "lift")
COMPARATIVES = {
    "heavy": "heavier",
    "old": "older",
    "cheap": "cheaper",
    "large": "larger",
    "dirty": "dirtier",
    "ugly": "uglier",
    "new": "newer",
    "small": "smaller",
}
ADVERBS = ("slowly", "quickly", "carefully", "secretly", "often", "suddenly", "proudly", "quietly")
NEGATIVE = ("nobody", "no one", "no {person}", "neither {person}")
POSITIVE = ("somebody", "someone", "some {person}", "the {person}")


def noun(rng: Random, lexicon: dict[str, tuple[tuple[str, ...], ...]]) -> str:
    return rng.choice(rng.choice(concepts(lexicon)))


def agreement(rng: Random, good: bool) -> Words:
    """The verb has the number of the subject, or else the opposite one."""
    many, others = rng.random() < 0.5, rng.random() < 0.5
    thing, other = noun(rng, THINGS), noun(rng, THINGS)
    return {
        "thing": plural(thing) if many else thing,
        "other": plural(other) if others else other,
        "be": rng.choice(BE)[many == good],
        "state": rng.choice(STATES),
    }


def taking_object(rng: Random, good: bool) -> Words:
    """Only transitive verbs take an object."""
    return {"does": rng.choice(TRANSITIVE if good else INTRANSITIVE)}


def complement(rng: Random, good: bool) -> Words:
    """Some verbs want "to lift" after them, others "lifting"."""
    to, deed = rng.random() < 0.5, rng.choice(DEEDS)
    verb = rng.choice(TO_VERBS if to == good else ING_VERBS)
    return {"likes": f"{verb} {f'to {deed}' if to else f'{deed}ing'}"}


def comparison(rng: Random, good: bool) -> Words:
    """"Older than" and "as old as", but not "more older than", "old than" or "as older as"."""
    plain, more = rng.choice(list(COMPARATIVES.items()))
    right = (f"{more} than", f"as {plain} as", f"much {more} than")
    wrong = (f"{plain} than", f"as {more} as", f"more {more} than")
    return {"more": rng.choice(right if good else wrong), "unlike": noun(rng, THINGS)}


def order(rng: Random, good: bool) -> Words:
    """An adverb stands before the verb, not between the verb and its object."""
    verb, adverb = rng.choice(TRANSITIVE), rng.choice(ADVERBS)
    return {"slowly": f"{adverb} {verb}" if good else f"{verb} {adverb}"}


def amount(rng: Random, good: bool) -> Words:
    """ "Many" counts things, "much" measures stuff."""
    counted = rng.random() < 0.5
    what = plural(noun(rng, THINGS)) if counted else rng.choice(STUFF)
    return {
        "much": f"{rng.choice(('', 'so ', 'too '))}{'many' if counted == good else 'much'} {what}"
    }


def polarity(rng: Random, good: bool) -> Words:
    """ "Ever" and "any" want a negation before them."""
    subject = rng.choice(NEGATIVE if good else POSITIVE)
    return {"nobody": subject.format(person=noun(rng, PEOPLE)), "stuff": rng.choice(STUFF)}


RULES: dict[str, Callable[[Random, bool], Words]] = {
    "agreement": agreement,
    "object": taking_object,
    "complement": complement,
    "comparison": comparison,
    "amount": amount,
    "polarity": polarity,
    "order": order,
}


def split(rng: Random, templates: dict[str, tuple[str, ...]], count: int) -> Examples:
    """Sentences, every second one acceptable, with the rules in turn."""

    def make(index: int) -> Example:
        good = index % 2 == 1
        rule = CYCLE[index // 2 % len(CYCLE)]
        words = {
            "person": noun(rng, PEOPLE),
            "simple": noun(rng, THINGS),
            "place": rng.choice(rng.choice(concepts(PLACES))),
        }
        text = sentence(rng.choice(templates[rule]), {**words, **RULES[rule](rng, good)})
        return (text,), int(good)

    drawn = sample(count, make)
    return Examples([texts for texts, _ in drawn], [int(label) for _, label in drawn])


def generate() -> tuple[Examples, Examples]:
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


def dev_tags(): return [CYCLE[i//2%len(CYCLE)] for i in range(DEV)]
