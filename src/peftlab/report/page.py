"""The report as files, from records and curves: the page, figures/*.svg, two tables as JSON."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import inspect
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from peftlab.atomic import replace_file, write
from peftlab.naming import counted
from peftlab.records.record import Environment, Record
from peftlab.records.rows import group
from peftlab.records.store import Store, rounds_of
from peftlab.records.trials import Trial, read_trials
from peftlab.records.verdicts import Comparison, compare_rows
from peftlab.report import standing, text, vega
from peftlab.report.advice import advice, unreached
from peftlab.report.columns import Column
from peftlab.report.command import commands
from peftlab.report.confusion import Confusion, confusions
from peftlab.report.curves import Curves, read
from peftlab.report.disagreements import Answers, answers
from peftlab.report.figures import figures
from peftlab.report.papers import FORMS
from peftlab.report.rates import describe_trials, of_rows
from peftlab.report.runs import runs
from peftlab.report.scores import Table, TableRow, table
from peftlab.report.style import Figure, Style

KINDS = (
    "front",
    "rate",
    "tuning",
    "trials",
    "rank",
    "score",
    "second",
    "loss",
    "speed",
    "peak",
    "memory",
)  # of figures, in the page's order
FOUR = {
    "score": "score over training",
    "second": "second metric over training",
    "speed": "training speed",
    "memory": "memory over training",
}  # figures of the founding report, by kind
SOURCES = Path(__file__).parent
SCRIPTS = (  # the last one starts the others
    "figures",
    "choice",
    "tables",
    "verdicts",
    "runs",
    "disagreements",
    "page",
)
STILLS_BYTES = 700_000  # of the figures as SVG in the page, for readers without JavaScript


def build(
    out: Path,
    suite: str,
    records: Sequence[Record],
    comparison: Comparison | None = None,
    drawn: Sequence[str] = ("svg",),
    sentences: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Path:
    """Write OUT/report from the records, OUT/curves and OUT/predictions; returns the page.

    `comparison` says which rows are better; without one it is computed from the same files.
    `drawn` are the formats, svg and pdf, of the files that figures are written to; as SVG they are
    also in the page, for readers without JavaScript, if the page stays small. `sentences` are dev
    texts that the page may show, by the sha256 of their task's data.
    """
    folder, store = out / "report", Store(out)
    scores = table(records, rounds_of(out))
    comparison = comparison or compare_rows(records, [out])
    read_curves = functools.cache(read)  # figures and runs both need them
    trials = of_rows(read_trials(store.trials.out), scores)
    shown = figures(scores, out / "curves", trials, read_curves)
    stills = {figure.name: vega.svg(figure.spec) for figure in shown} if "svg" in drawn else {}
    extras = Extras(
        confusions=confusions(scores, out / "predictions"),
        answers=answers(scores, out / "predictions", sentences),
        commands=commands(records, store.suites()),
        trials=trials,
        remarks=store.notes(),
        curves={record.cell: read_curves(store.curve(record.cell)) for record in records},
    )
    html = page(suite, scores, comparison, records, extras, shown, stills, vega.bundle())
    if "svg" in drawn:
        encoded = {name: drawing.encode() for name, drawing in stills.items()}
        _write_figures(folder / "figures", encoded, "svg")
    if "pdf" in drawn:
        pages = {figure.name: vega.pdf(figure.spec) for figure in shown}
        _write_figures(folder / "figures", pages, "pdf")
    write(folder / "table.json", json.dumps(scores.as_data(), indent=2, allow_nan=False) + "\n")
    write(folder / "verdicts.json", comparison.model_dump_json(indent=2) + "\n")
    write(folder / "index.html", html)
    return folder / "index.html"


class Extras(NamedTuple):
    """The contents of the page that come from other files than the records.

    Attributes:
        confusions: the confusion matrices of each task.
        answers: of every row, and the tasks whose answers don't fit.
        commands: by cell, the command line that runs it again.
        curves: by cell.
        trials: that found settings.
        remarks: lines on the records that a reader must know.
    """

    confusions: Sequence[tuple[Column, list[Confusion]]] = ()
    answers: tuple[list[Answers], list[str]] = ([], [])
    commands: Mapping[str, str] = {}
    curves: Mapping[str, Curves] = {}
    trials: Sequence[Trial] = ()
    remarks: Sequence[str] = ()


def page(
    suite: str,
    scores: Table,
    comparison: Comparison,
    records: Sequence[Record],
    extras: Extras,
    shown: Sequence[Figure],
    stills: Mapping[str, str],
    bundle: str,
) -> str:
    """The whole page. Names from outside are text in it, never markup and never script."""
    context = {
        "suite": suite,
        "table": scores,
        "comparison": comparison,
        **_verdict_context(scores, comparison),
        **_training_context(scores, records),
        **_run_context(scores, records, extras),
        **_figure_context(scores, shown, stills),
        **_code_context(bundle),
    }
    return _environment().get_template("page.html.j2").render(context)


Context = dict[str, Any]  # the template's variables by name


def _verdict_context(scores: Table, comparison: Comparison) -> Context:
    """Which rows are better, and how certain that is."""
    intervals = standing.intervals(scores, comparison)
    return {
        "unreached": unreached(scores, comparison),
        "advice": advice(comparison),
        "marks": standing.marks(scores, comparison),
        "forms": [(form, form.text(scores, comparison)) for form in FORMS.values()],
        "marks_note": standing.describe_marks(comparison),
        "noise_note": standing.describe_noise(comparison),
        "intervals": intervals,
        "interval_note": standing.describe_interval(scores, intervals),
        "matrices": standing.matrices(scores, comparison),
    }


def _training_context(scores: Table, records: Sequence[Record]) -> Context:
    """The settings that the rows have in common, and where they ran."""
    records = list(itertools.chain.from_iterable(group(records).values()))  # no earlier search's
    return {
        "models": {
            model: sorted({record.precision for record in records if record.model == model})
            for model in dict.fromkeys(record.model for record in records)
        },
        "seeds": sorted({record.seed for record in records}),
        "training": _common_training(scores),
        "colours": Style([row.label for row in scores.rows]).colour,
        "environments": _environments(records),
        "memory_how": sorted({record.memory.how for record in records if record.memory}),
    }


def _run_context(scores: Table, records: Sequence[Record], extras: Extras) -> Context:
    """Single runs, trials and answers."""
    ranks = {rank for *_, cell in text.by_rank(scores) for rank in cell.by_rank}
    return {
        "trials_note": describe_trials(extras.trials, scores),
        "ranks": sorted(ranks, key=int),
        "confusions": extras.confusions,
        "answers": [dataclasses.asdict(task) for task in extras.answers[0]],
        "left_out": extras.answers[1],
        "remarks": extras.remarks,
        "runs": runs(scores, records, extras.commands, extras.curves),
    }


def _figure_context(scores: Table, shown: Sequence[Figure], stills: Mapping[str, str]) -> Context:
    """The figures, numbered in the page's order."""
    ordered = sorted(shown, key=lambda figure: KINDS.index(figure.kind))
    numbered = list(enumerate(ordered, start=1))
    return {
        "figures": {kind: [pair for pair in numbered if pair[1].kind == kind] for kind in KINDS},
        "FOUR": FOUR,
        "four": _four(numbered, scores.columns),
        "stills": {name: Markup(drawing) for name, drawing in _fitting(stills).items()},
        "has_files": bool(stills),
        "config": vega.CONFIG,
    }


