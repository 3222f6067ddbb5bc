"""The results as a table of 100 columns: every ratio with its range, its floor, and whether met.

python benchmarks/tables.py benchmarks/results/speed.json     prints it without measuring
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plan
from peers import as_good, learning, settings_of, told
from plan import Floor, Setting
from ratios import (
    LEARNS,
    Line,
    Ratio,
    best_first,
    good,
    labelled,
    least_of_peer,
    median,
    paired,
    step_ms,
    verdict,
)
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

WIDTH = 100
Cells = tuple[str, ...]
Memory = dict[str, tuple[str, Floor | None]]  # a line's field: what it is, and its floor
# a heading, the sections below it, the columns, and the rows of a section
Part = tuple[str, list[str], Cells, Callable[[str, list[Line]], list[Cells]]]
HEAD = ("", "ours", "other", "ratio", "range", "floor", "met")


def text(sections: dict[str, dict[str, Any]], parts: list[Part] | None = None) -> str:
    """All that was measured, in the order of the parts.

    Args:
        sections: by name, the machine and the lines, as the file of results holds them.
        parts: the tables; without them those of speed.py.
    """
    out = Console(file=io.StringIO(), width=WIDTH, color_system=None)
    for heading, names, head, rows_of in parts or PARTS:
        measured = [name for name in names if name in sections]
        rows = [row for name in measured for row in rows_of(name, sections[name]["runs"])]
        if rows:
            out.print(_table(heading, head, rows))
    for line in [*_disturbed(sections), *_machines(sections)]:
        out.print(line)
    assert isinstance(out.file, io.StringIO)
    return "\n".join(line.rstrip() for line in out.file.getvalue().splitlines()) + "\n"


def _table(heading: str, head: Cells, rows: list[Cells]) -> Table:
    table = Table(title=heading, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number else "left", no_wrap=number > 0)
    for row in rows:
        table.add_row(*row)
    return table


def as_row(
    what: str, ours: str, other: str, ratio: Ratio | None, floor: Floor | None, digits: int = 2
) -> Cells:
    """A row of `HEAD`."""
    shown, spread = "–", "–"
    if ratio is not None:
        shown = f"{ratio.median:.{digits}f}"
        spread = f"{ratio.low:.{digits}f}–{ratio.high:.{digits}f}"
    met = verdict(ratio.median if ratio else None, floor)
    return what, ours, other, shown, spread, str(floor or ""), met


def _number(value: float | None, unit: str, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f} {unit}"


def lora(name: str, lines: list[Line]) -> list[Cells]:
    """Speed and memory of ours over the peer's."""
    (setting,) = [one for one in plan.LORA if one.name == name]
    return beside(setting, lines, plan.MEMORY)


def beside(setting: Setting, lines: list[Line], memory: Memory) -> list[Cells]:
    """The rows of one setting: the peer at its best, by default and where it needs the least."""
    lines = best_first(lines)
    return [*_speed(setting, lines), *_memory(setting.name, lines, memory)]


def _speed(setting: Setting, lines: list[Line]) -> list[Cells]:
    rows = []
    floors = {"best": setting.speed, LEARNS: setting.learns, "defaults": setting.defaults}
    for label, floor in floors.items():
        own = labelled(lines, label)
        if own or label == "best":
            settings = told(settings_of(own[0])) if own else "did not run"
            rows.append(
                as_row(
                    f"{setting.name}, speed\n  {label}: {settings}",
                    _number(median(labelled(lines, "ours"), "examples_per_s"), "ex/s", 1),
                    _number(median(own, "examples_per_s"), "ex/s", 1),
                    paired(lines, "ours", label, "examples_per_s"),
                    floor,
                )
            )
    return rows


