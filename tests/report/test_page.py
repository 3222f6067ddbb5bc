"""The page: self-contained, safe with hostile names, complete."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from peftlab.report import build, vega

HOSTILE = "</script><script>alert('x')</script>\"><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Every tag with its attributes, every script's text, and the visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.text = [], [], ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            attrs, before = self.scripts[-1]
            self.scripts[-1] = (attrs, before + data)
        elif self._inside != "style":
            self.text += data


@pytest.fixture(scope="module")
def source(out):
    return (out / "report" / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


@pytest.fixture(scope="module")
def hostile(record, failed, curves, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    records = [record(task=HOSTILE, label=HOSTILE, seed=0, cell="a", settings={HOSTILE: HOSTILE})]
    records.append(failed(task=HOSTILE, label=HOSTILE, seed=1, cell="b", message=HOSTILE))
    curves(records[0], folder)
    path = build(folder, HOSTILE, records)
    return path.read_text(encoding="utf-8")


def test_loads_nothing_from_anywhere(page):
    for tag, attrs in page.tags:
        for name in ("src", "srcset", "action", "data", "poster", "background"):
            assert name not in attrs
        if "href" in attrs:
            inside = attrs["href"].startswith("#") or (tag, attrs["href"]) == ("link", "data:,")
            taken_away = "download" in attrs and attrs["href"].startswith("data:text/plain;")
            assert inside or taken_away


def test_names_no_address_but_namespaces(source):
    own = source.replace(vega.bundle(), "")
    assert set(re.findall(r"https?://[^\s\"'<]+", own)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "@import" not in own and "url(" not in own


def test_policy_allows_our_two_scripts_and_no_network(page):
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert "default-src 'none'" in policy and "connect-src" not in policy
    code = [text for attrs, text in page.scripts if "type" not in attrs]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in code]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert len(code) == 2


def test_one_copy_of_vega(source):
    assert source.count(vega.bundle()) == 1
    assert source.count(vega.bundle()[:2000]) == 1


def test_is_small(source):
    assert len(source.encode()) < 3_000_000


def test_shows_every_section_and_number(page):
    for words in (".815 ± .007", "1 of 2 failed", "22.7 M", "synthetic", "dev 408", "†"):
        assert words in re.sub(r"\s+", " ", page.text)
    headings = [attrs["id"] for tag, attrs in page.tags if tag == "h2"]
    assert headings == [
        *("scores", "curves", "speed", "memory", "four", "compared", "seeds", "methods"),
        *("failed", "environment", "measured"),
    ]


def test_failed_cells_are_listed_with_their_reason(page):
    assert "lora, mrpc, seed 1" in page.text
    assert "Diverged: the loss became NaN at step 31" in page.text


def test_every_figure_has_words_and_a_still_picture(page, source):
    figures = [attrs for tag, attrs in page.tags if tag == "figure"]
    assert len(figures) == 12
    assert all(attrs["role"] == "group" and attrs["aria-label"] for attrs in figures)
    assert len({attrs["id"] for attrs in figures}) == 12  # each is drawn once
    assert source.count("<figcaption>") == 12
    assert source.count("<noscript><svg") == 12


def test_without_svg_files_the_page_says_so(record, tmp_path):
    path = build(tmp_path, "demo", [record()], drawn=())
    assert not (path.parent / "figures").exists()
    assert "This figure needs JavaScript" in path.read_text(encoding="utf-8")


def test_tables_have_captions_and_scopes(page):
    for tag, attrs in page.tags:
        if tag == "th":
            assert attrs.get("scope") in {"col", "row", "colgroup", "rowgroup"}


def test_hostile_names_are_text(hostile):
    page = Page(hostile)
    assert not any(tag == "img" for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert sum("type" not in attrs for attrs, _ in page.scripts) == 2
    for attrs, text in page.scripts:
        if attrs.get("type") == "application/json":
            json.loads(text)
    assert (
        "<title>"
        + html.escape(HOSTILE, quote=True).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
        in hostile
    )


def test_hostile_names_reach_the_figures_whole(hostile):
    page = Page(hostile)
    specs = [json.loads(text) for attrs, text in page.scripts if attrs.get("type")]
    assert any(HOSTILE in json.dumps(spec).replace('\\"', '"') for spec in specs)


def test_baselines_are_rows_apart_without_cost(record, tmp_path):
    task = record().task.model_copy(update={"baselines": {"majority": {"f1": 0.812}}})
    text = build(
        tmp_path,
        "demo",
        [record(task="cola"), record().model_copy(update={"task": task})],
        drawn=(),
    ).read_text(encoding="utf-8")
    (group,) = re.findall(r'<tbody class="baselines">.*?</tbody>', text, flags=re.DOTALL)
    cells = re.findall(r"<td([^>]*)>(.*?)</td>", group)
    assert cells == [("", "–"), ("", ".812"), (' colspan="7"', "")]
    assert "Baselines train nothing of the model" in text


def test_what_an_earlier_search_found_is_not_counted(record, tmp_path):
    def tuned(seed, rate):
        one = record("lora", "mrpc", seed)
        method = one.method.model_copy(
            update={"tuned": {"trials": 6, "validation": 0.1, "space": ["lr"]}}
        )
        training = one.training | {"lr": rate}
        change = {"cell": f"{one.cell}-{rate}", "method": method, "training": training}
        return one.model_copy(update=change)

    records = [tuned(seed, 1e-3) for seed in range(5)] + [tuned(seed, 2e-3) for seed in range(2)]
    source = build(tmp_path, "s", records, drawn=()).read_text(encoding="utf-8")
    assert "1 method, 1 task, 2 seeds: 2 cells" in " ".join(Page(source).text.split())
    assert "<dt>cells</dt><dd>2</dd>" in source


def test_what_a_score_hides_stands_below_it(record, tmp_path):
    records = [record(seed=0, warnings=["never predicts <b>"]), record(seed=1)]
    text = build(tmp_path, "demo", records, drawn=()).read_text(encoding="utf-8")
    assert '<small class="hidden">1 of 2 seeds: never predicts &lt;b&gt;</small>' in text
    assert "marks a score that hides something." in text


def test_scores_by_rank_have_a_table_and_a_figure(record, tmp_path):
    by_rank = [{"1": {"f1": 0.6}, "16": {"f1": 0.8}}, {"1": {"f1": 0.7}, "16": {"f1": 0.9}}]
    records = [record("dylora", seed=n, score_by_rank=one) for n, one in enumerate(by_rank)]
    page = Page(build(tmp_path, "demo", records).read_text(encoding="utf-8"))
    words = "".join(page.text.split())
    assert "ranksinusemethodtask116dyloramrpcf1.650±.071.850±.071" in words
    assert ("tr", {"data-method": "dylora", "data-task": "mrpc"}) in page.tags
    assert (tmp_path / "report" / "figures" / "rank-mrpc.svg").exists()
    assert "f1 on dev over the number of ranks in use for dylora." in {
        attrs.get("aria-label") for _, attrs in page.tags
    }


def test_default_rates_are_said_to_be_defaults(record, tmp_path):
    part = record().method.model_copy(update={"rate_from": "default"})
    records = [record().model_copy(update={"method": part}), record("dora")]
    text = build(tmp_path, "demo", records, drawn=()).read_text(encoding="utf-8")
    assert "Learning rates are defaults, not tuned here: lora." in text


def test_figures_of_an_earlier_report_are_removed(record, tmp_path):
    build(tmp_path, "demo", [record(task="cola"), record(task="mrpc")])
    build(tmp_path, "demo", [record(task="mrpc")])
    left = {path.name for path in (tmp_path / "report" / "figures").iterdir()}
    assert left == {"speed-mrpc.svg", "peak-memory-mrpc.svg"}


def test_a_model_of_unknown_weights_is_shown_without_a_hash(record, tmp_path):
    model = {"name": "mine", "revision": None, "sha256": None}
    text = build(tmp_path, "demo", [record(model=model)], drawn=()).read_text(encoding="utf-8")
    assert "mine" in text and "weights sha256" not in text


def test_leaves_no_temporary_files(out):
    assert not list((out / "report").rglob(".*"))


def test_the_same_records_make_the_same_page(suite, out, source):
    path = build(out, "demo", suite)
    assert path.read_text(encoding="utf-8") == source


def test_nothing_finished_is_still_a_page(failed, tmp_path):
    text = build(tmp_path, "demo", [failed()]).read_text(encoding="utf-8")
    assert "no cell finished" in text
    assert "demo" in build(tmp_path, "demo", []).read_text(encoding="utf-8")


def test_cache_that_cannot_be_written_is_done_without(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(vega, "cache_folder", lambda: blocked / "peftlab")
    assert "vegaEmbed" in vega.bundle()


def test_building_a_report_imports_no_torch(suite, out, tmp_path, cache):
    records = tmp_path / "records.jsonl"
    records.write_text("\n".join(one.model_dump_json() for one in suite), encoding="utf-8")
    code = (
        "import sys; from pathlib import Path\n"
        "from peftlab.records.record import Record\n"
        "from peftlab.report import build\n"
        f"lines = Path({str(records)!r}).read_text().splitlines()\n"
        f"build(Path({str(tmp_path)!r}), 'demo', [Record.model_validate_json(x) for x in lines])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'sklearn', 'pandas'}\n"
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    env = os.environ | {"XDG_CACHE_HOME": str(cache)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0
