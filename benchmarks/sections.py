"""What each section of the benchmark runs. What comes of it, tables.py says."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection
from typing import Any

import peers
import plan
from peers import Settings
from plan import Setting
from ratios import FINALISTS, LEARNS, PROBE, good
from runs import Bench, Line, memory_mib

Section = Callable[[Bench], None]
Side = tuple[str, str, Settings]  # a label, whose script, its options


def lora(setting: Setting, bench: Bench) -> None:
    """Ours against the peer at its fastest, at its fastest that learn, and by default."""
    asked = {"model": setting.model, "task": setting.task, "examples": setting.examples}
    of = functools.partial(bench.run, **asked)
    sides = _sides(of, _worth_running(bench), peers.as_good(bench.results.lines("scores")))
    if setting.with_defaults:
        sides.append(("defaults", "peer", peers.DEFAULTS))
    for number in bench.each_round():
        for label, side, options in _turned(sides, number):
            of(label, side, **options)


def methods(bench: Bench) -> None:
    """Each of our methods beside our own LoRA, in the same round."""
    for number in bench.each_round():
        asked = {"lora": {}} | {name: options for name, (_, options) in plan.METHODS.items()}
        for name, options in _turned(list(asked.items()), number):
            options = {"method": name, "examples": plan.METHOD_EXAMPLES} | options
            bench.run(name, "ours", "roberta-base", "cola", **options)


def full(bench: Bench) -> None:
    """Full fine-tuning, ours against the peer's at its best settings."""
    asked = {"model": "roberta-base", "task": "cola", "examples": plan.FULL_EXAMPLES}
    of = functools.partial(bench.run, method="full", **asked)
    sides = _sides(of, _worth_running(bench))
    for number in bench.each_round():
        for label, side, options in _turned(sides, number):
            of(label, side, **options)


def products(bench: Bench) -> None:
    """The matrix products alone beside the whole step."""
    for number in bench.each_round():
        for side in _turned(["ours", "products"], number):
            bench.run(side, side, "roberta-base", "cola", examples=plan.PRODUCT_EXAMPLES)


def int8(bench: Bench) -> None:
    """Our LoRA with its products in eight bits beside what auto gives."""
    sides = list(itertools.product(plan.INT8, ("auto", "int8")))
    for number in bench.each_round():
        for model, precision in _turned(sides, number):
            options = {"examples": plan.INT8_EXAMPLES, "precision": precision}
            bench.run(f"{model}, {precision}", "ours", model, "cola", **options)


def growth(bench: Bench) -> None:
    """Once and twice the examples."""
    for number in bench.each_round():
        for examples in _turned(list(plan.GROWTH_EXAMPLES), number):
            bench.run(f"{examples} examples", "ours", "minilm", "cola", examples=examples)


