"""The page in a real browser: drawn, sorted, filtered, without a network.

What a large comparison asks of it is tested on five hundred cells, all else on few: to draw them
takes seconds.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Error, expect, sync_playwright

from peftlab.records.influence import influences
from peftlab.report import build

pytestmark = pytest.mark.slow
expect.set_options(timeout=30_000)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = "</script><img src=x onerror=alert(1)>"
ROWS = ["full", "head", "lora", HOSTILE, *(f"lora-v{number}" for number in range(21))]
FEW = [*ROWS[:4], "lora-v1", "lora-v10", "lora-v12"]
LONG = ["full-with-a-name", "lora-with-a-name"]  # too long to stand at the end of a line
SENTENCE = "quoth the raven"  # of the data: it is on no page


def answered(task, n_dev, seed, quality):
    """(label, answer) of each dev example."""
    draw = random.Random(f"{quality}-{seed}")
    if task == "stsb":
        labels = [i % 50 / 10 for i in range(n_dev)]
        return [(label, round(label + draw.gauss(0, 1 - quality), 3)) for label in labels]
    labels = [i % 2 for i in range(n_dev)]
    return [(label, label if draw.random() < quality else 1 - label) for label in labels]


def add_answers(record, out, quality):
    """The record with the score of the answers that are written for it."""
    pairs = answered(record.task.name, record.task.n_dev, record.seed, quality)
    metric = record.task.main_metric
    score, _ = influences(metric, *np.array(pairs, np.float64).T)
    lines = (
        json.dumps({"label": label, "prediction": answer, "text": SENTENCE})
        for label, answer in pairs
    )
    path = out / "predictions" / f"{record.cell}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    return record.model_copy(update={"score": {metric: float(score)}})


class Built(NamedTuple):
    """The page's file, its tasks, and its rows by their score on mrpc."""

    path: Path
    tasks: tuple[str, ...]
    best_first: list[str]


@pytest.fixture(scope="module")
def large(record, curves, tmp_path_factory):
    """The page of 25 methods on 4 tasks by 5 seeds."""
    given = (ROWS, ("cola", "mrpc", "stsb", "grammar"), 5)
    return made(record, curves, tmp_path_factory.mktemp("large"), *given)


@pytest.fixture(scope="module")
def few(record, curves, tmp_path_factory):
    """The page of 7 methods on 3 tasks by 3 seeds."""
    given = (FEW, ("cola", "mrpc", "stsb"), 3)
    return made(record, curves, tmp_path_factory.mktemp("few"), *given)


def made(record, curves, out, rows, tasks, n_seeds):
    """A page of which the answers are known on two tasks."""
    records = []
    cells = itertools.product(rows, tasks, range(n_seeds))
    for number, (row, task, seed) in enumerate(cells):
        one = record(row, task, seed, label=row, cell=f"cell-{number}")
        if task == "mrpc" or (task == "stsb" and seed == 0 and row in ROWS[:2]):
            one = add_answers(one, out, 0.7 + 0.01 * ROWS.index(row))
        curves(one, out)
        records.append(one)
    scores = {row: [] for row in rows}
    for one in records:
        if one.task.name == "mrpc":
            scores[one.method.label].append(one.score["f1"])
    best_first = sorted(rows, key=lambda row: -np.mean(scores[row]))
    return Built(build(out, "cells", records, drawn=()), tasks, best_first)


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except Error as error:
            pytest.fail(
                f"no Chromium was found to test the page in ({', '.join(BROWSERS)}); install one "
                f"with apt-get install chromium, or with playwright install chromium: {error}"
            )
        yield started
        started.close()


class Seen:
    """What a page said and asked for that it should not."""

    def __init__(self, page):
        self.messages, self.requests = [], []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("dialog", lambda dialog: (self.messages.append("alert"), dialog.dismiss()))
        page.on("request", lambda request: self.requests.append(request.url))

    def _hear(self, message):
        if message.type == "error":
            self.messages.append(message.text)


@contextmanager
def opened(browser, built):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.seen = Seen(page)
    page.goto(built.path.as_uri())
    yield page
    page.close()


@pytest.fixture(scope="module")
def opened_few(browser, few):
    with opened(browser, few) as page:
        yield page


