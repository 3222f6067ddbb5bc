"""The processes that each section of the benchmark runs; tables.py shows their results."""

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
Side = tuple[str, str, Settings]  # label, script (ours, peer), options


def lora(setting: Setting, bench: Bench) -> None:
    """Ours against the peer at its fastest settings, at the fastest that learn, and by default."""
    workload = {"model": setting.model, "task": setting.task, "examples": setting.examples}
    run = functools.partial(bench.run, **workload)
    sides = _sides(run, _worth_running(bench), peers.as_good(bench.results.lines("scores")))
    if setting.with_defaults:
        sides.append(("defaults", "peer", peers.DEFAULTS))
    for number in bench.each_round():
        for label, side, options in _in_turn(sides, number):
            run(label, side, **options)


def methods(bench: Bench) -> None:
    """Each of our methods beside our own LoRA, in the same round."""
    options_of = {"lora": {}} | {name: options for name, (_, options) in plan.METHODS.items()}
    for number in bench.each_round():
        for name, options in _in_turn(list(options_of.items()), number):
            options = {"method": name, "examples": plan.METHOD_EXAMPLES} | options
            bench.run(name, "ours", "roberta-base", "cola", **options)


def full(bench: Bench) -> None:
    """Full fine-tuning, ours against the peer's at its best settings."""
    workload = {"model": "roberta-base", "task": "cola", "examples": plan.FULL_EXAMPLES}
    run = functools.partial(bench.run, method="full", **workload)
    sides = _sides(run, _worth_running(bench))
    for number in bench.each_round():
        for label, side, options in _in_turn(sides, number):
            run(label, side, **options)


def products(bench: Bench) -> None:
    """The matrix products alone beside the whole step."""
    for number in bench.each_round():
        for side in _in_turn(["ours", "products"], number):
            bench.run(side, side, "roberta-base", "cola", examples=plan.PRODUCT_EXAMPLES)


def int8(bench: Bench) -> None:
    """Our LoRA with its products in eight bits beside those in the precision that auto takes."""
    sides = list(itertools.product(plan.INT8, ("auto", "int8")))
    for number in bench.each_round():
        for model, precision in _in_turn(sides, number):
            options = {"examples": plan.INT8_EXAMPLES, "precision": precision}
            bench.run(f"{model}, {precision}", "ours", model, "cola", **options)


def growth(bench: Bench) -> None:
    """Our LoRA on once and twice the examples."""
    for number in bench.each_round():
        for examples in _in_turn(list(plan.GROWTH_EXAMPLES), number):
            bench.run(f"{examples} examples", "ours", "minilm", "cola", examples=examples)


