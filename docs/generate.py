"""Write the generated pages of docs/: `make docs`. A test checks that they are current.

docs/cli.md               every command and option, read from the live command line
docs/methods/README.md    every method, read from the registry
docs/python.md            every public name, read from its signature and docstring
docs/which.md             its tables, made from results/ by measured/; likewise those of rates.md,
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
REQUESTS = ("compare", "fit", "plan", "train")  # commands that share the options of a request


def cli_page() -> str:
    """The reference of the command line."""
    group = typer.main.get_command(app)
    commands = group.commands  # type: ignore[attr-defined]
    rows_of = {name: list(map(_option_row, command.params)) for name, command in commands.items()}
    shared = [row for row in rows_of["compare"] if all(row in rows_of[name] for name in REQUESTS)]
    lines = ["# Command line", "", NOTE, ""]
    for name, command in commands.items():
        lines += [f"## peftlab {name}", "", *_paragraphs(command.help), ""]
        rows = [row for row in rows_of[name] if name not in REQUESTS or row not in shared]
        if rows:
            lines += ["| option | meaning |", "|---|---|", *rows, ""]
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


def _option_row(parameter: object) -> str:
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
    columns = [*listings.METHODS_HEAD, "lr", "merges", "in HF PEFT's layout"]
    lines = ["# Methods", "", NOTE, ""]
    lines += [
        "Adapter and head: parameters trained on RoBERTa-base with two labels, at default "
        "settings. lr: the default ([where they come from](../rates.md)). merges: whether nothing "
        "is left to compute after [merging](../adapters.md#merging). HF PEFT loads what is saved "
        "in its layout.",
        "",
        markdown(
            columns,
            (
                [f"[{name}]({name}.md)", *cells, *_method_cells(METHODS[name])]
                for name, *cells in listings.methods()
            ),
        ),
    ]
    lines += ["A method of your own is a class of some twenty lines: [own.md](own.md)."]
    return "\n".join(lines) + "\n"


def _method_cells(method: type[Method]) -> list[str]:
    """The method's default rate, whether it merges, and whether it is saved in PEFT's layout."""
    merges = "yes" if method.mergeable else "no"
    if method.head_alone or method.saves_full_weights:
        merges = "nothing to merge"
    return [f"{method.default_lr:g}", merges, "yes" if issubclass(method, InPeft) else "no"]


def python_page() -> str:
    """The reference of the public names."""
    lines = ["# Python", "", NOTE, ""]
    lines += [
        "What `import peftlab` gives; all else may change. Nothing heavy is imported before its "
        f"first use. Beside what follows, each method is a class: {_class_links()}. "
        "Its fields are the settings of its [card](methods/README.md).",
        "",
    ]
    for name in peftlab.__all__[1:]:  # the first is the version
        lines += _describe(name, getattr(peftlab, name))
    lines += ["## What comes back", ""]
    for cls in RETURNED:
        lines += [f"### {cls.__name__}", "", *_docstring_lines(cls), ""]
        if "Attributes:" not in str(cls.__doc__):
            lines += [f"Its fields are {listed(inspect.get_annotations(cls))}.", ""]
    lines += ["## Settings of a training", ""]
    lines += ["What `**training` takes, and a suite file's table `training`.", ""]
    lines += ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in Training.model_fields.items():
        lines.append(f"| `{name}` | `{field.default}` | {field.description} |")
    return "\n".join(lines) + "\n"


def _class_links() -> str:
    classes = sorted((method.__name__, name) for name, method in METHODS.items())
    return ", ".join(f"[`{cls}`](methods/{name}.md)" for cls, name in classes)


def _describe(name: str, obj: Any) -> list[str]:
    lines = [f"## peftlab.{name}", ""]
    if not inspect.isclass(obj) or name == "Task":
        lines += ["```py", _signature(name, obj), "```", ""]
    lines += [*_docstring_lines(obj), ""]
    if methods := _method_lines(obj) if inspect.isclass(obj) else []:
        lines += ["**Methods**", "", *methods, ""]
    return lines


def _method_lines(cls: type) -> list[str]:
    """The class's own public methods and properties, with the first lines of their docstrings."""
    members = {name: getattr(cls, name) for name in vars(cls) if not name.startswith("_")}
    docstrings = {
        name: inspect.getdoc(member)
        for name, member in members.items()
        if inspect.isroutine(member) or isinstance(member, property)
    }
    return [f"- `{name}`: {text.splitlines()[0]}" for name, text in docstrings.items() if text]


def _signature(name: str, obj: Any) -> str:
    """The signature as it is written in the code, a line for each parameter."""
    signature = inspect.signature(obj)
    parts = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts += ["*"]
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        star = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        parts.append(f"{star}{parameter.name}: {parameter.annotation}{default}")
    end = f") -> {signature.return_annotation}"
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), end])


def _docstring_lines(obj: Any) -> list[str]:
    """The docstring as Markdown, the entries of a section as a list."""
    lines: list[str] = []
    in_entries = False
    for line in str(inspect.getdoc(obj)).splitlines():
        section = re.fullmatch(r"(Args|Attributes|Returns|Raises):", line)
        if section:
            in_entries = section[1] != "Returns"
            lines += [f"**{section[1]}**", ""]
        elif in_entries and re.match(r" {4}\w", line):
            entry, meaning = line.strip().split(": ", 1)
            lines.append(f"- `{entry}`: {meaning}")
        else:
            lines.append(f"  {line.strip()}" if in_entries and line.strip() else line.strip())
    return lines


def _fill(page: str, blocks: Mapping[str, Callable[[], str]]) -> str:
    """The page, with the text between the marks of each block replaced."""
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
} | {page: functools.partial(_fill, page, blocks) for page, blocks in BLOCKS.items()}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (DOCS / page).write_text(write(), encoding="utf-8")
        print(f"wrote docs/{page}")
