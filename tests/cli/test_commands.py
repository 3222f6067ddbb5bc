"""The command line as a user meets it: whole processes, their output and their exit codes."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from peftlab.api import listings
from peftlab.api.sentences import sentences
from peftlab.atomic import WEIGHTS
from peftlab.cli import main
from peftlab.layers import native
from peftlab.methods import METHODS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
FAST = ["--epochs", "1", "--batch-size", "8"]


class Said(NamedTuple):
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


Typed = Callable[..., Said]


@pytest.fixture
def peftlab(tmp_path: Path) -> Run:
    """Run the command line in an empty folder."""

    def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if k != "PEFTLAB_DATA_DIR"}
        return subprocess.run(
            [sys.executable, "-P", "-m", "peftlab", *map(str, words)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**clean, "COLUMNS": "200", **environment},
            check=False,
        )

    return run


@pytest.fixture
def typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Typed:
    """The same in this process, which has imported everything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PEFTLAB_DATA_DIR", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["peftlab", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        return Said(int(stop.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def tiny(tiny_model: Path, tiny_csv: Path) -> list[object]:
    """`compare` on the tiny model and the tiny file, which further options may follow."""
    data = ["--data", tiny_csv, "--text", "sentence", "--label", "answer"]
    return ["compare", "--model", tiny_model, *data, *FAST]


