"""What a section runs, with sides that answer at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import peers
import pytest
import ratios
import runs
import sections
import tables

SPEEDS = {"sdpa": 100.0, "eager": 90.0}  # of the peer, by its attention
MACHINE = {
    "processor": "a processor",
    "cores": 2,
    "flags": ["avx2"],
    "memory_mib": 1000,
    "date": "2026-11-24T12:00+00:00",
    **dict.fromkeys(("python", *runs.PACKAGES), "1.0"),
}


class Answering(runs.Bench):
    """A bench whose sides answer at once, by what they are asked."""

    def run(self, label: str, side: str, model: str, task: str, **options: Any) -> runs.Line:
        line = {"label": label, "round": self.round, "side": side, "task": task, "wall_s": 1.0}
        line |= {"settings": {"epochs": 2, **options}} | self.measured(side, options)
        self.results.add(self.section, line)
        return line

    def measured(self, side: str, options: dict[str, Any]) -> dict[str, Any]:
        speed = {"ours": 200.0, "products": 400.0}.get(side, 0.0)
        if side == "peer":
            speed = SPEEDS[options.get("attention", "sdpa")]
            speed += options.get("precision") == "autocast"
            speed /= 1 + (options.get("batches") == "random")
        memory = 1000.0 if options.get("precision") == "bf16" else 2000.0
        return {
            "examples_per_s": speed,
            "tokens_per_s": 10 * speed,
            "epoch_s": options["examples"] / speed,
            "n_steps": 40,
            "peak_mib": memory,
            "all_mib": memory + 100,
            "above_mib": memory / 2,
            "weights_mib": 100.0,
            "over_steps_mib": [500.0] * 10,
            "attention_share": 0.6 if options.get("attention") is True else None,
            "score": (0.8 if options.get("batches") == "random" else 0.6)
            if options.get("score")
            else None,
        }


@pytest.fixture
def results(tmp_path: Path) -> runs.Results:
    return runs.Results(tmp_path / "speed.json")


def measured(results: runs.Results, section: str, rounds: int = 5) -> list[runs.Line]:
    results.begin(section, MACHINE)
    sections.SECTIONS[section](Answering(results, section, rounds))
    results.finish(section)
    lines: list[runs.Line] = results.sections[section]["runs"]
    return lines


def test_the_peer_runs_at_the_settings_that_are_best_on_many_examples(
    results: runs.Results,
) -> None:
    lines = measured(results, "roberta/cola")
    labels = [line["label"] for line in lines]
    counts = {"screen": 12, "ours": 5, **dict.fromkeys(ratios.FINALISTS, 5)}
    assert {name: labels.count(name) for name in counts} == counts
    for label in ratios.FINALISTS:  # the fastest of the screening, in every round
        own = [peers.settings_of(line) for line in lines if line["label"] == label]
        assert own == [own[0]] * 5 and own[0]["attention"] == "sdpa"
    assert labels.count("defaults") == 5


def test_the_fastest_that_learn_run_too_once_it_is_known_which_do(results: runs.Results) -> None:
    measured(results, "scores")
    lines = measured(results, "roberta/cola")
    screened = [peers.settings_of(line) for line in lines if line["label"] == "screen"]
    assert len(screened) == 24  # no batches by length learn here, and all random ones
    learns = [peers.settings_of(line) for line in lines if line["label"] == ratios.LEARNS]
    assert learns == [learns[0]] * 5
    asked = (learns[0]["batches"], learns[0]["precision"], learns[0]["attention"])
    assert asked == ("random", "autocast", "sdpa")
    best = [peers.settings_of(line) for line in lines if line["label"] == "best"]
    assert best[0]["batches"] == "group_by_length"
    over = {
        row[0].split("\n")[1].split(":")[0].strip(): row
        for row in tables.lora(lines=lines, name="roberta/cola")
    }
    assert over["best"][3:] == ("1.98", "1.98–1.98", "≥ 1.9", "yes")
    assert over["learns"][3:] == ("3.96", "3.96–3.96", "≥ 2.2", "yes")


def test_the_peer_is_scored_in_every_precision_with_either_batches(results: runs.Results) -> None:
    lines = measured(results, "scores")
    of = [(line["settings"]["seed"], line["task"]) for line in lines if line["side"] == "ours"]
    assert of == [(seed, task) for seed in (0, 1, 2) for task in ("stsb", "mrpc")]
    first = [line for line in lines if line["label"] != "probe"][1:7]  # a seed's and a task's
    asked = {peers.score_key(line["settings"]) for line in first}
    assert len(asked) == 6 and peers.score_key(peers.DEFAULTS) in asked
    rows = tables.scores("scores", lines)
    assert rows[0] == ("stsb, ours", "0.600", "± 0.000", "3", "")
    learns = "learns: not shown to score less than by default"
    assert ("mrpc, fp32, random", "0.800", "± 0.000", "3", learns) in rows
    assert ("mrpc, fp32, grouped", "0.600", "± 0.000", "3", "") in rows


@pytest.mark.parametrize(("speed", "n_screened", "n_scored"), [(40.0, 4, 2), (60.0, 12, 6)])
def test_a_precision_half_as_fast_as_another_is_left_out_and_the_table_says_so(
    speed: float,
    n_screened: int,
    n_scored: int,
    results: runs.Results,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """bf16 where a processor has none: each of its settings takes six minutes to no end."""
    own = Answering.measured

    def slow(bench: Answering, side: str, options: dict[str, Any]) -> dict[str, Any]:
        is_slow = options.get("precision") in ("bf16", "autocast")
        return own(bench, side, options) | ({"examples_per_s": speed} if is_slow else {})

    monkeypatch.setattr(Answering, "measured", slow)
    lines = measured(results, "roberta/cola")
    screened = [line["settings"]["precision"] for line in lines if line["label"] == "screen"]
    assert len(screened) == n_screened and screened.count("fp32") == 4
    left_out = [line["label"] for line in lines if "failed" in line]
    assert left_out == (["bf16-loaded", "autocast"] if n_screened == 4 else [])
    table = tables.render(results.sections)
    assert ("autocast is 0.44 times as fast as the fastest precision" in table) is bool(left_out)

    seen = [line for line in measured(results, "scores") if line.get("score") is not None]
    peer = {peers.score_key(line["settings"]) for line in seen if line["side"] == "peer"}
    assert len(peer) == n_scored and peers.score_key(peers.DEFAULTS) in peer


def test_a_floor_of_what_was_not_measured_is_open(results: runs.Results) -> None:
    lines = measured(results, "roberta/cola")
    for line in lines:
        line.pop("all_mib")
    rows = tables.lora("roberta/cola", lines)
    (row,) = [row for row in rows if "with its other processes" in row[0]]
    assert (row[1], row[-1]) == ("–", "?")


def test_sides_take_turns_at_being_first(results: runs.Results) -> None:
    lines = measured(results, "products")
    assert [line["label"] for line in lines] == [
        *("ours", "products"),
        *("products", "ours"),
        *("ours", "products"),
        *("products", "ours"),
        *("ours", "products"),
    ]
    assert [line["round"] for line in lines] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_what_would_not_fit_into_memory_is_left_out(
    results: runs.Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "memory_mib", lambda name: 5000.0)
    lines = measured(results, "lengths")
    assert not [line for line in lines if "failed" in line]
    # a batch takes 1000 MiB here, whatever its size: one of four times the size is expected to take
    # 4000, which is just within the share of 5000 that may be needed, and not of 4000
    monkeypatch.setattr(sections, "memory_mib", lambda name: 4000.0)
    lines = measured(results, "lengths")
    failed = [line["label"] for line in lines if "failed" in line]
    assert "batch 128, 512 tokens" in failed
    assert not any(label.startswith("batch 8,") for label in failed)


def test_every_section_and_every_beginning_of_it_has_a_table_of_100_columns(
    results: runs.Results,
) -> None:
    for section in sections.SECTIONS:
        lines = measured(results, section, rounds=1)
        for number in range(len(lines) + 1):
            shown = {section: {"machine": MACHINE, "runs": lines[:number]}}
            table = tables.render(shown)
            assert max(len(row) for row in table.splitlines()) <= tables.WIDTH
        assert "nan" not in table
    whole = tables.render(results.sections)
    assert "1.98" in whole  # 200 examples/s over the 101 of the peer's best settings
    assert "attention takes half of the time from 8 tokens on" in whole


def test_a_floor_that_is_missed_says_so(results: runs.Results) -> None:
    lines = measured(results, "products")
    rows = tables.products("products", lines)
    assert rows[0][3:] == ("0.50", "0.50–0.50", "≥ 0.42", "yes")
    for line in lines:
        if line["side"] == "ours":
            line["epoch_s"] *= 2
    assert tables.products("products", lines)[0][3:] == ("0.25", "0.25–0.25", "≥ 0.42", "NO")


def test_a_section_measured_anew_leaves_the_others(tmp_path: Path) -> None:
    file = tmp_path / "results" / "speed.json"
    first = runs.Results(file)
    measured(first, "products")
    before = json.loads(file.read_text())["sections"]["products"]
    again = runs.Results(file)
    measured(again, "growth")
    both = json.loads(file.read_text())["sections"]
    assert both["products"] == before
    assert len(both["growth"]["runs"]) == 2 * 5
    assert list(file.parent.iterdir()) == [file]  # no half-written file is left


def test_a_side_that_fails_leaves_a_line_and_the_bench_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "peer.py").write_text("import sys; sys.exit('no room')")
    answer = {"side": "ours", "settings": {"examples": 3}, "examples_per_s": 7.0}
    answer["tokens_per_s"] = 70.0
    (tmp_path / "ours.py").write_text(f"print('talk'); print({json.dumps(answer)!r})")
    monkeypatch.setattr(runs, "HERE", tmp_path)
    monkeypatch.setattr(runs, "DISTURBED", float("inf"))  # the tests are not alone
    results = runs.Results(tmp_path / "speed.json")
    results.begin("growth", MACHINE)
    bench = runs.Bench(results, "growth", 1, max_examples=3)
    assert bench.run("a", "peer", str(tmp_path), "cola", examples=9)["failed"] == "exit 1: no room"
    assert bench.run("b", "ours", str(tmp_path), "cola", examples=9)["examples_per_s"] == 7
    results.finish("growth")
    saved = json.loads((tmp_path / "speed.json").read_text())["sections"]["growth"]["runs"]
    assert [line["label"] for line in saved] == ["a", "b"]
    assert saved[0]["settings"]["examples"] == 3
    assert "growth: 1 without a result: exit 1: no room" in tables.render(results.sections)


def test_a_disturbed_process_runs_again_and_the_least_disturbed_counts(
    results: runs.Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = iter([0.5, 0.2, 0.3, 0.05])

    def measure(words: list[str], side: str, options: dict[str, Any]) -> runs.Line:
        share = next(others)
        made = {"side": side, "settings": options, "elsewhere": share, "wall_s": 1.0}
        return made | {"examples_per_s": 100 * (1 - share)}

    monkeypatch.setattr(runs, "_measure", measure)
    results.begin("growth", MACHINE)
    bench = runs.Bench(results, "growth", 1)
    assert bench.run("a", "ours", "minilm", "cola")["examples_per_s"] == 80
    assert bench.run("b", "ours", "minilm", "cola")["examples_per_s"] == 95
    results.finish("growth")
    lines = results.sections["growth"]["runs"]
    assert [line["disturbed"] for line in lines] == [True, False, True, False]
    assert ratios.median(ratios.labelled(lines, "a"), "examples_per_s") == 80
    saved = json.loads(results.file.read_text())["sections"]["growth"]["runs"]
    assert saved == lines


def test_a_second_attempt_that_fails_does_not_replace_the_first(
    results: runs.Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies early has little time to be disturbed."""
    lines = iter([{"elsewhere": 0.15, "examples_per_s": 9.0}, {"elsewhere": 0, "failed": "exit 1"}])
    monkeypatch.setattr(runs, "_measure", lambda *_: {"side": "ours", "wall_s": 1.0} | next(lines))
    results.begin("growth", MACHINE)
    bench = runs.Bench(results, "growth", 1)
    assert bench.run("a", "ours", "minilm", "cola")["examples_per_s"] == 9
    results.finish("growth")
    assert len(ratios.good(results.sections["growth"]["runs"])) == 1


