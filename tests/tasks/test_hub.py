"""The hub, played by a small server on this machine; a user's process has a cache of its own."""

from __future__ import annotations

import atexit
import hashlib
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import peftlab.network as probe
from peftlab import tasks
from peftlab.api.again import task_again
from peftlab.api.request import data_of
from peftlab.bench.grid import resolve, task_part
from peftlab.bench.outcome import Failed, failure_record
from peftlab.bench.run import write_suite
from peftlab.bench.suite import make_suite
from peftlab.errors import RequestError
from peftlab.machine import environment
from peftlab.records.record import Failure, TaskPart
from peftlab.records.store import Store
from peftlab.tasks import hub
from peftlab.tasks.files import rows
from peftlab.tasks.glue import COMMIT, REPO

NEWEST, OLDER, CONVERTED = "a" * 40, "b" * 40, "c" * 40
SENTENCES = ['She said "no.', "Zwei\u2028Zeilen", "plain", " spaces stay "]
SCORES = [0.0, 3.8, 4.333, 5.0]
CARD = b"---\nlicense: cc-by-4.0\n---\n"

# Loads every task that it is asked for, and says what came of each.
LOAD = """
import dataclasses, json, os, sys, time
start = time.perf_counter()
from peftlab import errors, network, tasks
network.PROBE_S = float(os.environ.get("PROBE_S", network.PROBE_S))
for asked in sys.argv[1:]:
    try:
        if asked.startswith("hub:"):
            name, text, label, kind = asked.split()
            task = tasks.load_file(name, text.split(","), label, kind=kind)
        else:
            task = tasks.load(asked)
        answer = dataclasses.asdict(task) | {"sha256": task.sha256()}
    except errors.RequestError as error:
        answer = {"error": str(error)}
    answer["s"] = time.perf_counter() - start
    answer["heavy"] = sorted({"torch", "transformers", "pyarrow", "pandas"} & set(sys.modules))
    if asked in tasks.glue.GLUE:
        answer["here"] = tasks.glue.GLUE[asked].is_here()
    print(json.dumps(answer))
"""


@pytest.fixture(scope="module", autouse=True)
def no_data_folder():
    """Without the folder of GLUE's files, which is taken before the hub."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PEFTLAB_DATA_DIR", raising=False)
        yield


def parquet(columns: dict[str, Any], names: list[str] | None = None) -> bytes:
    """A file as the library `datasets` writes it: `names` are those of the label's classes."""
    features: dict[str, Any] = {name: {"dtype": "string", "_type": "Value"} for name in columns}
    if names:
        features["label"] = {"names": names, "_type": "ClassLabel"}
    info = json.dumps({"info": {"features": features}})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns).replace_schema_metadata({"huggingface": info}), sink)
    return sink.getvalue().to_pybytes()


def reviews(start: int, n: int, names: list[str] | None = None, **more: Any) -> bytes:
    numbers = range(start, start + n)
    columns = {"text": [f"text {i}" for i in numbers], "label": [i % 2 for i in numbers]}
    return parquet(columns | more, names)


def glue() -> dict[str, bytes]:
    """Two of GLUE's configs, laid out as the hub has them."""
    pair = {"sentence1": SENTENCES, "sentence2": SENTENCES[::-1]}
    rte = parquet(pair | {"label": [0, 1, 1, 0]}, ["entailment", "not_entailment"])
    stsb = parquet(pair | {"label": pa.array(SCORES, pa.float32())})
    files = {"README.md": b"---\nlicense:\n- other\n---\n"}
    for split in ("train", "validation", "test"):
        files[f"rte/{split}-00000-of-00001.parquet"] = rte
        files[f"stsb/{split}-00000-of-00001.parquet"] = stsb
    return files


# repository -> revision -> its commit and files
Repositories = dict[str, dict[str, tuple[str, dict[str, bytes]]]]

