"""The table for papers: digits that the sd lets stand, marks, names from outside as text."""

from __future__ import annotations

import csv
import io
import re

import pytest
from typer.testing import CliRunner

from peftlab.cli import app
from peftlab.records.store import Store
from peftlab.records.verdicts import compare_rows
from peftlab.report import papers, table
from peftlab.report.papers import rounded


def made(form, records):
    return papers.FORMS[form].text(table(records), compare_rows(records, []))


@pytest.fixture
def rows(record):
    scores = {("lora", 0): 0.8612, ("lora", 1): 0.8734, ("full", 0): 0.85, ("full", 1): 0.8508}
    return [record(method, seed=seed, score=score) for (method, seed), score in scores.items()]


@pytest.mark.parametrize(
    ("mean", "sd", "expected"),
    [
        (0.86123, 0.00354, ("0.8612", "0.0035")),
        (0.86123, 0.00355, ("0.861", "0.004")),
        (0.86123, 0.0949, ("0.86", "0.09")),
        (0.86123, 0.0951, ("0.86", "0.10")),
        (1234.5, 12.0, ("1234", "12")),
        (0.5, 0.0, ("0.500", "0.000")),
    ],
)
def test_digits_are_those_that_the_sd_lets_stand(mean, sd, expected):
    """The Particle Data Group's rule: the sd's three leading digits decide, 355 and 950 apart."""
    assert rounded(mean, sd, 0.001) == expected


def test_latex_has_marks_a_line_a_row_and_says_what_it_holds(rows):
    text = made("latex", rows)
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert body[0].startswith(r"\begin{tabular}{lr") and body[-1] == r"\end{tabular}"
    assert len({line.count("&") for line in body if line.endswith(r"\\")}) == 1
    (best,) = (line for line in body if line.startswith("lora &"))
    assert r"$\mathbf{0.867} \pm 0.009$" in best
    (other,) = (line for line in body if line.startswith("full &"))
    assert r"$0.8504^{?} \pm 0.0006$" in other
    assert "% Dev, last epoch, mean ± sample sd over 2 seeds, where no other n is given." in text


def test_markdown_is_a_table(rows):
    lines = made("markdown", rows).splitlines()
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert re.match(r"\|---\|(---:\|)+$", lines[1])
    assert "**0.867** ± 0.009" in lines[2] and "0.8504 ± 0.0006 ?" in lines[3]


def test_csv_has_full_precision(rows):
    first, second = csv.DictReader(io.StringIO(made("csv", rows)))
    assert float(first["mean"]) == pytest.approx((0.8612 + 0.8734) / 2, abs=1e-15)
    assert (first["method"], first["standing"], second["standing"]) == ("lora", "best", "unclear")
    assert first["n_seeds"] == "2" and float(first["peak_mib"]) > 0


def test_one_seed_has_no_sd_and_a_failed_row_no_score(record, failed):
    text = made("latex", [record("lora", score=0.86123), failed("full")])
    assert "lora & $0.861$" in text and "full & -- (failed) &" in text and "one seed" in text


def test_what_a_score_hides_stands_beside_it(record, failed):
    flat = {"warnings": ["collapsed: no better than always answering 'yes'"]}
    lora = [record("lora", seed=seed, score=0.8) for seed in range(3)]
    lora[0] = lora[0].model_copy(update=flat)
    full = [record("full", seed=seed, score=0.9) for seed in range(2)]
    full += [failed("full", seed=2)]
    head = [record("head", seed=0, score=0.5)]
    lines = made("markdown", [*lora, *full, *head]).splitlines()
    told = {line.split(" | ")[0].strip("| "): line.split(" | ")[1] for line in lines[2:5]}
    assert told["lora"].endswith("(1 of 3 collapsed)")
    assert told["full"].endswith("(1 of 3 failed)")
    assert told["head"].endswith("(n = 1)")
    assert "(1 of 3 collapsed)" in made("latex", [*lora, *full, *head])


WILD = r"a_b & 50% \input{x} | <b> ~ ^ # $ {" + "\n=1"


def test_names_from_outside_are_text(record):
    one = record("lora", label=WILD, score=0.9)
    latex = made("latex", [one])
    line = next(line for line in latex.splitlines() if line.startswith("a"))
    assert line.startswith(r"a\_b \& 50\% \textbackslash{}input\{x\} \textbar{}")
    tuned = record("lora", label=f"other {WILD}", score=0.9)
    how = {"trials": 4, "validation": 0.1, "space": ["lr"]}
    tuned = tuned.model_copy(update={"method": tuned.method.model_copy(update={"tuned": how})})
    text = made("markdown", [one, tuned])
    assert len(text.splitlines()) == 6
    assert text.count(r"\<b\>") == 3 and "<b>" not in text.replace(r"\<b\>", "")
    assert "'=1" in made("csv", [record("lora", label="=1", score=0.9)])


@pytest.fixture
def folder(rows, tmp_path):
    store = Store(tmp_path / "out")
    for one in rows:
        store.write_record(one)
    return tmp_path / "out"


def test_the_command_prints_the_table_alone_and_writes_nothing(folder):
    for form, first in (("latex", "% Dev"), ("markdown", "| method |"), ("csv", "method,task,")):
        done = CliRunner().invoke(app, ["report", str(folder), f"--{form}"])
        assert done.exit_code == 0 and done.stdout.startswith(first)
    assert not (folder / "report").exists()
    both = CliRunner().invoke(app, ["report", str(folder), "--latex", "--csv"])
    assert "give one of --latex, --markdown, --csv" in str(both.exception)


def test_figures_as_pdf(folder):
    done = CliRunner().invoke(app, ["report", str(folder), "--no-svg", "--pdf"])
    assert done.exit_code == 0
    figures = sorted((folder / "report" / "figures").iterdir())
    assert figures and all(file.read_bytes().startswith(b"%PDF") for file in figures)


def test_means_over_fewer_tasks_are_marked(record):
    text = made("markdown", [record("lora", "mrpc"), record("lora", "rte"), record("vera", "mrpc")])
    marks = [line.count("†") for line in text.splitlines() if line.startswith(("| lora", "| vera"))]
    assert marks == [0, 2]
    assert "compares with none of them" in text and "memory the highest" in text


def test_a_task_s_name_is_no_markup(record):
    head, rule, *_ = made("markdown", [record("lora", "a|b")]).splitlines()
    assert head.replace(r"\|", "").count("|") == rule.count("|")


def test_a_mean_that_rounds_to_nothing_has_no_sign():
    assert rounded(-0.0002, 0.012, 0.001) == ("0.000", "0.012")


def test_a_row_s_name_is_no_argument_of_the_line_before(record):
    """LaTeX's end of a line takes what stands in brackets behind it, and a star."""
    text = made("latex", [record("lora", label="[ours] lora"), record("vera", label="*vera")])
    assert "{[}ours] lora" in text and "{*}vera" in text


def test_csv_has_each_task_s_head_and_a_letter_for_unlike_conditions(record):
    two, many = record("lora", task="mrpc"), record("vera", task="mnli")
    n = many.n_trainable.model_copy(update={"head": 7, "total": many.n_trainable.adapter + 7})
    elsewhere = many.environment.model_copy(update={"processor": "another"})
    many = many.model_copy(update={"n_trainable": n, "environment": elsewhere})
    lines = list(csv.DictReader(io.StringIO(made("csv", [two, many]))))
    assert [line["head"] for line in lines] == [str(two.n_trainable.head), "7"]
    assert [line["conditions"] for line in lines] == ["a", "b"]
    assert all(line["examples_per_s"] for line in lines)
