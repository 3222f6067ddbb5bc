"""Start a side in a fresh process and keep its line: every finished process is saved at once."""

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
from peftlab.machine import busy_elsewhere_s

Line = dict[str, Any]
HERE = Path(__file__).parent
PACKAGES = ("peftlab", "torch", "transformers", "peft")
CORES = os.cpu_count() or 1
FLAGS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code: processor, memory, versions, and the day."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    said = {line.split(":")[0].strip(): line.split(":")[1].strip() for line in cpuinfo if line}
    return {
        "processor": said.get("model name", platform.machine()),
        "cores": CORES,
        "flags": [flag for flag in FLAGS if flag in said.get("flags", "").split()],
        "memory_mib": round(memory_mib("MemTotal")),
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
    }


def memory_mib(name: str) -> float:
    """MemTotal or MemAvailable of the machine."""
    return int(Path("/proc/meminfo").read_text().split(f"{name}:")[1].split()[0]) / 1024


class Results:
    """A file of results, by section: the machine and one line a process.

    A section that is measured anew replaces what it had; the other ones stay.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.sections: dict[str, dict[str, Any]] = {}
        if file.exists():
            self.sections = json.loads(file.read_text(encoding="utf-8"))["sections"]

    def begin(self, section: str, on: dict[str, Any]) -> None:
        self.sections[section] = {"machine": on, "runs": []}

    def add(self, section: str, line: Line) -> None:
        self.sections[section]["runs"].append(line)
        self.save()

    def lines(self, section: str) -> list[Line]:
        """Of a section, none if it was not measured."""
        runs: list[Line] = self.sections.get(section, {}).get("runs", [])
        return runs

    def save(self) -> None:
        write(self.file, self._text())

    def _text(self) -> str:
        """JSON with a line of its own for each process, so that a change is readable in git."""
        parts = []
        for name, section in self.sections.items():
            runs = ",\n".join(f"    {json.dumps(line)}" for line in section["runs"])
            on = json.dumps(section["machine"])
            parts.append(f'  {json.dumps(name)}: {{"machine": {on},\n   "runs": [\n{runs}]}}')
        return '{"sections": {\n' + ",\n".join(parts) + "}}\n"


class Bench:
    """Runs the sides of one section.

    Args:
        results: where the lines go.
        section: by which name.
        rounds: how often the sides take turns.
        most: a bound on the examples of each process, for a quick look.
        common: options of every process.
    """

    def __init__(
        self,
        results: Results,
        section: str,
        rounds: int,
        most: int | None = None,
        common: dict[str, Any] | None = None,
    ) -> None:
        self.results, self.section, self.rounds = results, section, rounds
        self.most, self.common = most, common or {}
        self.round = 0  # 0 is before the rounds

    def each_round(self) -> Iterator[int]:
        """The rounds' numbers from 1; lines that are made meanwhile bear them."""
        for number in range(1, self.rounds + 1):
            self.round = number
            yield number
        self.round = 0

    def run(
        self, label: str, side: str, model: str, task: str, timed: bool = True, **options: Any
    ) -> Line:
        """One process of `side` (ours, peer, products) to its end; returns its line.

        A side that fails leaves a line with `failed`, and the bench goes on. One that had not the
        machine to itself runs again, up to `ATTEMPTS` times in all; of these lines the one that was
        least disturbed counts, and the others bear `disturbed`. One that is not `timed`, since its
        score alone is asked for, runs once.
        """
        if options.get("examples") and self.most:
            options["examples"] = min(options["examples"], self.most)
        words = [sys.executable, str(HERE / f"{side}.py"), "--model", str(folder_of(model))]
        words += ["--task", task, *as_words(options), *as_words(self.common)]
        about = {"label": label, "round": self.round, "model": model, "task": task}
        lines: list[Line] = []
        attempts = ATTEMPTS if timed else 1
        while len(lines) < attempts and all(line["elsewhere"] > DISTURBED for line in lines):
            lines.append(about | _measure(words, side, options))
            self.results.add(self.section, lines[-1])
            _say(self.section, lines[-1])
        best = min(lines, key=lambda line: line["elsewhere"])
        for line in lines:
            line["disturbed"] = line is not best
        self.results.save()
        return best

    def left_out(self, label: str, why: str) -> None:
        """Say in the results that a process was not started."""
        self.results.add(self.section, {"label": label, "round": self.round, "failed": why})


def as_words(options: dict[str, Any]) -> list[str]:
    """Options of a command line.

    >>> as_words({"batch_size": 8, "score": True, "lr": None})
    ['--batch-size', '8', '--score']
    """
    words = []
    for name, value in options.items():
        if value is True:
            words.append(f"--{name.replace('_', '-')}")
        elif value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def _measure(words: list[str], side: str, options: dict[str, Any]) -> Line:
    started, busy = time.perf_counter(), busy_elsewhere_s()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    wall_s, busy_s = time.perf_counter() - started, busy_elsewhere_s() - busy
    return _read(done, side, options) | {
        "wall_s": round(wall_s, 1),
        "elsewhere": round(busy_s / wall_s / CORES, 3),  # share of the machine that others took
    }


def _read(done: subprocess.CompletedProcess[str], side: str, options: dict[str, Any]) -> Line:
    if done.returncode == 0:
        line: Line = json.loads(done.stdout.splitlines()[-1])
        return line
    if done.returncode == -9:
        why = "killed, most likely for want of memory"
    else:
        why = ([text for text in done.stderr.splitlines() if text.strip()] or [""])[-1]
    return {"side": side, "settings": options, "failed": f"exit {done.returncode}: {why}"}


def _say(section: str, line: Line) -> None:
    """Progress, on stderr."""
    what = f"round {line['round']}" if line["round"] else "before"
    told = line.get("failed") or f"{line['examples_per_s']:.1f} examples/s"
    if "peak_mib" in line:
        told += f", peak {line['peak_mib']:.0f} MiB"
    name = f"{line['side']} {line['label']}"
    print(f"{section:<16} {what:<8} {name:<34} {told} ({line['wall_s']:.0f} s)", file=sys.stderr)