def test_a_closed_standard_input_ends_nothing(tiny: list[object], tmp_path: Path) -> None:
    """What draws figures ended in a panic behind the last training."""
    words = [sys.executable, "-P", "-m", "peftlab", *tiny, "--methods", "head", "--seeds", "0"]
    closed = subprocess.run(
        ["bash", "-c", '"$@" <&-', "bash", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert closed.returncode == 0, closed.stderr
    assert "page: " in closed.stdout


def test_a_user_without_a_home_folder_can_look(
    typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands to find out with, and the drawing behind the last training, ended in an error."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    home = Path.home

    def nobody_s() -> Path:
        if "HOME" not in os.environ:
            raise RuntimeError("Could not determine home directory.")
        return home()

    monkeypatch.setattr(Path, "home", nobody_s)
    assert typed("models").returncode == 0


def test_help_is_quick(peftlab: Run) -> None:
    before = os.times()
    shown = peftlab("--help")
    after = os.times()
    assert shown.returncode == 0
    assert "compare" in shown.stdout
    # of the processor, which others may have meanwhile; test_house.py holds the cause
    used = after.children_user + after.children_system
    assert used - before.children_user - before.children_system < 1


def test_a_comparison_ends_with_a_table_and_a_page(
    typed: Typed, tiny: list[object], tmp_path: Path
) -> None:
    words = [*tiny, "--methods", "head,lora[rank=4]", "--seeds", "0,1"]
    done = typed(*words)
    assert done.returncode == 0, done.stderr
    assert "classes cat, other" in done.stderr  # the choice of kind is printed
    assert "39 train, 9 dev" in done.stderr
    assert "[4/4] tiny · lora[rank=4] · seed 1" in done.stderr
    assert "lora[rank=4]" in done.stdout
    assert "±" in done.stdout
    out = tmp_path / "runs" / "tiny-tiny"
    page = out / "report" / "index.html"
    assert f"page: {page}" in done.stdout
    assert page.exists()
    assert len(list((out / "report" / "figures").glob("*.svg"))) >= 4

    again = typed(*words)
    assert again.stdout == done.stdout
    assert "4 cells, 4 done already" in again.stderr
    assert "[1/4]" not in again.stderr

    assert typed("report", out).stdout == done.stdout


def test_a_subset_run_again_does_not_shrink_table_and_page(
    typed: Typed, tiny: list[object], tmp_path: Path
) -> None:
    def report(*words: object) -> str:
        _, shown, wrong = typed("report", out, *words)
        return shown or wrong

    out = tmp_path / "out"
    every = [*tiny, "--seeds", "0", "--out", out]
    fewer = [*every, "--methods", "head"]
    first = typed(*every, "--methods", "head,lora[rank=4]").stdout
    again = typed(*fewer)
    assert "1 cell, 1 done already" in again.stderr
    assert again.stdout == first
    page = out / "report" / "index.html"
    assert "lora[rank=4]" in page.read_text(encoding="utf-8")

    asked = typed(*fewer, "--json", "--quiet")
    assert [one["method"]["name"] for one in json.loads(asked.stdout)["records"]] == ["head"]

    assert report() == first
    for less in (["--last"], ["--methods", "head"]):
        shown = report(*less)
        assert " head " in shown and "lora" not in shown
        assert "lora" not in page.read_text(encoding="utf-8").partition("<script")[0]
    assert "lora[rank=4]" in report("--methods", "lora[rank=4],head")
    assert "unknown task 'tiney'; did you mean 'tiny'" in report("--tasks", "tiney")

    (texts,) = sentences(out).values()
    report()
    assert not any(text in page.read_text(encoding="utf-8") for text in texts)
    report("--sentences")
    assert all(text in page.read_text(encoding="utf-8") for text in texts)


def test_json_is_one_document_on_stdout_and_quiet_says_nothing_else(
    peftlab: Run, tiny: list[object], tmp_path: Path
) -> None:
    # the cells' processes import statistics: the current folder's must not be taken
    (tmp_path / "statistics.py").write_text("raise SystemExit('shadowed')")
    words = ["--methods", "head", "--seeds", "0", "--json", "--quiet", "--out", tmp_path / "out"]
    done = peftlab(*tiny, *words)
    assert done.returncode == 0
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert set(document) == {"suite", "out", "page", "records"}
    assert document["records"][0]["status"] == "done"
    assert document["out"] == str(tmp_path / "out")


def test_a_failed_cell_is_listed_and_the_exit_code_is_1(typed: Typed, tiny: list[object]) -> None:
    done = typed(*tiny, "--methods", "full[lr=1e30],head", "--seeds", "0")
    assert done.returncode == 1
    assert "1 of 2 cells failed:" in done.stderr
    assert "learning rate (1e+30 at its highest) is too high" in done.stderr
    assert "head" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "minilmm"], "unknown model 'minilmm'; did you mean 'minilm'"),
        (["--tasks", "paraphase"], "unknown task 'paraphase'; did you mean 'paraphrase'"),
        (["--methods", "lorra"], "unknown method 'lorra'; did you mean 'lora'"),
        (["--methods", "lora[rnk=4]"], "unknown setting of lora 'rnk'; did you mean 'rank'"),
        (["--methods", "lora[rank=0]"], "rank must be greater than or equal to 1, got 0"),
        (["--methods", "lora[targets=qery]"], "did you mean 'query'"),
        (["--methods", "lora[rank"], "a method is NAME or NAME[field=value,...]"),
        (["--set", "lora.rank=x"], "rank must be a valid integer, got 'x'"),
        (["--epochs", "0"], "epochs must be greater than or equal to 1, got 0"),
        (["--judge-on", "test"], "judge_on must be 'dev' or 'train', got 'test'"),
        (["--metric", "rmse"], "unknown metric of classes (task acceptability) 'rmse'"),
        (["--class-weights", "all"], "class_weights must be 'none' or 'balanced', got 'all'"),
        (
            ["--precision", "int4"],
            "precision must be 'auto', 'fp32', 'bf16', 'int8', 'int7' or",
        ),
        (["--seeds", "a"], "--seeds takes whole numbers"),
        (["--seeds", ""], "--seeds must name at least one"),
        (["--data", "none.csv", "--text", "a", "--label", "b"], "none.csv"),
        (["--data", "none.csv"], "needs --text COLUMN[,COLUMN] and --label COLUMN"),
        (["--text", "a"], "give the file with --data FILE"),
        (["--tasks", "mrpc", "--data-dir", "nowhere"], "nowhere"),
        (["none.toml"], "none.toml can't be read"),
        (["--out", "/proc/none"], "is not writable"),
        (["--max-length", "9999"], "max_length must be <= 512 for this model, got 9999"),
    ],
)
def test_a_wrong_request_is_explained_with_exit_code_2(
    words: list[str], message: str, typed: Typed, tmp_path: Path
) -> None:
    done = typed("compare", *words)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []  # nothing was trained, nothing is left


def test_a_wrong_request_is_explained_by_the_process_too(peftlab: Run) -> None:
    done = peftlab("compare", "--methods", "lorra")
    assert done.returncode == 2
    assert done.stdout == ""
    allowed = ", ".join(METHODS)
    said = f"error: unknown method 'lorra'; did you mean 'lora'? Allowed: {allowed}.\n"
    assert done.stderr == said


def test_debug_shows_the_traceback(typed: Typed) -> None:
    wrong = ("compare", "--methods", "lorra")
    for words in ((*wrong, "--debug"), ("--debug", *wrong)):
        done = typed(*words)
        assert done.returncode == 2
        assert "Traceback" in done.stderr
    assert "Traceback" not in typed(*wrong).stderr


