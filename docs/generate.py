"""Write the generated pages of docs/: `make docs`. A test holds that they are current.

docs/cli.md               every command and option, read from the live command line
docs/methods/README.md    every method, read from the registry
docs/python.md            every public name, read from its signature and docstring
docs/which.md             its tables, read from results/ (measured/); likewise those of rates.md,
                          engine.md, reproduction.md and README.md
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer

import peftlab
from peftlab.api import listings
from peftlab.api.export import Exported
from peftlab.api.fit import Fitted
from peftlab.api.plan import Plan
from peftlab.api.reproduce import Reproduction
from peftlab.cli import app
from peftlab.methods import METHODS, Method
from peftlab.methods.peft import InPeft
from peftlab.records.record import Record
from peftlab.records.verdicts import Comparison
from peftlab.settings import Training

DOCS = Path(__file__).parent
sys.path += [str(DOCS), *(str(DOCS.parent / room) for room in ("experiments", "benchmarks"))]
from measured import BLOCKS  # noqa: E402
from measured.text import listed, markdown  # noqa: E402

RETURNED = (Record, Comparison, Plan, Fitted, Exported, Reproduction)
NOTE = "<!-- written by docs/generate.py from the code; `make docs` writes it anew -->"


REQUESTS = ("compare", "fit", "plan", "train")  # commands that make a request of their options


def cli_page() -> str:
    """The reference of the command line."""
    group = typer.main.get_command(app)
    commands = group.commands  # type: ignore[attr-defined]
    rows_of = {name: [_option(one) for one in command.params] for name, command in commands.items()}
    shared = [row for row in rows_of["compare"] if all(row in rows_of[name] for name in REQUESTS)]
    lines = ["# Command line", "", NOTE, ""]
    for name, command in commands.items():
        lines += [f"## peftlab {name}", "", *_paragraphs(command.help), ""]
        own = [row for row in rows_of[name] if name not in REQUESTS or row not in shared]
        if own:
            lines += ["| option | meaning |", "|---|---|", *own, ""]
        if name in REQUESTS:
            lines += ["And the [options of every request](#options-of-every-request).", ""]
    lines += ["## Options of every request", ""]
    lines += [f"Of {listed(REQUESTS)}.", ""]
    lines += ["| option | meaning |", "|---|---|", *shared, ""]
    lines += [
        "Exit codes: 0 all cells done, 1 some failed, 2 wrong request (nothing was trained), "
        "130 Ctrl-C (what is done so far is kept).",
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
    default = parameter.default  # type: ignore[attr-defined]
    if parameter.required:  # type: ignore[attr-defined]
        meaning += " Required."
    elif isinstance(default, str | int | float | Path) and not isinstance(default, bool):
        meaning += f" Default: `{default}`."
    if variable:
        meaning += f" Or the environment's {variable}."
    return f"| `{names}` | {meaning.replace('|', chr(92) + '|')} |"


def methods_page() -> str:
    """The table of methods."""
    head = [*listings.METHODS_HEAD, "lr", "merges", "in HF PEFT's layout"]
    lines = ["# Methods", "", NOTE, ""]
    lines += [
        "Adapter and head: parameters trained on RoBERTa-base with two labels, at default "
        "settings. lr: the default ([where they come from](../rates.md)). merges: whether nothing "
        "is left to compute after [merging](../adapters.md#merging). HF PEFT loads what is saved "
        "in its layout.",
        "",
        markdown(
            head,
            (
                [f"[{name}]({name}.md)", *cells, *_of_method(METHODS[name])]
                for name, *cells in listings.methods()
            ),
        ),
    ]
    lines += ["A method of your own is a class of some twenty lines: [own.md](own.md)."]
    return "\n".join(lines) + "\n"


def _of_method(method: type[Method]) -> list[str]:
    """Its default rate, whether it can be merged, and whether it is saved as PEFT's own are."""
    merges = "yes" if method.mergeable else "no"
    if method.head_alone or method.saves_full_weights:
        merges = "nothing to merge"
    return [f"{method.default_lr:g}", merges, "yes" if issubclass(method, InPeft) else "no"]


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
            lines += [f"Its fields are {listed(inspect.get_annotations(kind))}.", ""]
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


def _filled(page: str, blocks: Mapping[str, Callable[[], str]]) -> str:
    """The page with what lies between the marks of each block written anew."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for name, write in blocks.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{write()}\n{end}{rest.split(end)[1]}"
    return text


PAGES = {
    "cli.md": cli_page,
    "methods/README.md": methods_page,
    "python.md": python_page,
} | {page: functools.partial(_filled, page, blocks) for page, blocks in BLOCKS.items()}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (DOCS / page).write_text(write(), encoding="utf-8")
        print(f"wrote docs/{page}")