def lengths(bench: Bench) -> None:
    """Sequence length and batch size; attention's share at one batch size, in its own process."""
    above: dict[int, float] = {}  # by length, memory an example
    for batch_size, some in plan.BATCHES.items():
        for length in some:
            label = f"batch {batch_size}, {length} tokens"
            needed = batch_size * above.get(length, 0)
            if needed > plan.MEMORY_SHARE * memory_mib("MemAvailable"):
                bench.left_out(label, f"would need about {needed:,.0f} MiB")
                continue
            of = functools.partial(bench.run, model="minilm", task=f"words-{length}")
            asked = {"batch_size": batch_size, "examples": max(plan.TOKENS // length, batch_size)}
            line = of(label, "ours", **asked)
            above[length] = line.get("above_mib", 0) / batch_size
            if some == plan.LENGTHS:
                of(f"attention, {length} tokens", "ours", attention=True, **asked)


def scores(bench: Bench) -> None:
    """Does what is fast also learn? The peer in its precisions, with either batches."""
    asked: dict[str, Any] = {"examples": 0, "epochs": plan.SCORE_EPOCHS, "lr": plan.SCORE_LR}
    asked |= {"score": True}
    if bench.most:
        asked |= {"examples": bench.most}
    precisions = {*_worth_running(bench), peers.DEFAULTS["precision"]}
    scored = [one for one in peers.ALL if one["precision"] in precisions]
    peer = dict.fromkeys(peers.learning(one) for one in scored)
    for seed, task in itertools.product(plan.SCORE_SEEDS, plan.SCORED_TASKS):
        of = functools.partial(bench.run, model=plan.SCORED, task=task, timed=False, seed=seed)
        of(f"{task}, ours", "ours", **asked)
        for precision, batches in peer:
            label = f"{task}, {peers.in_words(precision)}, {peers.in_words(batches)}"
            of(label, "peer", precision=precision, batches=batches, **asked)


SECTIONS: dict[str, Section] = {
    "scores": scores,  # first: LoRA's settings ask which of the peer's learn
    **{setting.name: functools.partial(lora, setting) for setting in plan.LORA},
    "methods": methods,
    "full": full,
    "products": products,
    "int8": int8,
    "growth": growth,
    "lengths": lengths,
}
GROUPS = {"speed": [setting.name for setting in plan.LORA]}


def chosen(asked: str | None) -> list[str]:
    """The sections of a list with commas; `speed` stands for LoRA's five settings.

    Raises:
        ValueError: for a name that is none.
    """
    if asked is None:
        return list(SECTIONS)
    names = [name for word in asked.split(",") for name in GROUPS.get(word, [word])]
    for name in names:
        if name not in SECTIONS:
            raise ValueError(f"no section {name!r}; there are: speed, {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in names]


def _sides(
    of: Callable[..., Line], precisions: Collection[str], learn: Collection[peers.Learning] = ()
) -> list[Side]:
    """Ours, and the peer's fastest of all its settings run once: the rounds say which is best.

    Args:
        of: runs a side once.
        precisions: of which the settings may be the fastest.
        learn: of which the fastest runs too; random batches are slower, and screened for it alone.
    """
    grouped = [one for one in peers.ALL if one["batches"] != "random"]
    wanted = [one for one in grouped if one["precision"] in precisions]
    wanted += [one for one in peers.ALL if one not in grouped and peers.learning(one) in learn]
    screened = [of("screen", "peer", **one) for one in wanted]
    finalists = peers.fastest(screened, len(FINALISTS))
    peer = [(label, "peer", one) for label, one in zip(FINALISTS, finalists, strict=False)]
    learning = [line for line in good(screened) if peers.learning(line["settings"]) in learn]
    if learning:
        peer += [(LEARNS, "peer", *peers.fastest(learning))]
    return [("ours", "ours", {}), *peer]


def _worth_running(bench: Bench) -> list[str]:
    """The peer's precisions, without those that are at most half as fast as another.

    Told by a batch of the small model: in bf16, with AVX2 alone, one of RoBERTa-base's sizes takes
    minutes. The results say what is left out.
    """
    first = {one["precision"]: one for one in reversed(peers.ALL)}
    of = functools.partial(bench.run, PROBE, "peer", plan.SCORED, "cola")
    lines = {name: of(examples=plan.PROBE_EXAMPLES, **one) for name, one in first.items()}
    speeds = {name: line["examples_per_s"] for name, line in lines.items() if "failed" not in line}
    shares = {name: speed / max(speeds.values()) for name, speed in speeds.items()}
    slow = [name for name, share in shares.items() if share <= plan.SLOW]
    for name in slow:
        bench.left_out(
            peers.in_words(name),
            f"{peers.in_words(name)} is {shares[name]:.2f} times as fast as the fastest precision",
        )
    return [name for name in first if name not in slow]


def _turned(sides: list[Any], number: int) -> list[Any]:
    """The sides of a round; every second round starts from the other end."""
    return sides if number % 2 else sides[::-1]