def lengths(bench: Bench) -> None:
    """Every batch size and length; attention's share at one batch size, in a process of its own."""
    example_mib: dict[int, float] = {}  # by length
    for batch_size, batch_lengths in plan.BATCHES.items():
        for length in batch_lengths:
            label = f"batch {batch_size}, {length} tokens"
            needed_mib = batch_size * example_mib.get(length, 0)
            if needed_mib > plan.MEMORY_SHARE * memory_mib("MemAvailable"):
                bench.skip(label, f"would need about {needed_mib:,.0f} MiB")
                continue
            run = functools.partial(bench.run, model="minilm", task=f"words-{length}")
            options = {"batch_size": batch_size, "examples": max(plan.TOKENS // length, batch_size)}
            line = run(label, "ours", **options)
            example_mib[length] = line.get("above_mib", 0) / batch_size
            if batch_lengths == plan.LENGTHS:
                run(f"attention, {length} tokens", "ours", attention=True, **options)


def scores(bench: Bench) -> None:
    """Do fast settings also learn? Ours, and the peer in its precisions with either batches."""
    options: dict[str, Any] = {"examples": bench.max_examples or 0}  # 0 is all of train
    options |= {"epochs": plan.SCORE_EPOCHS, "lr": plan.SCORE_LR, "score": True}
    precisions = {*_worth_running(bench), peers.DEFAULTS["precision"]}
    candidates = [settings for settings in peers.ALL if settings["precision"] in precisions]
    keys = dict.fromkeys(map(peers.score_key, candidates))
    for seed, task in itertools.product(plan.SCORE_SEEDS, plan.SCORED_TASKS):
        run = functools.partial(bench.run, model=plan.SCORED, task=task, timed=False, seed=seed)
        run(f"{task}, ours", "ours", **options)
        for precision, batches in keys:
            label = f"{task}, {peers.in_words(precision)}, {peers.in_words(batches)}"
            run(label, "peer", precision=precision, batches=batches, **options)


SECTIONS: dict[str, Section] = {
    "scores": scores,  # first: `lora` needs them
    **{setting.name: functools.partial(lora, setting) for setting in plan.LORA},
    "methods": methods,
    "full": full,
    "products": products,
    "int8": int8,
    "growth": growth,
    "lengths": lengths,
}
GROUPS = {"speed": [setting.name for setting in plan.LORA]}


def select_sections(words: str | None) -> list[str]:
    """The sections that a list with commas names; `speed` stands for LoRA's five settings.

    Raises:
        ValueError: for a name that is no section's.
    """
    if words is None:
        return list(SECTIONS)
    names = [name for word in words.split(",") for name in GROUPS.get(word, [word])]
    for name in names:
        if name not in SECTIONS:
            raise ValueError(f"no section {name!r}; there are: speed, {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in names]


def _sides(
    run: Callable[..., Line], precisions: Collection[str], as_good: Collection[peers.ScoreKey] = ()
) -> list[Side]:
    """Ours, and the fastest settings of the peer in a screening that runs each of them once.

    Args:
        run: runs a side once.
        precisions: the precisions to screen.
        as_good: settings of which the fastest runs too; those with random batches are screened for
            this alone, since they are slower.
    """
    grouped = [settings for settings in peers.ALL if settings["batches"] != "random"]
    candidates = [settings for settings in grouped if settings["precision"] in precisions]
    candidates += [
        settings
        for settings in peers.ALL
        if settings not in grouped and peers.score_key(settings) in as_good
    ]
    screened = [run("screen", "peer", **settings) for settings in candidates]
    finalists = peers.fastest(screened, len(FINALISTS))
    sides: list[Side] = [("ours", "ours", {})]
    sides += [(label, "peer", best) for label, best in zip(FINALISTS, finalists, strict=False)]
    learners = [line for line in good(screened) if peers.score_key(line["settings"]) in as_good]
    if learners:
        sides.append((LEARNS, "peer", *peers.fastest(learners)))
    return sides


def _worth_running(bench: Bench) -> list[str]:
    """The peer's precisions, without those that are at most half as fast as the fastest.

    Measured on a batch of the small model: in bf16, with AVX2 alone, a batch of RoBERTa-base takes
    minutes. The results name the precisions that are skipped.
    """
    first = {settings["precision"]: settings for settings in reversed(peers.ALL)}
    probe = functools.partial(bench.run, PROBE, "peer", plan.SCORED, "cola")
    lines = {
        precision: probe(examples=plan.PROBE_EXAMPLES, **settings)
        for precision, settings in first.items()
    }
    speeds = {name: line["examples_per_s"] for name, line in lines.items() if "failed" not in line}
    shares = {name: speed / max(speeds.values()) for name, speed in speeds.items()}
    slow = [name for name, share in shares.items() if share <= plan.SLOW]
    for name in slow:
        bench.skip(
            peers.in_words(name),
            f"{peers.in_words(name)} is {shares[name]:.2f} times as fast as the fastest precision",
        )
    return [name for name in first if name not in slow]


def _in_turn(sides: list[Any], number: int) -> list[Any]:
    """The sides of a round; every second round starts from the other end."""
    return sides if number % 2 else sides[::-1]
