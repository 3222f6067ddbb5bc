"""The processor as Linux describes it in /proc/cpuinfo; elsewhere nothing."""

from __future__ import annotations

from pathlib import Path

FILE = Path("/proc/cpuinfo")


def processor_lines() -> list[str]:
    """The lines of all cores."""
    return FILE.read_text().splitlines() if FILE.exists() else []


def processor_words() -> set[str]:
    """Every word of these lines, such as the maker and the instruction sets."""
    return {word for line in processor_lines() for word in line.split()}
