"""Write the generated pages of docs/: `make docs`. A test holds that they are current.

docs/cli.md               every command and option, read from the live command line
docs/methods/README.md    every method, read from the registry
docs/python.md            every public name, read from its signature and docstring
docs/which.md             its tables, read from results/
docs/reproduction.md      its tables, likewise (reproduced/)
README.md                 table 1 of it
"""

from __future__ import annotations

import inspect
import re
import statistics
import sys
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import typer
from scipy.stats import ttest_1samp

import peftlab
from peftlab.api import listings
from peftlab.api.fit import Fitted
from peftlab.api.plan import Plan
from peftlab.api.reproduce import Reproduction
from peftlab.cli import app
from peftlab.methods import METHODS
from peftlab.records.record import Record
from peftlab.records.trials import read_trials
from peftlab.records.verdicts import Comparison
from peftlab.report.advice import advice
from peftlab.report.standing import mark
from peftlab.settings import Training

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "results"
TUNED = RESULTS / "minilm"
sys.path += [str(DOCS), str(DOCS.parent / "experiments")]
from again import stay  # noqa: E402
from defaults import Score, choose, mean, standard_error  # noqa: E402  # the protocol's own rule
from reproduced import BLOCKS  # noqa: E402
from reproduced.scores import scores_table  # noqa: E402
from whole import whole  # noqa: E402

RETURNED = (Record, Comparison, Plan, Fitted, Reproduction)
NOTE = "<!-- written by docs/generate.py from the code; `make docs` writes it anew -->"


def cli_page() -> str:
    """The reference of the command line."""
    group = typer.main.get_command(app)
    lines = ["# Command line", "", NOTE, ""]
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        lines += [f"## peftlab {name}", "", *_paragraphs(command.help), ""]
        rows = [_option(parameter) for parameter in command.params]
        if rows:
            lines += ["| option | meaning |", "|---|---|", *rows, ""]
    lines += [
        "Exit codes: 0 all cells done, 1 some failed, 2 wrong request (nothing was trained), "
        "130 Ctrl-C (what is finished is kept).",
    ]
    return "\n".join(lines) + "\n"


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) if part.strip() else "" for part in text.strip().split("\n\n")]


def _option(parameter: object) -> str:
    names = " / ".join([*parameter.opts, *parameter.secondary_opts])  # type: ignore[attr-defined]
    if parameter.param_type_name == "argument":  # type: ignore[attr-defined]
        names = names.upper()
    variable = parameter.envvar  # type: ignore[attr-defined]
    meaning = parameter.help or ""  # type: ignore[attr-defined]
    if variable:
        meaning += f" Or the environment's {variable}."
    return f"| `{names}` | {meaning.replace('|', chr(92) + '|')} |"


def methods_page() -> str:
    """The table of methods."""
    head = [*listings.METHODS_HEAD, "lr"]
    lines = ["# Methods", "", NOTE, ""]
    lines += [
        "Adapter and head: numbers trained on RoBERTa-base with two labels, at default settings. "
        "lr: the default ([where they come from](../rates.md)).",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    for name, *cells in listings.methods():
        rate = f"{METHODS[name].default_lr:g}"
        lines.append(f"| [{name}]({name}.md) | {' | '.join([*cells, rate])} |")
    lines += ["", "A method of your own is a class of some twenty lines: [own.md](own.md)."]
    return "\n".join(lines) + "\n"


def python_page() -> str:
    """The reference of what `import peftlab` gives."""
    lines = ["# Python", "", NOTE, ""]
    lines += [
        "What `import peftlab` gives; all else may change. Nothing heavy is imported before its "
        f"first use. Beside what follows, each method is a class: {_classes()}. Its fields are the "
        "settings of its [card](methods/README.md).",
        "",
    ]
    for name in peftlab.__all__[1:]:  # the first is the version
        lines += _public(name, getattr(peftlab, name))
    lines += ["## What comes back", ""]
    for kind in RETURNED:
        lines += [f"### {kind.__name__}", "", *_sections(kind), ""]
        if "Attributes:" not in str(kind.__doc__):
            lines += [f"Its fields are {_names(inspect.get_annotations(kind))}.", ""]
    lines += ["## Settings of a training", ""]
    lines += ["What `**training` takes, and a suite file's table `training`.", ""]
    lines += ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in Training.model_fields.items():
        lines.append(f"| `{name}` | `{field.default}` | {field.description} |")
    return "\n".join(lines) + "\n"


def _classes() -> str:
    classes = sorted((method.__name__, name) for name, method in METHODS.items())
    return ", ".join(f"[`{kind}`](methods/{name}.md)" for kind, name in classes)


def _public(name: str, thing: Any) -> list[str]:
    lines = [f"## peftlab.{name}", ""]
    if not inspect.isclass(thing) or name == "Task":
        lines += ["```py", _signature(name, thing), "```", ""]
    lines += [*_sections(thing), ""]
    if methods := _methods(thing) if inspect.isclass(thing) else []:
        lines += ["**Methods**", "", *methods, ""]
    return lines


def _methods(kind: type) -> list[str]:
    """The class's own, its properties among them, with the first line of what they say."""
    found = {name: getattr(kind, name) for name in vars(kind) if not name.startswith("_")}
    told = {
        name: inspect.getdoc(value)
        for name, value in found.items()
        if inspect.isroutine(value) or isinstance(value, property)
    }
    return [f"- `{name}`: {text.splitlines()[0]}" for name, text in told.items() if text]


def _signature(name: str, thing: Any) -> str:
    """As written: a parameter a line."""
    signature = inspect.signature(thing)
    parts = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts += ["*"]
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        star = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        parts.append(f"{star}{parameter.name}: {parameter.annotation}{default}")
    end = f") -> {signature.return_annotation}"
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), end])