@pytest.fixture(scope="module")
def opened_large(browser, large):
    with opened(browser, large) as page:
        yield page


@pytest.fixture
def page(opened_few):
    """The page of few as it is when it is opened."""
    yield from anew(opened_few)


@pytest.fixture
def large_page(opened_large):
    yield from anew(opened_large)


def anew(page):
    """What happens is no error and asks for nothing."""
    page.reload()
    yield page
    assert page.seen.messages == []
    assert {url.partition("?")[0] for url in page.seen.requests} == {page.url.partition("#")[0]}


def rows_of(page, table="#score-table"):
    """The methods of a table's visible rows, from above."""
    return page.eval_on_selector_all(
        f"{table} tbody tr[data-method]:not([hidden])",
        "rows => rows.map(row => row.dataset.method)",
    )


def signal(page, name, figure="figure"):
    """A signal of the first figure that is drawn."""
    return page.evaluate(
        "([figure, name]) => charts.get(document.querySelector(figure)).view.signal(name)",
        [figure, name],
    )


def drawn(page, kind):
    """The first figure of a kind, scrolled to and drawn."""
    figure = page.locator(f'figure[id^="{kind}-"]').first
    figure.scroll_into_view_if_needed()
    figure.locator("svg.marks").wait_for()
    return figure


def test_it_is_small_and_its_first_view_quick(large_page, large):
    page = large_page
    assert large.path.stat().st_size < 3_000_000
    times = [math.inf]
    while min(times) >= 1000 and len(times) < 20:  # ms; others may have the processor for a while
        page.reload(wait_until="domcontentloaded")
        page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
        times.append(
            page.evaluate(
                "Math.max(performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd,"
                "performance.getEntriesByName('first-contentful-paint')[0].startTime)"
            )
        )
    assert min(times) < 1000


def test_a_click_on_a_head_sorts_by_what_is_not_rounded(large_page, large):
    page = large_page
    head = page.locator("#score-table thead th", has_text="mrpc")
    assert head.get_attribute("aria-sort") == "none"
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert rows_of(page) == large.best_first
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert rows_of(page) == large.best_first[::-1]
    page.locator("#score-table thead th", has_text="method").get_by_role("button").click()
    assert rows_of(page) == sorted(ROWS, key=lambda row: (row != HOSTILE, len(row), row))
    assert head.get_attribute("aria-sort") == "none"


def test_what_is_missing_comes_last_either_way(page):
    page.eval_on_selector_all(
        "#score-table tbody tr:nth-child(3) td:nth-child(2)",
        "cells => cells.forEach(cell => delete cell.dataset.value)",
    )
    head = page.locator("#score-table thead th", has_text="cola").get_by_role("button")
    for _ in range(2):
        head.click()
        assert rows_of(page)[-1] == FEW[2]


def test_a_filter_and_a_tick_hide_rows_and_tell_the_figures(page):
    drawn(page, "score")
    page.get_by_label("Filter methods by name").fill("LORA-V1")
    assert rows_of(page) == ["lora-v1", "lora-v10", "lora-v12"]
    assert page.locator("#choice output").inner_text() == "3 of 7"
    page.get_by_label("Show lora-v12", exact=True).uncheck()
    assert rows_of(page) == ["lora-v1", "lora-v10"]
    if has_signal(page, "off"):
        assert set(signal(page, "off", 'figure[id^="score-"]')) == set(FEW) - set(rows_of(page))
    page.get_by_role("button", name="None of the methods").click()
    assert rows_of(page) == []
    page.get_by_role("button", name="All methods").click()
    page.get_by_label("Filter methods by name").fill("")
    assert rows_of(page) == FEW
    assert "lora-v12" in rows_of(page, "table.verdicts")


def has_signal(page, name):
    return page.evaluate(
        "name => [...charts.values()].some("
        "chart => chart.spec?.params?.some(param => param.name === name))",
        name,
    )


