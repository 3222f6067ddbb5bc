"""The comparison on a GPU: its settings and its table. The device itself is not needed."""

from __future__ import annotations

import sys
from typing import Any

import gpu
import peers
import pytest
import tables
import torch


def parsed(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    return gpu.parse()


def test_without_a_device_it_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        parsed(monkeypatch)
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.err.count("\n") == 1
    assert "no CUDA device" in said.err


def test_the_table_is_of_the_devices_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    options = parsed(monkeypatch, "--device", "cpu", "--tasks", "words-64", "--examples", "200")
    (setting,) = gpu.settings_of(options)
    assert (setting.name, setting.examples, setting.with_defaults) == (
        "roberta/words-64",
        200,
        True,
    )

    def line(side: str, label: str, speed: float, gpu_mib: float) -> dict[str, Any]:
        made = {"side": side, "label": label, "round": 1, "examples_per_s": speed}
        asked = peers.ALL[0] | {"examples": 200}
        return made | {"settings": asked, "peak_mib": 1.0, "gpu_peak_mib": gpu_mib}

    lines = [line("ours", "ours", 300, 600), line("peer", "best", 200, 800)]
    (part, by_graphs, _) = gpu.parts([setting], gpu.MEMORY["cuda"], "LoRA")
    rows = part[3](setting.name, lines)
    assert [row[3] for row in rows] == ["1.50", "0.75"]
    assert part[2] == tables.HEAD
    lines = [line("ours", "plain", 100, 600), line("ours", "graphs", 300, 900)]
    rows = by_graphs[3]("roberta/words-64, graphs", lines)
    assert [row[3] for row in rows] == ["3.00", "1.50"]
    assert by_graphs[1] == ["roberta/words-64, graphs"]