def _memory(name: str, lines: list[Line], memory: Memory) -> list[Cells]:
    ours = labelled(lines, "ours")
    rows = []
    for field, (what, floor) in memory.items():
        known = ours and all(field in line for line in ours)
        least = least_of_peer(lines, field, ours[0]["settings"]["examples"]) if known else None
        if least is not None:
            rows.append(
                as_row(
                    f"{name}, {what}\n  least: {least[1]}",
                    _number(median(ours, field), "MiB"),
                    _number(least[0], "MiB"),
                    Ratio.of(line[field] / least[0] for line in ours),
                    floor,
                )
            )
        elif ours and floor is not None:  # no floor goes by without a word
            rows.append(as_row(f"{name}, {what}\n  not measured", "–", "–", None, floor))
    return rows


def methods(_: str, lines: list[Line]) -> list[Cells]:
    """Step time beside LoRA's, and memory."""
    lines = [line | {"step_ms": step_ms(line)} for line in good(lines)]
    rows = []
    for name, (floor, _options) in {"lora": (None, {}), **plan.METHODS}.items():
        own = labelled(lines, name)
        ratio = paired(lines, name, "lora", "step_ms")
        *_, shown, spread, bound, met = as_row(name, "", "", ratio, floor)
        step = _number(median(own, "step_ms"), "ms")
        memory = [_number(median(own, field), "MiB") for field in ("above_mib", "weights_mib")]
        rows.append((name, step, shown, spread, bound, met, *memory))
    return rows


def full(_: str, lines: list[Line]) -> list[Cells]:
    """Full fine-tuning over the peer's."""
    lines = best_first(lines)
    best = labelled(lines, "best")
    settings = told(settings_of(best[0])) if best else "did not run"
    return [
        as_row(
            f"full fine-tuning, speed\n  best: {settings}",
            _number(median(labelled(lines, "ours"), "examples_per_s"), "ex/s", 1),
            _number(median(best, "examples_per_s"), "ex/s", 1),
            paired(lines, "ours", "best", "examples_per_s"),
            plan.FULL,
        )
    ]


def products(_: str, lines: list[Line]) -> list[Cells]:
    """The products' share of our step."""
    return [
        as_row(
            "matrix products alone, of our epoch's time",
            _number(median(labelled(lines, "ours"), "epoch_s"), "s", 2),
            _number(median(labelled(lines, "products"), "epoch_s"), "s", 2),
            paired(lines, "products", "ours", "epoch_s"),
            plan.PRODUCTS,
        )
    ]


def int8(_: str, lines: list[Line]) -> list[Cells]:
    """Products in eight bits over what auto gives."""
    rows = []
    for model, floor in plan.INT8.items():
        sides = [f"{model}, {precision}" for precision in ("int8", "auto")]
        speeds = [median(labelled(lines, side), "examples_per_s") for side in sides]
        shown = [_number(speed, "ex/s", 1) for speed in speeds]
        ratio = paired(lines, *sides, "examples_per_s")
        rows.append(as_row(f"{model}, speed", shown[0], shown[1], ratio, floor))
    return rows


def growth(_: str, lines: list[Line]) -> list[Cells]:
    """Twice the examples, and memory over the steps."""
    once, twice = (f"{examples} examples" for examples in plan.GROWTH_EXAMPLES)
    lines = [line | {"token_us": 1e6 / line["tokens_per_s"]} for line in good(lines)]
    flat = Ratio.of(
        max(line["over_steps_mib"][5:]) / max(line["over_steps_mib"][:5])
        for line in labelled(lines, twice)
    )
    return [
        as_row(
            f"time a token, {twice} over {once}",
            _number(median(labelled(lines, twice), "token_us"), "µs", 1),
            _number(median(labelled(lines, once), "token_us"), "µs", 1),
            paired(lines, twice, once, "token_us"),
            plan.GROWTH,
        ),
        as_row(
            "most resident, second half of the steps over the first", "", "", flat, plan.FLAT, 3
        ),
    ]


def lengths(_: str, lines: list[Line]) -> list[Cells]:
    """Tokens a second by length and batch size, and attention's share."""
    rows = []
    for length in plan.LENGTHS:
        cells = []
        for size in plan.BATCHES:
            own = labelled(lines, f"batch {size}, {length} tokens")
            cells.append(f"{own[0]['tokens_per_s']:,.0f}" if own else "")
        share = median(labelled(lines, f"attention, {length} tokens"), "attention_share")
        rows.append((str(length), *cells, "–" if share is None else f"{share:.0%}"))
    return [*rows, (where_it_dominates(lines), "", "", "", "")]