def test_an_unknown_option_is_exit_code_2(typed: Typed) -> None:
    done = typed("compare", "--epoch", "1")
    assert done.returncode == 2
    assert "--epochs" in done.stderr


def test_report_of_nothing_is_explained(typed: Typed, tmp_path: Path) -> None:
    done = typed("report", tmp_path / "none")
    assert done.returncode == 2
    assert "has no records" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(
    typed: Typed, tiny: list[object], tmp_path: Path
) -> None:
    words = [*tiny, "--methods", "head,full", "--seeds", "0", "--epochs", "8", "--batch-size", "1"]
    words = [*map(str, words), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "peftlab", *words]
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    # a shell lets the jobs in its background ignore Ctrl-C, and they their own
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "[2/2]" in line:
                break
        running.send_signal(signal.SIGINT)
        rest = running.stderr.read()
    assert running.returncode == 130
    assert "the same command goes on from there" in rest
    assert "Traceback" not in rest
    assert len(list((tmp_path / "out" / "records").iterdir())) == 1
    again = typed(*words)
    assert again.returncode == 0, again.stderr
    assert "2 cells, 1 done already" in again.stderr
    assert len(list((tmp_path / "out" / "records").iterdir())) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_fit_writes_the_best_so_far_when_it_is_terminated(
    tiny_model: Path, tiny_csv: Path, tmp_path: Path
) -> None:
    words = ["fit", "--model", tiny_model, "--data", tiny_csv, "--label", "answer"]
    words += ["--text", "sentence", "--out", tmp_path / "adapter", "--runs", tmp_path / "runs"]
    words += ["--methods", "head,lora"]
    command = [sys.executable, "-m", "peftlab", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        ended = (line for line in running.stderr if "examples/s" in line)
        next(ended), next(ended)  # the first is counted when the second has ended
        running.terminate()
        rest = running.stderr.read()
    assert running.returncode == 143
    assert "stopped; the adapter is the best of what was finished" in rest
    assert (tmp_path / "adapter" / WEIGHTS).is_file()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("methods", [*METHODS, "294,912", "592,130", "arXiv:2402.09353"]),
        ("methods dora", ["rank", "8", "targets", "query,value", "head_lr"]),
        ("tasks", ["similarity", "synthetic", "mrpc", "need --data-dir FOLDER"]),
        ("models", ["minilm", "a folder", "modernbert"]),
    ],
)
def test_listings_say_what_there_is_and_whether_it_is_here(
    command: str, words: list[str], typed: Typed
) -> None:
    shown = typed(*command.split())
    assert shown.returncode == 0
    assert [word for word in words if word not in shown.stdout] == []


def test_doctor_checks_what_a_run_depends_on(peftlab: Run) -> None:
    shown = peftlab("doctor", HF_HUB_OFFLINE="1")
    assert shown.returncode == 0, shown.stderr
    for word in ("python", "torch", "threads", "precision", "hub", "disk", "GiB free"):
        assert word in shown.stdout


def test_doctor_says_what_a_kernel_that_is_not_built_costs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def check(library: Path) -> None:
        if library.stem != "rows":
            raise native.BuildError("Ninja is required")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "_check_can_build", check)
    monkeypatch.setattr(native, "processor_words", lambda: {"amx_bf16"})
    ((*_, told),) = [row for row in listings.machine(Path()) if row[0] == "kernels"]
    assert told == (
        "sentences.cpp not built: Ninja is required, so batches are padded; "
        "dropout.cpp not built: Ninja is required, "
        "so dropout, residual sum and LayerNorm are three passes; "
        "gelu.cpp not built: Ninja is required, so torch computes gelu in bf16; "
        "products.cpp not built: Ninja is required, so oneDNN multiplies by frozen weights; "
        "low_rank.cpp not built: Ninja is required, so torch adds low-rank updates; "
        "gain.cpp not built: Ninja is required, so torch scales by learned gains; "
        "rows.cpp built when first needed"
    )


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals to open")
def test_a_terminal_hears_something_before_torch_is_read(tmp_path: Path) -> None:
    """Torch takes seconds; where each import is told, the first word stands above its."""
    ours, theirs = os.openpty()
    words = ["-X", "importtime", "-m", "peftlab", "compare", "--data", "no.csv", "--text", "a"]
    with subprocess.Popen(
        [sys.executable, *words],
        cwd=tmp_path,
        env=os.environ | {"TERM": "xterm"},
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        heard = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while more := os.read(ours, 65536):
                heard += more
    os.close(ours)
    assert process.returncode == 2
    assert 0 < heard.index(b"starting") < heard.index(b" torch._utils")
