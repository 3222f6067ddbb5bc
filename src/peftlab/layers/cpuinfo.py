"""What Linux says of the processor; elsewhere nothing."""

from __future__ import annotations

from pathlib import Path

FILE = Path("/proc/cpuinfo")


def processor_lines() -> list[str]:
    """The lines of all its cores."""
    return FILE.read_text().splitlines() if FILE.exists() else []


def processor_words() -> set[str]:
    """Every word of it: its maker, its instructions."""
    return {word for line in processor_lines() for word in line.split()}