def where_it_dominates(lines: list[Line]) -> str:
    """The first length at which attention takes most of the time, in words."""
    shares = {
        length: own[0]["attention_share"]
        for length in plan.LENGTHS
        if (own := labelled(lines, f"attention, {length} tokens"))
    }
    over = [length for length, share in shares.items() if share >= plan.DOMINATES]
    if over:
        return f"attention takes half of the time from {over[0]} tokens on"
    return f"attention takes less than half up to {max(shares, default=0)} tokens"


def scores(_: str, lines: list[Line]) -> list[Cells]:
    """The mean over seeds, and whether it is within reach of the peer's defaults'."""
    lines = [line for line in good(lines) if line.get("score") is not None]
    learn = as_good(lines)
    rows = []
    for label in dict.fromkeys(line["label"] for line in lines):
        own = labelled(lines, label)
        each = [line["score"] for line in own]
        spread = f"± {statistics.stdev(each):.3f}" if len(each) > 1 else ""
        is_peer = own[0]["side"] == "peer"
        remark = ""
        if is_peer and learning(own[0]["settings"]) in learn:
            remark = "learns: not shown to score less than by default"
        rows.append((label, f"{statistics.fmean(each):.3f}", spread, str(len(each)), remark))
    return rows


def _disturbed(sections: dict[str, dict[str, Any]]) -> list[str]:
    """How many processes had not the machine to themselves, or did not come to their end."""
    said = []
    for name, section in sections.items():
        runs = section["runs"]
        kept = [line for line in runs if not line.get("disturbed")]
        beside = sum(line.get("elsewhere", 0) > plan.DISTURBED for line in kept)
        if beside:
            said.append(
                f"{name}: during {beside} of {len(kept)} processes others took more than "
                f"{plan.DISTURBED:.0%} of the machine"
            )
        failures = Counter(line["failed"] for line in runs if "failed" in line)
        said += [f"{name}: {number} without a result: {why}" for why, number in failures.items()]
    return said


def _machines(sections: dict[str, dict[str, Any]]) -> list[str]:
    """What the sections were measured on, each machine and day once."""
    days: dict[str, list[str]] = {}
    for name, section in sections.items():
        on = section["machine"]
        flags = " ".join(on["flags"])
        said = f"{on['processor']}, {on['cores']} cores, {on['memory_mib']:,} MiB, {flags}; "
        said += ", ".join(f"{word} {on[word]}" for word in ("python", "torch", "transformers"))
        said += f", peft {on['peft']}, peftlab {on['peftlab']}; {on['date'][:10]}"
        days.setdefault(said, []).append(name)
    return [f"{', '.join(names)}: {said}" for said, names in days.items()]


PARTS: list[Part] = [
    ("LoRA, ours against HF PEFT with Trainer", [one.name for one in plan.LORA], HEAD, lora),
    (
        "Our methods against our LoRA, roberta/cola",
        ["methods"],
        ("", "step", "ratio", "range", "floor", "met", "above resident", "weights"),
        methods,
    ),
    ("Full fine-tuning, roberta/cola", ["full"], HEAD, full),
    ("Matrix products, roberta/cola", ["products"], HEAD, products),
    ("LoRA with products in int8 against auto, cola", ["int8"], HEAD, int8),
    ("Cost and work, minilm/cola", ["growth"], HEAD, growth),
    (
        "Tokens a second, minilm, by tokens an example",
        ["lengths"],
        ("tokens", *(f"batch {size}" for size in plan.BATCHES), "attention"),
        lengths,
    ),
    (
        f"Scores, minilm, {plan.SCORE_EPOCHS} epochs",
        ["scores"],
        ("", "mean", "sd", "seeds", ""),
        scores,
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    print(
        text(json.loads(parser.parse_args().file.read_text(encoding="utf-8"))["sections"]), end=""
    )


if __name__ == "__main__":
    main()