NAMES = ["neg", "pos"]
SHARDS = [reviews(0, 30, NAMES), reviews(30, 10, NAMES)]
REPOSITORIES: Repositories = {
    REPO: {"main": (NEWEST, {}), COMMIT: (COMMIT, glue())},
    "someone/reviews": {
        "main": (
            NEWEST,
            {
                "README.md": CARD,
                "data/train-00000-of-00002.parquet": SHARDS[0],
                "data/train-00001-of-00002-0123456789abcdef.parquet": SHARDS[1],
                "data/validation-00000-of-00001.parquet": reviews(40, 8, NAMES),
                "data/test-00000-of-00001.parquet": reviews(48, 8, NAMES),
            },
        ),
        "v1": (OLDER, {"train.parquet": reviews(0, 20)}),
    },
    "someone/scores": {
        "main": (NEWEST, {"README.md": CARD, "scores.csv": b"text,label"}),
        "refs/convert/parquet": (
            CONVERTED,
            {
                "default/train/0000.parquet": reviews(0, 30, label=[i / 8 for i in range(30)]),
                "default/train/0001.parquet": reviews(30, 10, label=[i / 8 for i in range(10)]),
            },
        ),
    },
    "someone/languages": {
        "main": (
            NEWEST,
            {f"{name}/train-00000-of-00001.parquet": reviews(0, 20, NAMES) for name in ("de", "en")}
            | {"en/validation-00000-of-00001.parquet": reviews(20, 4, NAMES)},
        )
    },
    "someone/rte": {"main": (NEWEST, {"train.parquet": reviews(0, 20)})},
    "someone/csv": {"main": (NEWEST, {"README.md": CARD, "train.csv": b"text,label"})},
    "someone/holes": {
        "main": (
            NEWEST,
            {
                "train.parquet": reviews(0, 6, NAMES, label=[0, 1, 0, 1, -1, 1]),
                "validation.parquet": reviews(6, 4, NAMES),
            },
        )
    },
}


