"""What is typed arrives: every option's value at the function that the command stands for."""

from __future__ import annotations

import errno
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text
from typer.testing import CliRunner

import peftlab
import peftlab.api.fit
import peftlab.api.plan
from peftlab.api import listings
from peftlab.bench import run
from peftlab.cli import app, main
from peftlab.cli.compare import report_stop
from peftlab.cli.stop import Terminated
from peftlab.errors import RequestError, system_refusals
from peftlab.records.question import Question
from peftlab.report.watching import View


class Called(Exception):
    """Raised in the place of what is called, with what it was given."""

    def __init__(self, *args: Any, **named: Any) -> None:
        self.given, self.named = args, named


Typed = Callable[..., Called]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Type a command; the call that it makes of the function `of`."""

    def run(of: str, *words: str) -> Called:
        def record(*args: Any, **named: Any) -> None:
            raise Called(*args, **named)

        monkeypatch.setattr(f"peftlab.{of}", record)
        result = CliRunner().invoke(app, list(words))
        assert isinstance(result.exception, Called), result.output
        return result.exception

    return run


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A request that was found right, whatever it was."""
    found = SimpleNamespace(out=Path("o"), grid=SimpleNamespace(suite=SimpleNamespace(name="s")))
    monkeypatch.setattr("peftlab.api.request.resolve_request", lambda *args: found)
    monkeypatch.setattr("peftlab.api.fit.resolve_fit", lambda *args: found)
    monkeypatch.setattr("peftlab.api.progress.describe_tasks", lambda grid: [])
    return found


def test_what_compare_asks_for(typed: Typed) -> None:
    call = typed(
        "api.request.resolve_request",
        *("compare", "s.toml", "--tasks", "a,b", "--methods", "lora,head", "--seeds", "3,4"),
        *("--tune", "6", "--validation", "0.2", "--tune-space", "lr,rank", "--out", "o"),
        *("--model", "m", "--data-dir", "g", "--metric", "f1", "--weight-decay", "0.1"),
    )
    file, request, sets, out = call.given
    assert (file, sets, out) == (Path("s.toml"), [], Path("o"))
    assert request["tune"] == {"trials": 6, "validation": 0.2, "space": ["lr", "rank"]}
    assert (request["tasks"], request["seeds"]) == (["a", "b"], [3, 4])
    assert (request["model"], request["metric"]) == ("m", "f1")
    assert request["data_dir"] == Path("g")
    assert request["training"].weight_decay == 0.1


def test_how_compare_runs(typed: Typed, ready: SimpleNamespace) -> None:
    words = ("compare", "--rerun", "--keep", "best", "--repeat-speed", "2", "--quiet")
    call = typed("api.compare.run", *words)
    request, _, quiet = call.given
    assert request is ready
    assert quiet
    assert call.named == {"rerun": True, "keep": "best", "repeat_speed": 2, "page": True}


def test_what_plan_looks_at(typed: Typed, ready: SimpleNamespace) -> None:
    assert typed("api.plan.plan_request", "plan", "--measure").given[:2] == (ready, True)
    assert typed("api.plan.plan_request", "plan").given[:2] == (ready, False)


def test_what_report_shows_and_by_what_it_judges(typed: Typed, tmp_path: Path) -> None:
    call = typed(
        "report.rebuild",
        *("report", str(tmp_path), "--tasks", "a", "--methods", "b,c", "--last", "--pdf"),
        *("--margin", "0.02", "--prefer", "speed", "--memory", "2GiB", "--minutes", "3"),
    )
    question = Question(0.02, "speed", 2048.0, 3.0)
    assert call.given == (tmp_path, ["a"], ["b", "c"], True, ["svg", "pdf"], question, {})
    call = typed("report.rebuild", "report", str(tmp_path), "--no-svg")
    assert call.given == (tmp_path, None, None, False, [], Question(), {})


@pytest.mark.parametrize("form", ["latex", "markdown", "csv"])
def test_the_forms_for_a_paper(typed: Typed, tmp_path: Path, form: str) -> None:
    call = typed("report.format_table", "report", str(tmp_path), f"--{form}", "--methods", "b")
    assert call.given == (tmp_path, form, None, ["b"], False, Question())


def test_several_folders_are_joined_where_that_is_asked(typed: Typed) -> None:
    call = typed("api.results.side_by_side", "report", "one", "two", "--out", "both")
    assert call.given == ([Path("one"), Path("two")], Path("both"))


def test_what_fit_is_given(typed: Typed, ready: SimpleNamespace) -> None:
    call = typed("api.fit.run_fit", "fit", "--out", "model", "--minutes", "7", "--quiet")
    assert (call.given[:3], call.given[4]) == ((ready, Path("model"), 7.0), True)
    words = ("--task", "acceptability", "--runs", "tried", "--methods", "lora", "--out", "model")
    request, sets, runs = typed("api.fit.resolve_fit", "fit", *words).given
    assert (request["tasks"], request["seeds"], sets) == (["acceptability"], [0, 1, 2], [])
    assert runs == Path("tried")