def test_a_task_that_is_hidden_is_nowhere(page):
    page.locator("#choice summary").click()
    page.get_by_label("cola", exact=True).uncheck()
    assert page.locator("main [data-task=cola]:visible").count() == 0
    heads = page.locator("#score-table thead tr:last-child th:visible").all_inner_texts()
    first = page.locator("#score-table tbody tr").first.locator("td:visible").count()
    assert len(heads) == first + 1 and not any(head.startswith("cola") for head in heads)
    page.get_by_label("cola", exact=True).check()
    assert page.locator('figure[id="score-cola"]').is_visible()


def test_a_method_is_picked_by_keyboard_and_stands_out(page):
    button = page.locator("#choice").get_by_role("button", name="lora-v10", exact=True)
    button.focus()
    page.keyboard.press("Space")
    assert button.get_attribute("aria-pressed") == "true"
    assert page.locator("#score-table tr.picked").get_attribute("data-method") == "lora-v10"
    page.keyboard.press("Space")
    assert button.get_attribute("aria-pressed") == "false"
    assert page.locator("tr.picked").count() == 0


def test_the_table_is_taken_away(page, few):
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV", exact=True).click()
    assert download.value.suggested_filename == "scores.csv"
    with Path(download.value.path()).open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    cells = [*itertools.product(FEW, few.tasks)]
    assert [(line["method"], line["task"]) for line in lines] == cells
    best = [line["method"] for line in lines if line["standing"] == "best"]
    assert few.best_first[0] in best


def test_a_verdict_s_interval_is_reached_by_keyboard(page):
    pairs = page.locator("details[data-task=mrpc]:has(table.verdicts)")
    table, told = pairs.locator("table"), pairs.locator("output")
    pairs.locator("summary").click()
    stops = table.locator("td[tabindex='0']")
    assert stops.count() == 1 and told.inner_text() == ""
    page.mouse.move(0, 0)
    assert page.locator(".way-there").first.is_visible()
    stops.focus()
    assert told.inner_text().startswith("full − head: 95 %")
    page.keyboard.press("ArrowDown")  # past head - head, which is none
    assert told.inner_text().startswith("lora − head: 95 %")
    page.keyboard.press("Shift+ArrowDown")  # the browser's own
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    assert told.inner_text().startswith("head − full: 95 %")
    page.keyboard.press("ArrowUp")  # there is none above
    assert stops.count() == 1 and told.inner_text().startswith("head − full: 95 %")
    page.get_by_label("Show full", exact=True).uncheck()
    assert stops.is_visible()
    table.locator("td[title]:visible").last.hover()
    assert told.inner_text().startswith("lora-v12 − lora-v10: 95 %")


def test_a_hidden_method_is_faint_in_a_legend(browser, record, curves, tmp_path):
    records = [record(row, "cola", 0, label=row, cell=row) for row in LONG]
    for one in records:
        curves(one, tmp_path)
    page = browser.new_page()
    page.goto(build(tmp_path, "two", records, drawn=()).as_uri())
    entries = drawn(page, "score").locator(".role-legend-label text")
    assert entries.all_text_contents() == LONG
    opacities = "texts => texts.map(text => text.getAttribute('fill-opacity'))"
    assert entries.evaluate_all(opacities) == ["1", "1"]
    page.get_by_label(f"Show {LONG[1]}", exact=True).uncheck()
    expect(entries.nth(1)).to_have_attribute("fill-opacity", "0.25")
    assert entries.evaluate_all(opacities) == ["1", "0.25"]
    page.close()


def test_a_figure_answers_the_pointer(page):
    # else others that are drawn meanwhile move it from under the pointer
    page.wait_for_function("[...charts.values()].every(chart => chart.view)")
    figure = drawn(page, "peak-memory")
    figure.locator("svg .mark-rect path").nth(2).hover()
    page.locator("#vg-tooltip-element.visible").wait_for()
    bar = drawn(page, "speed").locator("svg .mark-rect path").nth(2)
    bar.hover()
    assert page.wait_for_function("choice.glanced").json_value() in FEW
    bar.click()
    assert page.locator("#choice button[aria-pressed=true]").count() == 1


def test_a_figure_s_data_is_given_as_csv(page):
    figure = drawn(page, "score")
    figure.locator("summary").click()
    with page.expect_download() as download:
        figure.get_by_text("Save data as CSV").click()
    assert download.value.suggested_filename == "score-cola.csv"
    with Path(download.value.path()).open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) >= 7 * 3 and {line["method"] for line in lines} == set(FEW)  # one table
    for kind in ("SVG", "PNG"):
        assert figure.get_by_text(f"Save as {kind}").count() == 1