class Handler(http.server.BaseHTTPRequestHandler):
    repositories: Repositories
    asked: list[str]

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f"{self.command} {path}")
        found = re.fullmatch(r"/(api/)?datasets/([^/]+/[^/]+)(?:/(?:resolve|revision)/(.+))?", path)
        if found is None:
            self.send(200 if path == "/" else 404)
            return
        revisions = self.repositories.get(found[2])
        if revisions is None:
            self.send(404, headers={"X-Error-Code": "RepoNotFound"})
            return
        rest = found[3] or "main"
        at = revisions | {commit: (commit, files) for commit, files in revisions.values()}
        revision = next((name for name in at if f"{rest}/".startswith(f"{name}/")), None)
        if revision is None:
            self.send(404, headers={"X-Error-Code": "RevisionNotFound"})
        elif found[1]:
            self.send_info(found[2], *at[revision])
        else:
            self.send_file(rest[len(revision) + 1 :], *at[revision])

    def send_info(self, repo: str, commit: str, files: dict[str, bytes]) -> None:
        info = {"_id": "x", "id": repo, "sha": commit, "private": False, "tags": []}
        info |= {"siblings": [{"rfilename": name} for name in files]}
        self.send(200, json.dumps(info).encode())

    def send_file(self, name: str, commit: str, files: dict[str, bytes]) -> None:
        headers = {"X-Repo-Commit": commit}
        if name in files:
            digest = hashlib.sha1(files[name]).hexdigest()
            self.send(200, files[name], headers | {"ETag": f'"{digest}"'})
        else:
            self.send(404, b"{}", headers | {"X-Error-Code": "EntryNotFound"})

    def send(
        self, status: int, content: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@dataclass
class Hub:
    endpoint: str
    asked: list[str] = field(default_factory=list)


@contextmanager
def running_hub(repositories: Repositories) -> Iterator[Hub]:
    asked: list[str] = []
    handler = type("Playing", (Handler,), {"repositories": repositories, "asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield Hub(f"http://127.0.0.1:{server.server_port}", asked)
        finally:
            server.shutdown()
            thread.join()


def user_loads(home: Path, endpoint: str, *asked: str, **environment: str) -> list[dict[str, Any]]:
    """What comes of loading in a fresh process whose cache is `home`; it prints nothing else."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    # a hub that is there may take its time on a busy machine
    env = {**kept, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "PROBE_S": "60", **environment}
    env |= {"NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", LOAD, *asked]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "not a line of the library's"
    return [json.loads(line) for line in done.stdout.splitlines()]


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return {**one, "s": 0, "heavy": 0} == {**other, "s": 0, "heavy": 0}


CLOSED = socket.socket()  # bound, so that nobody else gets it, and nobody listens
CLOSED.bind(("127.0.0.1", 0))
atexit.register(CLOSED.close)


def closed_port() -> str:
    return f"http://127.0.0.1:{CLOSED.getsockname()[1]}"


@dataclass
class Visit:
    home: Path
    answers: dict[str, dict[str, Any]]  # what was asked -> what came of it
    asked: list[str]  # of the server, which is stopped


REVIEWS = "hub:someone/reviews text label auto"
OLD_REVIEWS = "hub:someone/reviews@v1 text label auto"
SCORED = "hub:someone/scores text label auto"
NAMESAKE = "hub:someone/rte text label auto"
ENGLISH = "hub:someone/languages/en text label auto"
RTE_ITSELF = f"hub:{REPO}/rte@{COMMIT} sentence1,sentence2 label auto"


@pytest.fixture(scope="module")
def visited(tmp_path_factory: pytest.TempPathFactory) -> Visit:
    """A cache that tasks were loaded into."""
    home = tmp_path_factory.mktemp("visited")
    wanted = ("rte", "stsb", REVIEWS, OLD_REVIEWS, SCORED, ENGLISH, NAMESAKE, RTE_ITSELF)
    with running_hub(REPOSITORIES) as server:
        answers = user_loads(home, server.endpoint, *wanted)
    return Visit(home, dict(zip(wanted, answers, strict=True)), server.asked)


def test_a_task_comes_from_the_hub_with_its_commit_and_licence(visited):
    rte = visited.answers["rte"]
    assert rte["source"] == f"hub nyu-mll/glue@{COMMIT}"
    assert rte["licence"] == "other"
    assert rte["dev"]["labels"] == [0, 1, 1, 0]
    assert rte["here"]
    assert visited.asked[0] == "HEAD /datasets/nyu-mll/glue/resolve/main/README.md"


def test_scores_of_the_hub_are_those_of_the_files(visited):
    assert visited.answers["stsb"]["dev"]["labels"] == SCORES


def test_a_task_is_the_same_from_the_hub_and_from_the_files(visited, tmp_path):
    for name, folder, header, labels in (
        ("rte", "RTE", "index\tsentence1\tsentence2\tlabel", ["entailment", "not_entailment"]),
        ("stsb", "STS-B", "index\tsentence1\tsentence2\tscore", None),
    ):
        (tmp_path / folder).mkdir()
        answers = SCORES if labels is None else [labels[i] for i in (0, 1, 1, 0)]
        pairs = zip(SENTENCES, SENTENCES[::-1], answers, strict=True)
        lines = [header, *(f"{i}\t{a}\t{b}\t{label}" for i, (a, b, label) in enumerate(pairs))]
        for file in ("train.tsv", "dev.tsv"):
            (tmp_path / folder / file).write_bytes("\n".join(lines).encode())
        task = tasks.load(name, tmp_path)
        assert task.sha256() == visited.answers[name]["sha256"]
        assert task.licence is None


def test_the_cache_serves_when_the_hub_is_gone(visited):
    again = user_loads(visited.home, closed_port(), *visited.answers)
    for one, before in zip(again, visited.answers.values(), strict=True):
        assert same(one | {"notes": []}, before | {"notes": []})
        # what the cache lacks the hub may have
        lacks = any("has no split validation" in note for note in before["notes"])
        assert lacks == any("the copy of" in note for note in one["notes"])


def test_what_is_cached_at_its_commit_is_not_asked_for(visited):
    with running_hub(REPOSITORIES) as other:
        (again,) = user_loads(visited.home, other.endpoint, "rte")
    assert same(again, visited.answers["rte"])
    assert other.asked == []


def cached_by_hand(home: Path, repo: str, commit: str, files: dict[str, bytes]) -> Path:
    """A copy as `hf download REPO --repo-type dataset` makes it: the snapshot's folder."""
    snapshot = home / f"hub/datasets--{repo.replace('/', '--')}/snapshots" / commit
    for name, content in files.items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(content)
    (snapshot.parents[1] / "refs").mkdir(exist_ok=True)
    (snapshot.parents[1] / "refs/main").write_text(commit)
    return snapshot


def test_files_fetched_with_hf_download_serve_where_there_is_no_hub(visited, tmp_path):
    cached_by_hand(tmp_path, REPO, COMMIT, glue())
    cached_by_hand(tmp_path, "someone/reviews", *REPOSITORIES["someone/reviews"]["main"])
    rte, reviewed = user_loads(tmp_path, closed_port(), "rte", REVIEWS)
    assert same(rte, visited.answers["rte"])
    assert same(reviewed, visited.answers[REVIEWS])


def test_glue_without_its_card_has_no_licence(tmp_path):
    snapshot = cached_by_hand(tmp_path, REPO, COMMIT, glue())
    (snapshot / "README.md").unlink()
    (rte,) = user_loads(tmp_path, closed_port(), "rte")
    assert rte["licence"] is None


def test_an_incomplete_download_is_no_copy(visited, tmp_path):
    train = "rte/train-00000-of-00001.parquet"
    cached_by_hand(tmp_path, REPO, COMMIT, {"README.md": b"", train: glue()[train]})
    check_refused(user_loads(tmp_path, closed_port(), "rte")[0], "can't be reached")


def test_a_data_set_without_one_of_its_files_is_no_copy(tmp_path):
    commit, files = REPOSITORIES["someone/reviews"]["main"]
    whole = [name for name in files if name.endswith("parquet") and "test" not in name]
    for missing in whole[:2]:
        shutil.rmtree(tmp_path / "hub", ignore_errors=True)
        cached_by_hand(tmp_path, "someone/reviews", commit, files)
        (tmp_path / "hub/datasets--someone--reviews/snapshots" / commit / missing).unlink()
        (answer,) = user_loads(tmp_path, closed_port(), REVIEWS)
        assert "someone/reviews can't be loaded: no whole copy in the cache" in answer["error"]
        assert "HF_HOME" in answer["error"]


@contextmanager
def silent_host() -> Iterator[str]:
    """A host that takes the connection and never says a word, like a firewall that drops."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def check_refused(answer: dict[str, Any], reason: str) -> None:
    for said in (reason, "--data-dir", "PEFTLAB_DATA_DIR", "RTE/train.tsv", "HF_HOME", "built-in"):
        assert said in answer["error"]
    assert answer["s"] < 30, "the library alone tries for a minute"
    assert not answer["heavy"], "importing them would cost a second before the error"
    assert not answer["here"]


def test_without_a_hub_the_error_is_quick_and_names_the_ways_out(tmp_path):
    rte, reviewed = user_loads(tmp_path, closed_port(), "rte", REVIEWS)
    check_refused(rte, "can't be reached")
    assert "can't be reached" in reviewed["error"]


def test_a_silent_hub_is_not_waited_for(tmp_path):
    with silent_host() as endpoint:
        start = time.perf_counter()
        (answer,) = user_loads(tmp_path, endpoint, "rte", PROBE_S="2")
        check_refused(answer, "did not answer within 2.0 s")
        assert time.perf_counter() - start < 40  # the thread that still waits holds up no exit


def test_a_name_that_is_not_resolved_in_time_is_not_waited_for(monkeypatch):
    probe._known.clear()
    resolved, answered = threading.Event(), []
    monkeypatch.setattr(probe, "PROBE_S", 0.1)
    monkeypatch.setattr(probe, "_ask", lambda url: answered.append(resolved.wait(30)))
    assert not probe.reachable()
    assert answered == []  # it is being asked yet
    resolved.set()
    probe._known.clear()


def test_offline_mode_asks_nobody(tmp_path):
    with running_hub(REPOSITORIES) as other:
        rte, reviewed = user_loads(tmp_path, other.endpoint, "rte", REVIEWS, HF_HUB_OFFLINE="1")
    check_refused(rte, "HF_HUB_OFFLINE")
    assert "HF_HUB_OFFLINE is set" in reviewed["error"]
    assert other.asked == []


def test_a_hub_whose_pages_answer_but_not_its_data_is_not_asked_for_long(tmp_path, monkeypatch):
    def answer(self: Handler) -> None:
        self.send(200 if self.path == "/" else 503)

    monkeypatch.setattr(Handler, "answer", answer)
    with running_hub({}) as other:
        (answered,) = user_loads(tmp_path, other.endpoint, "rte")
    check_refused(answered, "README.md answers with status 503")


def test_a_hub_in_trouble_counts_as_unreachable(monkeypatch):
    class Session:
        def head(self, url: str, **options: object) -> Any:
            return type("Response", (), {"status_code": 503})

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    assert probe._ask("https://hub") == "https://hub answers with status 503"


def test_a_hub_without_the_data_says_so(tmp_path):
    with running_hub({}) as other:
        rte, reviewed = user_loads(tmp_path, other.endpoint, "rte", REVIEWS)
    assert "can't be loaded from the hub" in rte["error"]
    assert "--data-dir" in rte["error"]
    assert "someone/reviews can't be loaded from the hub: RepositoryNotFound" in reviewed["error"]


def test_labels_that_a_file_of_the_hub_names_otherwise_are_refused(tmp_path):
    pair = {"sentence1": ["a"], "sentence2": ["b"], "label": [0]}
    files = {name: parquet(pair, ["no", "yes"]) for name in glue()}
    cached_by_hand(tmp_path, REPO, COMMIT, files)
    (answer,) = user_loads(tmp_path, closed_port(), "rte")
    assert "row 1: unknown label 'no'; allowed: entailment, not_entailment." in answer["error"]


def test_glues_labels_follow_the_names_of_the_files_and_are_indices_without(tmp_path):
    pair = {"sentence1": ["a", "b"], "sentence2": ["b", "a"], "label": [0, 1]}
    swapped = parquet(pair, ["not_entailment", "entailment"])
    files = {name: swapped if "train" in name else parquet(pair) for name in glue()}
    cached_by_hand(tmp_path, REPO, COMMIT, files)
    (answer,) = user_loads(tmp_path, closed_port(), "rte")
    assert (answer["train"]["labels"], answer["dev"]["labels"]) == ([1, 0], [0, 1])


def test_a_data_set_has_named_classes_all_its_files_and_its_own_validation(visited):
    task = visited.answers[REVIEWS]
    assert task["name"] == "reviews"
    assert task["labels"] == NAMES
    assert task["train"]["texts"] == [[f"text {i}"] for i in range(40)]
    assert task["train"]["labels"] == [0, 1] * 20
    assert task["dev"]["texts"] == [[f"text {i}"] for i in range(40, 48)]
    assert task["source"] == f"hub someone/reviews@{NEWEST}"
    assert task["licence"] == "cc-by-4.0"
    assert task["notes"] == []


def test_a_revision_is_the_one_asked_for(visited):
    task = visited.answers[OLD_REVIEWS]
    assert task["source"] == f"hub someone/reviews@{OLDER}"
    assert task["labels"] == ["0", "1"], "its file names no classes"
    assert (len(task["train"]["labels"]), len(task["dev"]["labels"])) == (16, 4)
    assert task["licence"] is None
    note = "someone/reviews has no split validation: a fifth of train is kept apart"
    assert task["notes"] == [note]


def test_the_hubs_conversion_serves_where_a_data_set_is_not_parquet(visited):
    task = visited.answers[SCORED]
    assert task["kind"] == "regression"
    assert task["source"] == f"hub someone/scores@{CONVERTED}"
    assert task["licence"] == "cc-by-4.0"
    assert len(task["train"]["labels"]) + len(task["dev"]["labels"]) == 40


def test_a_config_is_chosen_by_name(visited):
    task = visited.answers[ENGLISH]
    assert task["name"] == "languages-en"
    assert task["source"] == f"hub someone/languages/en@{NEWEST}"
    assert len(task["dev"]["labels"]) == 4


def test_a_task_of_glue_by_its_own_name_has_the_same_rows(visited):
    rte, itself = visited.answers["rte"], visited.answers[RTE_ITSELF]
    assert itself["sha256"] == rte["sha256"]
    assert itself["source"] == f"hub nyu-mll/glue/rte@{COMMIT}"


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What was asked for in vain -> the error."""
    wanted = (
        "hub:someone/languages text label auto",
        "hub:someone/languages/eng text label auto",
        "hub:someone/reviews txt label auto",
        "hub:someone/reviews text label regression",
        "hub:someone/reviews@v9 text label auto",
        "hub:someone/csv text label auto",
        "hub:someone/holes text label auto",
    )
    with running_hub(REPOSITORIES) as server:
        answers = user_loads(tmp_path_factory.mktemp("refused"), server.endpoint, *wanted)
    errors = [answer["error"] for answer in answers]
    return {asked[4:]: error for asked, error in zip(wanted, errors, strict=True)}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            "someone/languages text label auto",
            "someone/languages has several configs; give one as "
            "hub:someone/languages/CONFIG: de, en.",
        ),
        (
            "someone/languages/eng text label auto",
            "unknown config of someone/languages 'eng'; did you mean 'en'? Allowed: de, en.",
        ),
        ("someone/reviews txt label auto", "unknown column 'txt'; did you mean 'text'? Allowed: "),
        (
            "someone/reviews text label regression",
            "someone/reviews, train, row 1: the label 'neg' is not a number.",
        ),
        ("someone/reviews@v9 text label auto", "RevisionNotFoundError"),
        (
            "someone/csv text label auto",
            "someone/csv has no Parquet files of a split train at main or refs/convert/parquet",
        ),
        (
            "someone/holes text label auto",
            "someone/holes, train, row 5: the label is empty. Fill it in or leave the row out.",
        ),
    ],
)
def test_a_data_set_is_checked_as_a_file_is(refused, asked, said):
    assert said in refused[asked]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "hub:",
            "hub:name",
            "hub:a/b/c/d",
            "hub:/etc/passwd",
            "hub:../up",
            "hub:a/..",
            "hub:a/-b",
        ),
        *("hub:a/b@", "hub:a/b@../../x", "hub:a/b c", "hub:a/b/..", "hub:a/b/c@v 1"),
    ],
)
def test_a_name_that_can_be_none_of_the_hub_is_refused(name):
    with pytest.raises(RequestError, match=r"a data set of the hub is hub:OWNER/NAME.*, got 'hub:"):
        tasks.load_file(name, ["text"], "label")


