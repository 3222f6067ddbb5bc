"""The results as tables 100 characters wide: every ratio, its range, floor, and whether it is met.

python benchmarks/tables.py benchmarks/results/speed.json     prints them without measuring
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
from peers import as_good, describe, score_key, settings_of
from plan import Floor, Setting
from ratios import (
    LEARNS,
    Line,
    Ratio,
    best_first,
    good,
    groups_of_a_sample,
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
Memory = dict[str, tuple[str, Floor | None]]  # by field of a line: its name, and its floor
# a title, the sections that the table shows, its columns, and the function for a section's rows
Part = tuple[str, list[str], Cells, Callable[[str, list[Line]], list[Cells]]]
HEAD = ("", "ours", "other", "ratio", "range", "floor", "met")


def render(sections: dict[str, dict[str, Any]], parts: list[Part] | None = None) -> str:
    """The tables of all that was measured, then remarks and machines.

    Args:
        sections: by name, the machine and the lines, as the file of results holds them.
        parts: the tables in their order; None for those of speed.py.
    """
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None)
    for title, names, columns, rows_of in parts or PARTS:
        measured = [name for name in names if name in sections]
        rows = [row for name in measured for row in rows_of(name, sections[name]["runs"])]
        if rows:
            console.print(_table(title, columns, rows))
    for line in [*_remarks(sections), *_machines(sections)]:
        console.print(line)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def _table(title: str, columns: Cells, rows: list[Cells]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=number > 0)
    for row in rows:
        table.add_row(*row)
    return table


def as_row(
    name: str, ours: str, other: str, ratio: Ratio | None, floor: Floor | None, digits: int = 2
) -> Cells:
    """A row of a table with the columns `HEAD`."""
    median_ratio, spread = "–", "–"
    if ratio is not None:
        median_ratio = f"{ratio.median:.{digits}f}"
        spread = f"{ratio.low:.{digits}f}–{ratio.high:.{digits}f}"
    met = verdict(ratio.median if ratio else None, floor)
    return name, ours, other, median_ratio, spread, str(floor or ""), met


def _number(value: float | None, unit: str, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f} {unit}"


def lora(name: str, lines: list[Line]) -> list[Cells]:
    """Speed and memory of ours over the peer's."""
    (setting,) = [setting for setting in plan.LORA if setting.name == name]
    return setting_rows(setting, lines, plan.MEMORY)


def setting_rows(setting: Setting, lines: list[Line], memory: Memory) -> list[Cells]:
    """Ours beside the peer at its fastest settings, at its defaults, and at its least memory."""
    lines = best_first(lines)
    return [*_speed(setting, lines), *_memory(setting.name, lines, memory)]


def _speed(setting: Setting, lines: list[Line]) -> list[Cells]:
    rows = []
    floors = {"best": setting.speed, LEARNS: setting.learns, "defaults": setting.defaults}
    for label, floor in floors.items():
        theirs = labelled(lines, label)
        if theirs or label == "best":
            settings = describe(settings_of(theirs[0])) if theirs else "did not run"
            rows.append(
                as_row(
                    f"{setting.name}, speed\n  {label}: {settings}",
                    _number(median(labelled(lines, "ours"), "examples_per_s"), "ex/s", 1),
                    _number(median(theirs, "examples_per_s"), "ex/s", 1),
                    paired(lines, "ours", label, "examples_per_s"),
                    floor,
                )
            )
    return rows


def _memory(name: str, lines: list[Line], memory: Memory) -> list[Cells]:
    ours = labelled(lines, "ours")
    rows = []
    for field, (quantity, floor) in memory.items():
        least = None
        if ours and all(field in line for line in ours):
            least = least_of_peer(lines, field, ours[0]["settings"]["examples"])
        if least is not None:
            rows.append(
                as_row(
                    f"{name}, {quantity}\n  least: {least[1]}",
                    _number(median(ours, field), "MiB"),
                    _number(least[0], "MiB"),
                    Ratio.of(line[field] / least[0] for line in ours),
                    floor,
                )
            )
        elif ours and floor is not None:  # every floor has a row
            rows.append(as_row(f"{name}, {quantity}\n  not measured", "–", "–", None, floor))
    return rows


def methods(_: str, lines: list[Line]) -> list[Cells]:
    """Step time beside LoRA's, and memory."""
    lines = [line | {"step_ms": step_ms(line)} for line in good(lines)]
    rows = []
    for name, (floor, _options) in {"lora": (None, {}), **plan.METHODS}.items():
        of_method = labelled(lines, name)
        ratio = paired(lines, name, "lora", "step_ms")
        _, _, _, *ratio_cells = as_row(name, "", "", ratio, floor)
        step = _number(median(of_method, "step_ms"), "ms")
        memory = [
            _number(median(of_method, field), "MiB") for field in ("above_mib", "weights_mib")
        ]
        rows.append((name, step, *ratio_cells, *memory))
    return rows


