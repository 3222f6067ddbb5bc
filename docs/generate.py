"""Write the generated pages of docs/: `make docs`. A test holds that they are current.

docs/cli.md               every command and option, read from the live command line
docs/methods/README.md    every method, read from the registry
"""

from __future__ import annotations

from pathlib import Path

import typer

from peftlab.api import listings
from peftlab.cli import app
from peftlab.methods import METHODS

DOCS = Path(__file__).parent
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
    head = [*listings.METHODS_HEAD, "lr", "lr, minilm"]
    lines = ["# Methods", "", NOTE, ""]
    lines += [
        "Adapter and head: numbers trained on RoBERTa-base with two labels, at default settings. "
        "lr: the default on a model 768 wide, and on `minilm`, which is 384 wide "
        "([where they come from](../rates.md)).",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    for name, *cells in listings.methods():
        rates = [f"{METHODS[name]().lr_at(width):g}" for width in (768, 384)]
        lines.append(f"| [{name}]({name}.md) | {' | '.join([*cells, *rates])} |")
    lines += ["", "A method of your own is a class of some twenty lines: [own.md](own.md)."]
    return "\n".join(lines) + "\n"


PAGES = {"cli.md": cli_page, "methods/README.md": methods_page}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (DOCS / page).write_text(write(), encoding="utf-8")
        print(f"wrote docs/{page}")