def test_a_dev_file_beside_a_data_set_is_refused(tmp_path):
    with pytest.raises(RequestError, match="--dev goes with a file; hub:a/b is judged on its spl"):
        tasks.load_file("hub:a/b", ["text"], "label", dev=tmp_path / "dev.csv")


def test_a_data_set_named_like_a_task_has_another_name(visited):
    assert visited.answers[NAMESAKE]["name"] == "rte-hub"


def test_a_split_is_downloaded_from_its_end_so_that_its_first_file_says_that_it_is_whole(visited):
    start = f"GET /datasets/someone/reviews/resolve/{NEWEST}/data/"
    order = [line.removeprefix(start) for line in visited.asked if line.startswith(start)]
    assert [name.split("-of-")[0] for name in order] == [
        *("validation-00000", "train-00001", "train-00000"),
    ]


@pytest.mark.parametrize(
    ("names", "configs"),
    [
        (["train.parquet", "validation.parquet"], {"default": ["train", "validation"]}),
        (["data/train-00000-of-00001-a1.parquet"], {"default": ["train"]}),
        (["plain_text/train/0000.parquet"], {"plain_text": ["train"]}),
        (["b/train.parquet", "a-1.0/train.parquet"], {"a-1.0": ["train"], "b": ["train"]}),
        (["train-00000-of-00002.parquet"], {}),
        (["default/train/0001.parquet"], {}),
        (["train.parquet", "validation-00001-of-00002.parquet"], {}),
        (["train.parquet", "data/train.parquet"], {}),
        (["default/partial-train/0000.parquet", "a/test.parquet", "train.csv"], {}),
        (["../train.parquet", "a/b/train.parquet", "/train.parquet"], {}),
    ],
)
def test_configs_and_splits_are_read_off_the_names_of_files(names, configs):
    assert {name: list(splits) for name, splits in hub._configs(names).items()} == configs