def _sections(thing: Any) -> list[str]:
    """A docstring as Markdown: a section's entries are a list."""
    lines: list[str] = []
    entries = False
    for line in str(inspect.getdoc(thing)).splitlines():
        section = re.fullmatch(r"(Args|Attributes|Returns|Raises):", line)
        if section:
            entries = section[1] != "Returns"
            lines += [f"**{section[1]}**", ""]
        elif entries and re.match(r" {4}\w", line):
            entry, told = line.strip().split(": ", 1)
            lines.append(f"- `{entry}`: {told}")
        else:
            lines.append(f"  {line.strip()}" if entries and line.strip() else line.strip())
    return lines


def which_page() -> str:
    """The page as it is, its tables written anew from results/."""
    blocks = {"tuned": tuned_table, "protocol": protocol_tables, "seeds": seeds_table}
    return _filled("which.md", blocks)


def reproduction_page() -> str:
    """Likewise."""
    return _filled("reproduction.md", BLOCKS)


def readme() -> str:
    """Likewise."""
    return _filled("../README.md", {"table": lambda: scores_table("docs/methods")})


def _filled(page: str, blocks: Mapping[str, Callable[[], str]]) -> str:
    """The page with what lies between the marks of each block written anew."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for name, write in blocks.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{write()}\n{end}{rest.split(end)[1]}"
    return text


def tuned_table() -> str:
    """All methods tuned alike: scores with their intervals, marks against the best, rates found."""
    found = _comparison(TUNED / "verdicts.json")
    own = {(one.row, one.task): one for one in found.own}
    tasks = sorted({task for _, task in own})
    best = {task: max((o.mean, o.row) for o in found.own if o.task == task)[1] for task in tasks}
    rates = {
        (trial.label, trial.task): f"{trial.values['lr']:.2g}{'†' * ('lr' in trial.at_border)}"
        for trial in read_trials(TUNED / "tuning")
        if trial.chosen
    }
    head = ["method", *tasks, *(f"lr, {task}" for task in tasks)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in dict.fromkeys(row for row, _ in own):
        cells = [
            f"{own[row, task].mean:.3f} ± {own[row, task].high - own[row, task].mean:.3f} "
            f"{mark([pair for pair in found.pairs if pair.task == task], row, best[task])}".strip()
            for task in tasks
        ]
        lines.append(_line([f"[{row}](methods/{row}.md)", *cells, *(rates[row, t] for t in tasks)]))
    second = _comparison(TUNED / "again" / "second.json")
    again = stay(_comparison(TUNED / "again" / "first.json"), second)
    told, stays, turned = (sum(one[i] for one in again.values()) for i in range(3))
    rows = sorted({row for pair in second.pairs for row in (pair.a, pair.b)})
    said = (
        f"With five other seeds {stays} of the {told} verdicts better or worse among "
        f"{_names(rows)} are the same, and {turned} turn around (`python experiments/again.py`)."
    )
    return "\n".join([*lines, "", _wrapped(advice(found)), "", _wrapped(said), ""])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _comparison(file: Path) -> Comparison:
    return Comparison.model_validate_json(file.read_text(encoding="utf-8"))


class Measured(NamedTuple):
    """What the protocol's cells say of one method on one model."""

    rate: float
    accuracy: float
    error: float
    speed: float  # of lora's
    unsteady: float  # the fastest of its cells on a task over the slowest, where that is most
    peak: float  # of lora's
    adapter: int


Cells = dict[str, list[Record]]  # by task


def protocol_tables() -> str:
    """For each model a row for each method all of whose cells are there, and what they are of."""
    return "\n".join(_protocol(folder) for folder in sorted((RESULTS / "defaults").iterdir()))


def _protocol(folder: Path) -> str:
    cells: dict[str, Cells] = defaultdict(lambda: defaultdict(list))
    for record in whole(folder):
        cells[record.method.name][record.task.name].append(record)
    of_lora = cells["lora"]
    n = {task: len(records) for task, records in of_lora.items()}
    complete = {
        name: measured(cells[name], of_lora)
        for name in METHODS
        if {task: len(records) for task, records in cells[name].items()} == n
    }
    head = ["method", "lr", "accuracy", "examples/s", "unsteady", "peak", "adapter"]
    lines = [f"### {next(iter(of_lora.values()))[0].model.name}", ""]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [_row(name, row) for name, row in complete.items()]
    return "\n".join([*lines, "", _wrapped(_caption(of_lora, complete)), ""])


