"""Run a side in a fresh process and save its line as soon as it has finished."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from plan import ATTEMPTS, DISTURBED

from models import folder_of
from peftlab.atomic import write
from peftlab.machine import INSTRUCTION_SETS, busy_elsewhere_s, own_commit

Line = dict[str, Any]
HERE = Path(__file__).parent
PACKAGES = ("peftlab", "torch", "transformers", "peft")
CORES = os.cpu_count() or 1
UNFINISHED = ", unfinished"


def describe_machine() -> dict[str, Any]:
    """What the numbers depend on besides the code: processor, memory, versions, and the day."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = {line.split(":")[0].strip(): line.split(":")[1].strip() for line in lines if line}
    return {
        "processor": cpu.get("model name", platform.machine()),
        "cores": CORES,
        "flags": [flag for flag in INSTRUCTION_SETS if flag in cpu.get("flags", "").split()],
        "memory_mib": round(memory_mib("MemTotal")),
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in PACKAGES},
        **dict(zip(("commit", "dirty"), own_commit(), strict=True)),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
    }


def memory_mib(name: str) -> float:
    """The machine's memory: MemTotal or MemAvailable."""
    return int(Path("/proc/meminfo").read_text().split(f"{name}:")[1].split()[0]) / 1024


class Results:
    """A file of results: for each section the machine, and a line for each process.

    A section that is measured again replaces its former lines once it is whole; until then its own
    stand under its name and `UNFINISHED`, which no table shows. The other sections stay.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.sections: dict[str, dict[str, Any]] = {}
        if file.exists():
            self.sections = json.loads(file.read_text(encoding="utf-8"))["sections"]

    def begin(self, section: str, machine: dict[str, Any]) -> None:
        self.sections[section + UNFINISHED] = {"machine": machine, "runs": []}

    def add(self, section: str, line: Line) -> None:
        self.sections[section + UNFINISHED]["runs"].append(line)
        self.save()

    def finish(self, section: str) -> None:
        """The section is whole: it replaces what was measured of it before."""
        self.sections[section] = self.sections.pop(section + UNFINISHED)
        self.save()

    def lines(self, section: str) -> list[Line]:
        """The lines of a section; none if it was not measured."""
        runs: list[Line] = self.sections.get(section, {}).get("runs", [])
        return runs

    def save(self) -> None:
        write(self.file, self._as_json())

    def _as_json(self) -> str:
        """JSON with a line of its own for each process, so that a change is readable in git."""
        parts = []
        for name, section in self.sections.items():
            runs = ",\n".join(f"    {json.dumps(line)}" for line in section["runs"])
            machine = json.dumps(section["machine"])
            parts.append(f'  {json.dumps(name)}: {{"machine": {machine},\n   "runs": [\n{runs}]}}')
        return '{"sections": {\n' + ",\n".join(parts) + "}}\n"


class Bench:
    """Runs the sides of one section.

    Args:
        results: the file that the lines are added to.
        section: the section's name.
        rounds: how often the sides take turns.
        max_examples: a bound on the examples of each process, for a quick look.
        common: options of every process.
    """

    def __init__(
        self,
        results: Results,
        section: str,
        rounds: int,
        max_examples: int | None = None,
        common: dict[str, Any] | None = None,
    ) -> None:
        self.results, self.section, self.rounds = results, section, rounds
        self.max_examples, self.common = max_examples, common or {}
        self.round = 0  # 0 is before the rounds

    def each_round(self) -> Iterator[int]:
        """The rounds' numbers from 1; lines that are made in a round have its number."""
        for number in range(1, self.rounds + 1):
            self.round = number
            yield number
        self.round = 0

    def run(
        self, label: str, side: str, model: str, task: str, timed: bool = True, **options: Any
    ) -> Line:
        """Run one process of `side` (ours, peer, products) to its end; returns its line.

        A process that fails leaves a line with `failed`, and the bench goes on. A process that
        shared the machine with others runs again, up to `ATTEMPTS` times in all; the least
        disturbed of these lines that has a result counts, and the others are marked `disturbed`.
        A process that is not `timed`, because only its score is of interest, runs once.
        """
        if options.get("examples") and self.max_examples:
            options["examples"] = min(options["examples"], self.max_examples)
        command = [sys.executable, str(HERE / f"{side}.py"), "--model", str(folder_of(model))]
        command += ["--task", task, *as_arguments(options), *as_arguments(self.common)]
        about = {"label": label, "round": self.round, "model": model, "task": task}
        lines: list[Line] = []
        attempts = ATTEMPTS if timed else 1
        while len(lines) < attempts and all(line["elsewhere"] > DISTURBED for line in lines):
            lines.append(about | _measure(command, side, options))
            self.results.add(self.section, lines[-1])
            _print_progress(self.section, lines[-1])
        best = min(lines, key=lambda line: ("failed" in line, line["elsewhere"]))
        for line in lines:
            line["disturbed"] = line is not best
        self.results.save()
        return best

    def skip(self, label: str, reason: str) -> None:
        """Add a line for a process that is not started."""
        self.results.add(self.section, {"label": label, "round": self.round, "failed": reason})


def as_arguments(options: dict[str, Any]) -> list[str]:
    """The options as arguments of a command line.

    >>> as_arguments({"batch_size": 8, "score": True, "lr": None})
    ['--batch-size', '8', '--score']
    """
    arguments = []
    for name, value in options.items():
        if value is True:
            arguments.append(f"--{name.replace('_', '-')}")
        elif value is not None and value is not False:
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    return arguments


def _measure(command: list[str], side: str, options: dict[str, Any]) -> Line:
    started, busy_before_s = time.perf_counter(), busy_elsewhere_s()
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    wall_s, busy_s = time.perf_counter() - started, busy_elsewhere_s() - busy_before_s
    return _read_line(process, side, options) | {
        "wall_s": round(wall_s, 1),
        "elsewhere": round(busy_s / wall_s / CORES, 3),  # share of the machine that others took
    }


def _read_line(
    process: subprocess.CompletedProcess[str], side: str, options: dict[str, Any]
) -> Line:
    if process.returncode == 0:
        line: Line = json.loads(process.stdout.splitlines()[-1])
        return line
    if process.returncode == -9:
        reason = "killed, most likely for want of memory"
    else:
        reason = ([text for text in process.stderr.splitlines() if text.strip()] or [""])[-1]
    return {"side": side, "settings": options, "failed": f"exit {process.returncode}: {reason}"}


def _print_progress(section: str, line: Line) -> None:
    when = f"round {line['round']}" if line["round"] else "before"
    outcome = line.get("failed") or f"{line['examples_per_s']:.1f} examples/s"
    if "peak_mib" in line:
        outcome += f", peak {line['peak_mib']:.0f} MiB"
    name = f"{line['side']} {line['label']}"
    print(f"{section:<16} {when:<8} {name:<34} {outcome} ({line['wall_s']:.0f} s)", file=sys.stderr)