@pytest.mark.parametrize(
    "info",
    [
        *(None, b"", b"[", b"\xff", b"[]", b'{"info": 1}', b'{"info": {"features": ["label"]}}'),
        *(b'{"info": {"features": {"label": 1}}}', b'{"info": {"features": {"label": {}}}}'),
        b'{"info": {"features": {"label": {"names": {"0": "neg"}}}}}',
    ],
)
def test_a_file_that_names_no_classes_keeps_its_integers(tmp_path, info):
    metadata = None if info is None else {"huggingface": info}
    table = pa.table({"text": ["a", "b"], "label": [0, 1]}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "a.parquet")
    found = rows.read_split("train", [tmp_path / "a.parquet"], ["text", "label"])
    assert [row.cells for row in found.rows] == [("a", 0), ("b", 1)]


def test_a_user_s_own_file_keeps_its_integers_whatever_it_says_of_them(tmp_path):
    (tmp_path / "own.parquet").write_bytes(reviews(0, 20, NAMES))
    assert tasks.load_file(tmp_path / "own.parquet", ["text"], "label").labels == ("0", "1")


def test_a_comparison_remembers_the_name_of_a_data_set_as_it_was_given(
    tmp_path, tiny_model, tiny_task, monkeypatch
):
    asked = []

    def load_of_hub(path: Path, *columns: object) -> tasks.Task:
        asked.append(path.as_posix())
        return replace(tiny_task, source="hub a/b@c", licence="mit")

    monkeypatch.setattr("peftlab.tasks.hub.load", load_of_hub)
    data = data_of("hub:a/b/c@v1", {"text": "text", "label": "label"})
    grid = resolve(make_suite(model=str(tiny_model), methods=["lora"], seeds=[0], data=data))
    (cell,) = grid.cells
    assert cell.task.licence == "mit"
    unlicensed = cell.task.model_copy(update={"licence": None})
    assert cell.model_copy(update={"task": unlicensed}).identity == cell.identity
    store = Store(tmp_path)
    store.prepare()
    write_suite(store, grid)
    end = Failed(failure=Failure(kind="None", message=""), environment=environment(1))
    assert task_again(store, failure_record(cell, end)).sha256() == tiny_task.sha256()
    assert asked == ["hub:a/b/c@v1"] * 2


def test_a_task_and_a_record_from_before_licences_still_read(tmp_path, tiny_task):
    tiny_task.write(tmp_path / "task.json")
    old = json.loads((tmp_path / "task.json").read_text())
    del old["licence"]
    (tmp_path / "task.json").write_text(json.dumps(old))
    assert tasks.Task.read(tmp_path / "task.json") == tiny_task
    part = task_part(tiny_task).model_dump(exclude={"licence"})
    assert TaskPart.model_validate(part).licence is None


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (b"---\nlicense: mit\n---\ntext", "mit"),
        (b"---\nlicense: [mit, other]\n---\n", "mit, other"),
        *((card, None) for card in (b"", b"# Reviews", b"---\ntags: []\n---\n", b"\xff")),
        *((card, None) for card in (b"---\n[\n---\n", b"---\n- mit\n---\n")),
    ],
)
def test_the_licence_is_read_off_the_card(tmp_path, monkeypatch, card, licence):
    (tmp_path / "README.md").write_bytes(card)
    monkeypatch.setattr(hub, "_cached", lambda *asked: tmp_path / "README.md")
    assert hub.licence("a/b", "main") == licence
