"""What the page chooses for all figures, methods hidden and one looked at, as it is drawn."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter

import pytest

from peftlab.records.trials import Trial
from peftlab.report import table, vega
from peftlab.report.figures import figures

KINDS = ("score", "loss", "speed", "memory", "peak", "front", "rank", "rate", "tuning", "trials")
RATES = (1e-4, 1e-3, 1e-2)
LORA, VERA = ([f"{method}[lr={rate:g}]" for rate in RATES] for method in ("lora", "vera"))


@pytest.fixture(scope="module")
def drawn(record, curves, tmp_path_factory):
    """A figure of every kind, of two methods at three rates, two seeds each."""
    folder = tmp_path_factory.mktemp("choices")
    records = []
    for method in ("lora", "vera"):
        for rate in RATES:
            for seed in (0, 1):
                label = f"{method}[lr={rate:g}]"
                by_rank = {"1": {"f1": 0.6 + 0.1 * seed}, "4": {"f1": 0.8}}
                one = record(method, seed=seed, label=label, score_by_rank=by_rank)
                one = one.model_copy(update={"training": one.training | {"lr": rate}})
                records.append(one)
                curves(one, folder)
    trials = [
        Trial(
            task="mrpc",
            data="cd" * 32,
            model="minilm",
            label=label,
            number=number,
            epochs=1,
            values={"lr": rate},
            metric="f1",
            score=0.5 + 0.1 * number,
            cell=f"{label}-{number}",
            chosen=number == 2,
            at_border=["lr"] if number == 2 else [],
        )
        for label in (*LORA, *VERA)
        for number, rate in enumerate(RATES)
    ]
    found = figures(table(records), folder / "curves", trials)
    assert {figure.kind for figure in found} == set(KINDS)
    return {figure.kind: figure.spec for figure in found}


def opacities(spec, **chosen):
    """How often each opacity is drawn among the marks, axes and legend apart."""
    params = [{**one, "value": chosen.get(one["name"], one["value"])} for one in spec["params"]]
    root = ET.fromstring(vega.svg({**spec, "params": params}))
    marks = [
        mark
        for group in root.iter("{http://www.w3.org/2000/svg}g")
        if "role-mark" in group.get("class", "") and "mark-group" not in group.get("class", "")
        for mark in group
    ]
    found = Counter(round(float(mark.get("opacity", 1)), 4) for mark in marks)
    found.pop(0.9, None)  # the line of a front, which is of no method
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_methods_leave_every_figure(drawn, kind):
    everything, lora, vera = (opacities(drawn[kind], off=off) for off in ([], VERA, LORA))
    assert lora and vera and everything == lora + vera
    assert not opacities(drawn[kind], off=[*LORA, *VERA])


@pytest.mark.parametrize("kind", KINDS)
def test_the_others_fade_in_every_figure(drawn, kind):
    one = LORA[1]  # not the first row of its curve
    others = [row for row in LORA if row != one]
    kept = opacities(drawn[kind], off=[*others, *VERA])
    faded = opacities(drawn[kind], off=[one])
    if kind == "rate":  # the line through several rows, of which one is looked at, is kept
        faded -= Counter({1.0: 1})
    assert opacities(drawn[kind], picked=one) == kept + Counter(
        {round(opacity / 8, 4): n for opacity, n in faded.items()}
    )


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_black_on_white_and_the_page_can_colour_them(drawn, kind):
    root = ET.fromstring(vega.svg(drawn[kind]))
    words = list(root.iter("{http://www.w3.org/2000/svg}text"))
    assert words
    assert {word.get("fill") for word in words} <= {"#000", "black"}
    assert all("style" not in word.attrib for word in words)  # which no style sheet could overrule
