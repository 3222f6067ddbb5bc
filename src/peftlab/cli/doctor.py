"""peftlab doctor: what a run depends on, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    out: Annotated[Path, typer.Option(help="Where runs would be written.")] = Path("runs"),
) -> None:
    """Check Python, torch, threads, bf16 and why, the model, the hub and the disk."""
    from peftlab.api import listings
    from peftlab.cli.listings import print_rows

    print_rows(("what", "found", "meaning"), listings.machine(out))