def test_the_home_folder_is_known_of_where_a_model_goes(
    typed: Typed, ready: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A shell leaves the ~ of --out=~/model to the command."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert typed("api.fit.run_fit", "fit", "--out=~/model").given[1] == tmp_path / "model"
    call = typed("api.train.train_folder", "train", "--task", "acceptability", "--out=~/model")
    assert call.given[1] == tmp_path / "model"
    call = typed("api.fit.resolve_fit", "fit", "--out", "model", "--runs=~/tried")
    assert call.given[2] == tmp_path / "tried"
    call = typed("api.inference.predict_file", "predict", "~/a", "~/b.csv", "--out=~/c.csv")
    assert call.given[:3] == tuple(tmp_path / name for name in ("a", "b.csv", "c.csv"))
    call = typed("api.request.load_plugin", "methods", "--plugin=~/mine.py")
    assert call.given[0] == tmp_path / "mine.py"


def test_no_methods_are_not_the_default_ones(typed: Typed) -> None:
    fields, *_ = typed("api.fit.resolve_fit", "fit", "--out", "model", "--methods", "").given
    assert fields["methods"] == []


def test_what_an_adapter_s_commands_are_given(typed: Typed) -> None:
    call = typed(
        "api.inference.predict_file",
        *("predict", "a", "f.csv", "--out", "o.csv", "--text", 'x,"y, z"', "--base", "b"),
        *("--device", "cpu", "--no-fast"),
    )
    given = (Path("a"), Path("f.csv"), Path("o.csv"), ["x", "y, z"], "b", "cpu")
    assert (call.given[:6], call.given[7]) == (given, False)
    call = typed("api.export.merge_folder", "merge", "a", "--out", "o", "--base", "b")
    assert call.given == (Path("a"), Path("o"), "b")
    words = ("r", "--to", "o", "--task", "t", "--method", "lora", "--base", "b")
    call = typed("api.export.export", "export", *words)
    assert call.given == (Path("r"), Path("o"), "t", "lora", "b")
    words = ("a", "me/x", "--licence", "mit", "--private", "--base", "b", "--to", "o")
    call = typed("api.push.push", "push", *words)
    assert call.given == (Path("a"), "me/x")
    assert call.named == {"base": "b", "licence": "mit", "private": True, "to": Path("o")}


def test_watch_looks_until_there_is_nothing_left(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([False, False, True])
    slept: list[float] = []
    monkeypatch.setattr("peftlab.report.watching.view", lambda folder: View(Text("x"), next(looks)))
    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setattr(time, "sleep", slept.append)
    result = CliRunner().invoke(app, ["watch", "folder", "--every", "0.5"])
    assert result.exit_code == 0
    assert slept == [0.5, 0.5]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_of_which_a_library_made_another_error_is_a_stop(
    number: int, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An import of numpy's inside scipy's made a RecursionError of it."""

    def importing() -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise RecursionError("maximum recursion depth exceeded") from None

    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr("peftlab.cli.stop.stops", stops := [])
    monkeypatch.setattr("peftlab.cli.stops", stops)
    monkeypatch.setattr("peftlab.cli.app", importing)
    try:
        with pytest.raises(SystemExit) as stop:
            main()
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
    assert stop.value.code == status
    shown = capsys.readouterr().err
    assert "stopped; what that interrupted failed: RecursionError: maximum" in shown


@pytest.mark.parametrize(("stop", "status"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_any_command_that_is_stopped_has_a_shell_s_status(
    monkeypatch: pytest.MonkeyPatch, stop: type[KeyboardInterrupt], status: int
) -> None:
    def view(folder: Path) -> None:
        raise stop

    monkeypatch.setattr("peftlab.report.watching.view", view)
    result = CliRunner().invoke(app, ["watch", "folder"])
    assert (result.exit_code, result.output) == (status, "")


def test_python_s_fit_is_what_the_command_is(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tiny_csv: Path, tmp_path: Path
) -> None:
    def record(*args: Any) -> None:
        raise Called(*args)

    monkeypatch.setattr("peftlab.api.fit.run_fit", record)
    with pytest.raises(Called) as called:
        peftlab.fit(
            data=tiny_csv,
            text="sentence",
            label="answer",
            out=tmp_path / "model",
            minutes=3,
            model=tiny_model,
            methods=["lora", "head"],
            runs=tmp_path / "tried",
            batch_size=8,
        )
    (grid, runs), out, minutes, *_ = called.value.given
    assert [row.part.label for row in grid.rows] == ["lora", "head"]
    assert sorted({cell.seed for cell in grid.cells}) == [0, 1, 2]
    assert {cell.training.batch_size for cell in grid.cells} == {8}
    assert (runs, out, minutes) == (tmp_path / "tried", tmp_path / "model", 3)
    with pytest.raises(peftlab.RequestError, match="fit needs data"):
        peftlab.fit(out=tmp_path / "model")


def test_the_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).output.strip() == peftlab.__version__


def test_ctrl_c_before_a_command_has_begun_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("peftlab.cli.app", stopped)
    with pytest.raises(SystemExit) as end:
        peftlab.cli.main()
    assert end.value.code == 130


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("report", "one", "--out", "elsewhere"), "--out (in Python: out=) is for several"),
        (("report", "one", "--csv", "--pdf"), "--csv prints the table and makes no page"),
        (("report", "one", "--latex", "--sentences"), "leave out --sentences"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(words: tuple[str, ...], reason: str) -> None:
    result = CliRunner().invoke(app, list(words))
    assert isinstance(result.exception, peftlab.RequestError)
    assert reason in str(result.exception)


def test_recipes_are_listed_in_json_too() -> None:
    found = json.loads(CliRunner().invoke(app, ["reproduce", "--json"]).stdout)
    assert "founding-report" in {recipe["name"] for recipe in found}


def test_without_a_command_the_help_is_shown() -> None:
    assert "compare" in CliRunner().invoke(app, ["--debug"]).output


GIVEN: dict[str, Any] = {
    "model": "m",
    "methods": ["lora"],
    "data_dir": Path("g"),
    "metric": "f1",
    "weight_decay": 0.1,
}


@pytest.mark.parametrize(
    ("call", "more", "wanted"),
    [
        ("compare", {"tasks": ["a"], "seeds": [3], "judge_on": "train", "tune": 6}, {}),
        ("plan", {"tasks": ["a"], "seeds": [3], "judge_on": "train", "tune": 6}, {}),
        ("fit", {"task": "a", "out": "o"}, {"seeds": [0, 1, 2], "judge_on": None, "tune": None}),
    ],
)
def test_what_python_asks_for(
    call: str, more: dict[str, Any], wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(*args: Any, **named: Any) -> None:
        raise Called(*args, **named)

    monkeypatch.setattr(f"peftlab.api.{call}.resolve_request", record)
    with pytest.raises(Called) as called:
        getattr(peftlab, call)(**GIVEN, **more)
    (asked,) = [one for one in called.value.given if isinstance(one, dict)]
    expected = {"seeds": [3], "judge_on": "train", "tune": {"trials": 6}, **wanted}
    assert {name: asked.get(name) for name in expected} == expected
    assert (asked["tasks"], asked["model"], asked["methods"]) == (["a"], "m", ["lora"])
    assert (asked["data_dir"], asked["metric"]) == (Path("g"), "f1")
    assert asked["training"].weight_decay == 0.1


def test_what_was_stopped_before_there_was_a_folder_is_not_kept_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), report_stop(tmp_path / "out"):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "stopped before anything was trained\n"
    with pytest.raises(KeyboardInterrupt), report_stop(tmp_path):
        raise KeyboardInterrupt
    assert f"is kept in {tmp_path}\nthe same command" in capsys.readouterr().err


def test_a_drive_that_is_not_there_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert listings._disk(Path("/away/runs")) == ("disk", "none", "there is no /")


def test_a_data_set_of_the_hub_is_named_alike_on_all_systems(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "Path", PureWindowsPath)
    assert run._absolute("hub:someone/reviews") == "hub:someone/reviews"


def test_a_full_disk_is_no_fault_inside(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("peftlab.cli.app", full)
    with pytest.raises(SystemExit) as end:
        peftlab.cli.main()
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("error: the disk is full; what was written is kept")


def test_a_full_disk_is_no_wrong_request() -> None:
    """A wrong one exits with 2, by which nothing was trained."""
    with pytest.raises(RequestError), system_refusals("a can't be written"):
        raise OSError(errno.EROFS, "Read-only file system")
    with pytest.raises(OSError, match="No space left"), system_refusals("a can't be written"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_fit_says_where_the_adapter_is_though_its_page_can_t_be_written(
    ready: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    fitted = SimpleNamespace(recommendation="lora", stopped=None)
    monkeypatch.setattr("peftlab.api.fit.run_fit", lambda *args: fitted)
    monkeypatch.setattr("peftlab.api.fit.result_lines", lambda fitted: ["lora: f1 .9"])
    monkeypatch.setattr("peftlab.report.rebuild", full)
    result = CliRunner().invoke(app, ["fit", "--task", "acceptability", "--out", "model"])
    assert isinstance(result.exception, OSError)
    assert result.stdout == f"lora: f1 .9\nadapter: {Path('model').resolve()}\n"