def test_a_run_opens_with_the_command_that_repeats_it(page):
    page.get_by_text("finished cells, number by number").click()
    page.locator('[data-cell="cell-5"] button').click()
    dialog = page.get_by_role("dialog")
    assert dialog.get_by_role("heading").inner_text() == "full on mrpc, seed 2"
    command = dialog.locator("code").inner_text()
    assert "--tasks mrpc" in command and "--seeds 2 " in command and "rank=8" in command
    told = dialog.locator("dl").inner_text()
    assert "Example CPU" in told and "examples/s" in told and "cell-5" in told
    loss = dialog.get_by_role("img", name="training loss from")
    points = loss.locator("polyline").get_attribute("points").split()
    assert 2 < len(points) <= 40
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    page.locator('[data-cell="cell-5"] button').click()
    dialog.get_by_role("link", name="training loss").click()
    assert not dialog.is_visible() and page.evaluate("choice.picked") == "full"
    expect(page).to_have_url(re.compile("#loss-mrpc$"))
    assert page.locator("#loss-mrpc").is_visible()


def test_two_methods_answers_are_laid_side_by_side(page):
    page.get_by_label("Task", exact=True).select_option("mrpc")
    page.get_by_label("Method A").select_option("lora")
    page.get_by_label("Method B").select_option(HOSTILE)
    rows = page.locator("#pair-shown tbody tr")
    a, b = (answered("mrpc", 408, 0, 0.7 + 0.01 * number) for number in (2, 3))
    only = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x[0] == x[1] and y[0] != y[1]]
    told = [str(len(only)), ", ".join(map(str, only))]
    assert rows.nth(0).locator("td").all_inner_texts() == told
    counts = [int(rows.nth(n).locator("td").first.inner_text()) for n in range(4)]
    assert sum(counts) == 408
    page.get_by_label("Task", exact=True).select_option("stsb")
    a, b = (answered("stsb", 1500, 0, 0.7 + 0.01 * n) for n in (0, 1))
    gaps = [abs(abs(x[0] - x[1]) - abs(y[0] - y[1])) for x, y in zip(a, b, strict=True)]
    assert rows.nth(0).locator("th").inner_text() == str(int(np.argmax(gaps)))
    assert rows.count() == 20
    assert SENTENCE not in page.content()


def test_what_examples_say_is_shown_if_asked_for(browser, record, tmp_path):
    records = [
        add_answers(record(row, task, 0, label=row, cell=f"{row}-{task}"), tmp_path, quality)
        for row, quality in (("full", 0.9), ("lora", 0.7))
        for task in ("mrpc", "stsb")
    ]
    texts = {one.task.sha256: [f"{i} {HOSTILE}" for i in range(2_000)] for one in records}
    page = browser.new_page()
    page.seen = Seen(page)
    page.goto(build(tmp_path, "two", records, drawn=(), sentences=texts).as_uri())
    page.get_by_label("Task", exact=True).select_option("mrpc")
    first = page.locator("#pair-shown li").first.inner_text()
    number = first.partition(":")[0]
    assert first == f"{number}: {number} {HOSTILE}"
    page.get_by_label("Task", exact=True).select_option("stsb")
    number, *_, said = (
        page.locator("#pair-shown tbody tr").first.locator("th, td").all_inner_texts()
    )
    assert said == f"{number} {HOSTILE}"
    assert page.seen.messages == []
    page.close()


def test_on_paper_it_is_small_and_whole(large_page, tmp_path):
    page = large_page
    page.wait_for_function("[...charts.values()].every(chart => chart.view)")
    path = tmp_path / "page.pdf"
    page.pdf(path=path, tagged=True)
    assert path.stat().st_size < 5_000_000
    assert page.locator("details[open] .verdicts").count() == 0  # as it was before