def _code_context(bundle: str) -> Context:
    """Style and scripts, and the security policy that lets no other script run."""
    script = "\n".join(_source(f"script/{name}.js") for name in SCRIPTS)
    # the HTML parser must not see the end of the script inside it
    bundle = re.sub(r"</(?=script)", r"<\\/", bundle, flags=re.IGNORECASE)
    return {
        "style": Markup(_source("page.css")),
        "scripts": [Markup(bundle), Markup(script)],
        "policy": " ".join([_hash(bundle), _hash(script), "'unsafe-eval'"]),
    }


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(SOURCES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters |= {
        name: value for name, value in vars(text).items() if inspect.getmodule(value) is text
    }
    environment.filters["counted"] = counted
    environment.filters["own_training"] = _own_training
    environment.filters["untitled"] = lambda spec: {**spec, "title": None}  # the page has it
    return environment


Numbered = tuple[int, Figure]


def _four(
    numbered: Sequence[Numbered], columns: Iterable[Column]
) -> dict[str, dict[str, list[Numbered]]]:
    """The founding report's figures, by task and kind; empty if there are none."""
    tasks = {column.label: {kind: list[Numbered]() for kind in FOUR} for column in columns}
    for number, figure in numbered:
        if figure.kind in FOUR:
            tasks[figure.task][figure.kind].append((number, figure))
    return tasks if any(any(kinds.values()) for kinds in tasks.values()) else {}


def _fitting(stills: Mapping[str, str]) -> Mapping[str, str]:
    """All the still pictures, or none where they would make the page large."""
    size = sum(len(drawing) for drawing in stills.values())
    return stills if size <= STILLS_BYTES else {}


def _source(name: str) -> str:
    return (SOURCES / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """The script's hash, by which the page's security policy lets it run."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _common_training(table: Table) -> dict[str, Any]:
    """The training settings on which all methods agree, without those that tasks decide."""
    of_tasks = table.columns[0].training if table.columns else {}
    first, *others = [row.training for row in table.rows] or [{}]
    return {
        name: value
        for name, value in first.items()
        if name not in of_tasks and all(other.get(name, ...) == value for other in others)
    }


def _own_training(row: TableRow, common: dict[str, Any], table: Table) -> dict[str, Any]:
    of_tasks = table.columns[0].training if table.columns else {}
    return {
        name: value
        for name, value in row.training.items()
        if name not in common and name not in of_tasks
    }


def _environments(records: Iterable[Record]) -> list[tuple[Environment, int]]:
    """Every machine and set of versions that cells ran on, with the number of cells."""
    counts = Counter(record.environment.model_dump_json() for record in records)
    return [(Environment.model_validate_json(dump), n) for dump, n in counts.most_common()]


def _write_figures(folder: Path, drawings: dict[str, bytes], kind: str) -> None:
    """Write the figures and remove those of an earlier report, which are out of date."""
    for name, drawing in drawings.items():
        replace_file(folder / f"{name}.{kind}", functools.partial(Path.write_bytes, data=drawing))
    for path in folder.glob(f"*.{kind}"):
        if path.stem not in drawings:
            path.unlink()