def test_a_section_that_is_not_whole_is_kept_beside_the_last_whole_one(tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    first = runs.Results(file)
    measured(first, "products")
    again = runs.Results(file)
    again.begin("products", MACHINE)
    Answering(again, "products", 1).run("ours", "ours", "minilm", "cola", examples=1)
    kept = runs.Results(file)
    assert kept.sections["products"] == first.sections["products"]
    assert len(kept.sections["products" + runs.UNFINISHED]["runs"]) == 1
    measured(kept, "products", rounds=2)
    assert list(kept.sections) == ["products"]
    assert "products (2 rounds): a processor" in tables.render(kept.sections)


@pytest.mark.parametrize("name", ["amd", "amx", "amx-slow", "avx2", "avx512"])
def test_the_committed_tables_are_of_the_committed_results(name: str) -> None:
    file = runs.HERE / "results" / f"{name}.json"
    sections = json.loads(file.read_text(encoding="utf-8"))["sections"]
    assert tables.render(sections) == file.with_suffix(".txt").read_text(encoding="utf-8")


def test_the_machines_line_names_the_commit(results: runs.Results) -> None:
    measured(results, "products")
    results.sections["products"]["machine"] |= {"commit": "0123456789", "dirty": True}
    assert "peftlab 1.0 at 0123456 with changes" in tables.render(results.sections)


def test_results_of_small_pools_are_said_to_be_unfair_to_the_peer(results: runs.Results) -> None:
    lines = measured(results, "full")
    small = "full: Trainer's batches by length are of a sample's small pools"
    assert small in tables.render(results.sections)
    for line in lines:
        line["settings"]["pool"] = 50
    assert "small pools" not in tables.render(results.sections)


def test_the_peer_groups_a_sample_as_it_would_the_whole_task() -> None:
    """Of 50 batches each is of like lengths; in Trainer's own pools of 12 they would overlap."""
    code = (
        "import peer, json; lengths = [i * 7 % 1600 for i in range(1600)]; "
        "print(json.dumps([lengths[i] for i in peer.PooledSampler(32, lengths=lengths)]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=runs.HERE, capture_output=True, text=True, check=True
    )
    assert json.loads(answer.stdout) == list(range(1599, -1, -1))


def test_what_is_not_timed_runs_once_whatever_others_do(
    results: runs.Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = {"side": "ours", "settings": {}, "elsewhere": 0.9, "wall_s": 1.0, "examples_per_s": 1.0}
    monkeypatch.setattr(runs, "_measure", lambda *_: dict(line))
    results.begin("scores", MACHINE)
    runs.Bench(results, "scores", 1).run("a", "ours", "minilm", "stsb", timed=False)
    results.finish("scores")
    assert len(results.sections["scores"]["runs"]) == 1