@pytest.mark.parametrize("n_tasks", [6, 12])
def test_a_wide_table_is_whole_on_paper(browser, record, curves, tmp_path, n_tasks):
    """Chromium makes a page smaller by a third at the most; six tasks lost their costs."""
    tasks = ("cola", "mrpc", "stsb", *(f"task{n}" for n in range(n_tasks - 3)))
    with opened(browser, made(record, curves, tmp_path, ROWS[:14], tasks, 2)) as page:
        page.pdf(path=tmp_path / "page.pdf", prefer_css_page_size=True)
        box = re.search(rb"MediaBox \[0 0 (\d+)[.\d]* (\d+)", (tmp_path / "page.pdf").read_bytes())
        assert int(box[1]) > int(box[2])  # landscape
        paper = 1122 - 2 * 53  # pixels: A4's longer side without the margins
        page.set_viewport_size({"width": paper, "height": 700})
        page.emulate_media(media="print")
        right = page.eval_on_selector("#score-table", "one => one.getBoundingClientRect().right")
        assert paper < right < 1.45 * paper


def test_by_keyboard_nothing_is_reached_behind_the_bar(large_page):
    page = large_page
    page.wait_for_function("[...charts.values()].every(chart => chart.view)")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.locator("footer").click()
    reached = 0
    while True:
        page.keyboard.press("Shift+Tab")
        inside, bottom, bar = page.evaluate(
            "() => [!!document.activeElement.closest('main'), "
            "document.activeElement.getBoundingClientRect().bottom, "
            "document.getElementById('choice').getBoundingClientRect().bottom]"
        )
        if not inside:
            break
        reached += 1
        assert bottom > bar
    assert reached > 20


def test_what_is_ticked_is_shown_after_going_back(browser, few):
    with opened(browser, few) as page:
        page.locator("#choice li input").first.uncheck()
        page.locator("#choice [type=search]").fill("vera")
        page.goto("about:blank")
        page.go_back()
        boxes = page.locator("#choice li input")
        ticked = [boxes.nth(n).is_checked() for n in range(boxes.count())]
        shown = page.locator("#choice output").inner_text()
        assert shown == f"{sum(ticked)} of {len(ticked)}"
        assert page.locator("#choice [type=search]").input_value() == ""


def test_a_task_that_is_off_takes_its_failed_cells_along(browser, record, failed, tmp_path):
    lost = failed("dora", "mrpc", 0)
    other = record("lora", "cola")
    path = build(tmp_path, "s", [record("lora", lost.task.name), other, lost], drawn=())
    with opened(browser, Built(path, None, None)) as page:
        cell = page.locator(f'main [data-cell="{lost.cell}"]').first
        assert cell.is_visible()
        page.locator("#choice details summary").click()
        page.locator(f'#choice [name=task][value="{lost.task.name}"]').uncheck()
        assert not cell.is_visible()


def test_a_link_leads_to_its_section_while_figures_are_drawn(large_page):
    page = large_page
    page.locator("nav").get_by_role("link", name="Every run").click()
    page.wait_for_function("[...charts.values()].every(chart => chart.view)")
    top, bar = page.locator("#seeds").bounding_box()["y"], page.locator("#choice").bounding_box()
    assert bar["y"] + bar["height"] <= top < 450  # not behind the bar, however high that is


def test_markup_in_names_stays_text(page):
    assert page.locator("img").count() == 0
    row = page.locator("#score-table tbody tr").nth(3)
    assert row.locator("th").inner_text() == HOSTILE


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_labels_pass_axe(browser, out, scheme):
    page = browser.new_page(color_scheme=scheme)
    page.goto((out / "report" / "index.html").as_uri())
    drawn(page, "speed")
    page.eval_on_selector_all("main details", "all => all.forEach(one => (one.open = true))")
    page.locator("#choice li button").first.click()
    found = Axe().run(page).response["violations"]
    page.locator("[data-cell] button").first.click()
    found += Axe().run(page, context="#run").response["violations"]
    page.close()
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found] == []


def test_a_phone_needs_no_scrolling_aside(browser, large):
    page = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True)
    page.goto(large.path.as_uri())
    drawn(page, "score")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    pairs = page.locator("details[data-task=mrpc]:has(table.verdicts)")
    pairs.locator("summary").tap()
    pairs.locator("td[title]").first.tap()
    assert pairs.locator("output").inner_text().startswith("full − head: 95 %")
    page.close()