def _row(name: str, row: Measured) -> str:
    return (
        f"| [{name}](methods/{name}.md) | {row.rate:g} | {row.accuracy:.3f} ± {row.error:.3f} "
        f"| {row.speed:.2f} | {row.unsteady:.1f} | {row.peak:.2f} | {row.adapter:,} |"
    )


def _caption(cells: Cells, rows: dict[str, Measured]) -> str:
    """What the rows are of, which are missing, and which the score doesn't tell from the best."""
    tasks = "; ".join(
        f"`{task}`, {one.task.n_train:,} examples to train on, {one.task.n_dev:,} to judge by, "
        f"{one.training['epochs']} epochs"
        for task, (one, *_) in sorted(cells.items())
    )
    one, *others = next(iter(cells.values()))
    missing = (name for name in METHODS if name not in rows)
    best = max(rows.values(), key=lambda row: row.accuracy)
    near = (name for name, row in rows.items() if row.accuracy >= best.accuracy - best.error)
    return (
        f"On {tasks}. {1 + len(others)} rates a method, seed {one.seed}, "
        f"{one.environment.processor}, {one.environment.threads} thread. "
        f"The head's {one.n_trainable.head:,} numbers are trained besides. "
        f"Not measured, or not whole: {_names(missing)}. "
        f"Within one standard error of the best mean: {_names(near)}."
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False)


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def measured(of_method: Cells, of_lora: Cells) -> Measured:
    """What a method's cells say beside lora's on the same tasks, of as many rates each."""
    scores: dict[float, dict[str, Score]] = defaultdict(dict)
    for task, records in of_method.items():
        for record in records:
            accuracy = record.score["accuracy"] if record.score else 0.0
            scores[record.training["lr"]][task] = Score(accuracy, record.task.n_dev)
    rate = choose(scores)
    chosen = [r for records in of_method.values() for r in records if r.training["lr"] == rate]
    alike = [task for task in of_lora if _commits(of_method[task]) == _commits(of_lora[task])]
    speeds = {task: _speeds(of_method[task]) for task in alike}
    return Measured(
        rate,
        mean(scores[rate]),
        standard_error(scores[rate]),
        statistics.geometric_mean(max(speeds[t]) / max(_speeds(of_lora[t])) for t in alike),
        max(max(of_task) / min(of_task) for of_task in speeds.values()),
        statistics.geometric_mean(_peak(of_method[t]) / _peak(of_lora[t]) for t in alike),
        max(record.n_trainable.adapter for record in chosen),
    )


def _commits(records: list[Record]) -> set[str | None]:
    """Of peftlab: another one may be of another speed."""
    return {record.environment.commit for record in records}


def _speeds(records: list[Record]) -> list[float]:
    return [record.speed.examples_per_s for record in records]


def _peak(records: list[Record]) -> float:
    return statistics.median(record.memory.peak_mib for record in records)


def seeds_table() -> str:
    """LoRA beside full fine-tuning, paired by seed: the records of experiments/batches.toml."""
    pairs: dict[str, list[tuple[Record, Record]]] = defaultdict(list)
    of = {(r.task.name, r.seed, r.method.name): r for r in whole(RESULTS / "batches" / "random")}
    for task, seed in sorted({key[:2] for key in of}):
        pairs[task].append((of[task, seed, "full"], of[task, seed, "lora"]))
    head = ["task", "metric", "judged by", "full", "lora", "lora − full", "examples/s", "peak"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(_paired(of_task) for of_task in pairs.values()), ""])


def _paired(pairs: list[tuple[Record, Record]]) -> str:
    task = pairs[0][0].task
    full, lora = (
        [record.score[task.main_metric] for record in of_method]
        for of_method in zip(*pairs, strict=True)
    )
    differences = [b - a for a, b in zip(full, lora, strict=True)]
    interval = ttest_1samp(differences, 0.0).confidence_interval(0.95)
    low, high = (f"{end:+.3f}".replace("-", "−") for end in interval)
    speed = statistics.median(b.speed.examples_per_s / a.speed.examples_per_s for a, b in pairs)
    peak = statistics.median(b.memory.peak_mib / a.memory.peak_mib for a, b in pairs)
    means = [f"{statistics.fmean(of):.3f} ± {statistics.stdev(of):.3f}" for of in (full, lora)]
    cells = [f"`{task.name}`", task.main_metric, str(task.n_dev), *means]
    return f"| {' | '.join([*cells, f'{low} to {high}', f'{speed:.2f}', f'{peak:.2f}'])} |"


PAGES = {
    "cli.md": cli_page,
    "methods/README.md": methods_page,
    "python.md": python_page,
    "which.md": which_page,
    "reproduction.md": reproduction_page,
    "../README.md": readme,
}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (DOCS / page).write_text(write(), encoding="utf-8")
        print(f"wrote docs/{page}")