def full(_: str, lines: list[Line]) -> list[Cells]:
    """Full fine-tuning over the peer's."""
    lines = best_first(lines)
    best = labelled(lines, "best")
    settings = describe(settings_of(best[0])) if best else "did not run"
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
    """Speed with products in eight bits over the speed in the precision that auto takes."""
    rows = []
    for model, floor in plan.INT8.items():
        sides = [f"{model}, {precision}" for precision in ("int8", "auto")]
        speeds = [median(labelled(lines, side), "examples_per_s") for side in sides]
        shown = [_number(speed, "ex/s", 1) for speed in speeds]
        ratio = paired(lines, *sides, "examples_per_s")
        rows.append(as_row(f"{model}, speed", shown[0], shown[1], ratio, floor))
    return rows


def growth(_: str, lines: list[Line]) -> list[Cells]:
    """Time a token with twice the examples over once, and resident memory over the steps."""
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
            of_cell = labelled(lines, f"batch {size}, {length} tokens")
            cells.append(f"{of_cell[0]['tokens_per_s']:,.0f}" if of_cell else "")
        share = median(labelled(lines, f"attention, {length} tokens"), "attention_share")
        rows.append((str(length), *cells, "–" if share is None else f"{share:.0%}"))
    return [*rows, (where_it_dominates(lines), "", "", "", "")]


def where_it_dominates(lines: list[Line]) -> str:
    """The first length at which attention takes half of the time, in words."""
    shares = {
        length: profiled[0]["attention_share"]
        for length in plan.LENGTHS
        if (profiled := labelled(lines, f"attention, {length} tokens"))
    }
    dominated = [length for length, share in shares.items() if share >= plan.DOMINATES]
    if dominated:
        return f"attention takes half of the time from {dominated[0]} tokens on"
    return f"attention takes less than half up to {max(shares, default=0)} tokens"


def scores(_: str, lines: list[Line]) -> list[Cells]:
    """The mean over seeds, and whether it is as good as the peer's by default."""
    lines = [line for line in good(lines) if line.get("score") is not None]
    good_keys = as_good(lines)
    rows = []
    for label in dict.fromkeys(line["label"] for line in lines):
        of_label = labelled(lines, label)
        values = [line["score"] for line in of_label]
        spread = f"± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        is_peer = of_label[0]["side"] == "peer"
        remark = ""
        if is_peer and score_key(of_label[0]["settings"]) in good_keys:
            remark = "learns: not shown to score less than by default"
        rows.append((label, f"{statistics.fmean(values):.3f}", spread, str(len(values)), remark))
    return rows


def _remarks(sections: dict[str, dict[str, Any]]) -> list[str]:
    """How many processes shared the machine, how many failed, and what is unfair to the peer."""
    remarks = []
    for name, section in sections.items():
        runs = section["runs"]
        counted = [line for line in runs if not line.get("disturbed")]
        n_disturbed = sum(line.get("elsewhere", 0) > plan.DISTURBED for line in counted)
        if n_disturbed:
            remarks.append(
                f"{name}: during {n_disturbed} of {len(counted)} processes others took more than "
                f"{plan.DISTURBED:.0%} of the machine"
            )
        failures = Counter(line["failed"] for line in runs if "failed" in line)
        remarks += [f"{name}: {n} without a result: {reason}" for reason, n in failures.items()]
    unfair = [
        name for name, section in sections.items() if any(map(groups_of_a_sample, section["runs"]))
    ]
    if unfair:
        remarks.append(
            f"{', '.join(unfair)}: Trainer's batches by length are of a sample's small pools and "
            "pad more than on the whole task; ratios over them are too high (LOG.md, 2026-11-30)"
        )
    return remarks


def _machines(sections: dict[str, dict[str, Any]]) -> list[str]:
    """The sections' rounds, and what they were measured on, each machine and day once."""
    sections_of: dict[str, list[str]] = {}
    for name, section in sections.items():
        machine = section["machine"]
        text = f"{machine['processor']}, {machine['cores']} cores, {machine['memory_mib']:,} MiB, "
        text += " ".join(machine["flags"]) + "; "
        text += ", ".join(f"{key} {machine[key]}" for key in ("python", "torch", "transformers"))
        text += f", peft {machine['peft']}, peftlab {_code(machine)}; {machine['date'][:10]}"
        rounds = max((line["round"] for line in section["runs"]), default=0)
        sections_of.setdefault(text, []).append(f"{name} ({rounds} rounds)" if rounds else name)
    return [f"{', '.join(names)}: {text}" for text, names in sections_of.items()]


def _code(machine: dict[str, Any]) -> str:
    """Its version, and its commit, which results before 2026-11-30 lack."""
    if not machine.get("commit"):
        return str(machine["peftlab"])
    dirty = " with changes" if machine["dirty"] else ""
    return f"{machine['peftlab']} at {machine['commit'][:7]}{dirty}"


PARTS: list[Part] = [
    (
        "LoRA, ours against HF PEFT with Trainer",
        [setting.name for setting in plan.LORA],
        HEAD,
        lora,
    ),
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
    results = json.loads(parser.parse_args().file.read_text(encoding="utf-8"))
    print(render(results["sections"]), end="")


if __name__ == "__main__":
    main()
