"""The hub, played by a small server on this machine; a user's process has a cache of its own."""

from __future__ import annotations

import hashlib
import http.server
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import peftlab.network as probe
from peftlab import tasks
from peftlab.tasks import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "/datasets/nyu-mll/glue"
SENTENCES = ['She said "no.', "Zwei\u2028Zeilen", "plain", " spaces stay "]
SCORES = [0.0, 3.8, 4.333, 5.0]

LOAD = """
import json, sys, time
start = time.perf_counter()
from peftlab import errors, tasks
try:
    task = tasks.load(sys.argv[1])
    answer = {"sha256": task.sha256(), "source": task.source, "dev": task.dev.labels}
except errors.RequestError as error:
    answer = {"error": str(error)}
answer["s"] = time.perf_counter() - start
answer["datasets"] = "datasets" in sys.modules
answer["here"] = tasks.glue.is_here(tasks.GLUE[sys.argv[1]])
print(json.dumps(answer))
"""


@pytest.fixture(scope="module", autouse=True)
def no_data_folder():
    """Without the folder of GLUE's files, which is taken before the hub."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PEFTLAB_DATA_DIR", raising=False)
        yield


def parquet(columns: dict[str, list[Any]], label: Any) -> bytes:
    features = {name: {"dtype": "string", "_type": "Value"} for name in columns}
    features["label"] = label
    kind = pa.float32() if label["_type"] == "Value" else pa.int64()
    labels = SCORES if label["_type"] == "Value" else [0, 1, 1, 0]
    table = pa.table({**columns, "label": pa.array(labels, kind)})
    info = json.dumps({"info": {"features": features}})
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"huggingface": info}), sink)
    return sink.getvalue().to_pybytes()


def repository() -> dict[str, bytes]:
    """Path -> content of two of nyu-mll/glue's configurations, laid out as it is."""
    pair = {"sentence1": SENTENCES, "sentence2": SENTENCES[::-1]}
    kinds = {
        "rte": {"names": ["entailment", "not_entailment"], "_type": "ClassLabel"},
        "stsb": {"dtype": "float32", "_type": "Value"},
    }
    card = "---\nconfigs:\n"
    files = {}
    for name, label in kinds.items():
        card += f"- config_name: {name}\n  data_files:\n"
        for split in ("train", "validation", "test"):
            card += f"  - split: {split}\n    path: {name}/{split}-*\n"
            files[f"{name}/{split}-00000-of-00001.parquet"] = parquet(pair, label)
    return {"README.md": f"{card}---\n".encode(), **files}


class Handler(http.server.BaseHTTPRequestHandler):
    files: dict[str, bytes]
    asked: list[str]

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f"{self.command} {path}")
        name = path.split("/", 6)[-1]
        if path == "/":
            self.send(200, b"")
        elif path.startswith(f"{REPO}/resolve/"):
            self.send(200, self.files[name]) if name in self.files else self.missing()
        elif path.startswith(f"/api{REPO}/paths-info/"):
            wanted = json.loads(body)["paths"] if body.startswith("{") else unquote(body)
            self.send(200, self.entries(key for key in self.files if key in wanted))
        elif path.startswith(f"/api{REPO}/tree/"):
            under = path.split("/", 7)[7] if path.count("/") > 6 else ""
            self.send(200, self.tree(f"{under}/" if under else "", "recursive=true" in self.path))
        elif path.startswith(f"/api{REPO}"):
            info = {"_id": "x", "id": "nyu-mll/glue", "sha": COMMIT, "private": False, "tags": []}
            self.send(200, json.dumps({**info, "siblings": []}).encode())
        else:
            self.missing()

    def tree(self, under: str, recursive: bool) -> bytes:
        below = [name for name in self.files if name.startswith(under)]
        folders = sorted({under + name.removeprefix(under).split("/")[0] for name in below})
        direct = [name for name in below if recursive or name in folders]
        return self.entries(direct, [name for name in folders if name not in self.files])

    def entries(self, names: Iterable[str], folders: Iterable[str] = ()) -> bytes:
        found = [{"type": "directory", "path": name, "oid": digest(name)} for name in folders]
        for name in names:
            size = len(self.files[name])
            found.append({"type": "file", "path": name, "size": size, "oid": digest(name)})
        return json.dumps(found).encode()

    def missing(self) -> None:
        self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{digest(self.path)}"')
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def digest(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


@dataclass
class Hub:
    endpoint: str
    asked: list[str] = field(default_factory=list)


@contextmanager
def running_hub(files: dict[str, bytes]) -> Iterator[Hub]:
    asked: list[str] = []
    handler = type("Playing", (Handler,), {"files": files, "asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Hub(f"http://127.0.0.1:{server.server_port}", asked)
        server.shutdown()
        thread.join()


@dataclass
class Answer:
    said: dict[str, Any]
    stderr: str


def user_loads(task: str, home: Path, endpoint: str, **environment: str) -> Answer:
    """What `peftlab.tasks.load(task)` does in a fresh process whose cache is `home`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env = {**kept, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, **environment}
    command = [sys.executable, "-c", LOAD, task]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return Answer(json.loads(done.stdout), done.stderr)


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(scope="module")
def visited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer, Answer, Hub]:
    """A cache that both tasks were loaded into, what was answered, and the hub, now stopped."""
    home = tmp_path_factory.mktemp("visited")
    with running_hub(repository()) as server:
        rte, stsb = (user_loads(name, home, server.endpoint) for name in ("rte", "stsb"))
    return home, rte, stsb, server


def test_a_task_comes_from_the_hub_with_its_commit_and_without_noise(visited):
    _, rte, _, server = visited
    assert rte.said["source"] == f"hub nyu-mll/glue@{COMMIT}"
    assert rte.said["dev"] == [0, 1, 1, 0]
    assert rte.said["here"]
    assert rte.stderr == ""
    assert server.asked[0] == "HEAD /datasets/nyu-mll/glue/resolve/main/README.md"


def test_scores_of_the_hub_are_those_of_the_files(visited):
    assert visited[2].said["dev"] == SCORES


def test_a_task_is_the_same_from_the_hub_and_from_the_files(visited, tmp_path):
    for folder, header, labels, answer in (
        ("RTE", "index\tsentence1\tsentence2\tlabel", ["entailment", "not_entailment"], visited[1]),
        ("STS-B", "index\tsentence1\tsentence2\tscore", None, visited[2]),
    ):
        (tmp_path / folder).mkdir()
        answers = SCORES if labels is None else [labels[i] for i in (0, 1, 1, 0)]
        pairs = zip(SENTENCES, SENTENCES[::-1], answers, strict=True)
        lines = [header, *(f"{i}\t{a}\t{b}\t{label}" for i, (a, b, label) in enumerate(pairs))]
        for name in ("train.tsv", "dev.tsv"):
            (tmp_path / folder / name).write_bytes("\n".join(lines).encode())
        task = tasks.load("rte" if labels else "stsb", tmp_path)
        assert task.sha256() == answer.said["sha256"]


def test_the_cache_serves_when_the_hub_is_gone(visited):
    home, rte, _, server = visited
    again = user_loads("rte", home, server.endpoint)
    assert {**again.said, "s": 0} == {**rte.said, "s": 0}
    assert again.stderr == ""


def test_what_is_cached_is_not_asked_for(visited):
    with running_hub(repository()) as other:
        again = user_loads("rte", visited[0], other.endpoint)
    assert again.said["sha256"] == visited[1].said["sha256"]
    assert other.asked == []


def test_files_fetched_with_hf_download_serve_where_there_is_no_hub(visited, tmp_path):
    commit = tmp_path / "hub/datasets--nyu-mll--glue/snapshots" / COMMIT
    for name, content in repository().items():
        (commit / name).parent.mkdir(parents=True, exist_ok=True)
        (commit / name).write_bytes(content)
    (commit.parents[1] / "refs").mkdir()
    (commit.parents[1] / "refs/main").write_text(COMMIT)
    answer = user_loads("rte", tmp_path, closed_port())
    assert {**answer.said, "s": 0} == {**visited[1].said, "s": 0}
    assert answer.stderr == ""


def test_an_incomplete_download_is_no_copy(tmp_path):
    snapshot = tmp_path / "hub/datasets--nyu-mll--glue/snapshots" / COMMIT
    (snapshot / "rte").mkdir(parents=True)
    (snapshot / "README.md").touch()
    (snapshot / "rte/train-00000-of-00001.parquet").touch()
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text(COMMIT)
    check_refused(user_loads("rte", tmp_path, closed_port()), "can't be reached")


@contextmanager
def silent_host() -> Iterator[str]:
    """A host that takes the connection and never says a word, like a firewall that drops."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def check_refused(answer: Answer, reason: str) -> None:
    error = answer.said["error"]
    assert reason in error
    for way_out in ("--data-dir", "PEFTLAB_DATA_DIR", "RTE/train.tsv", "HF_HOME", "built-in"):
        assert way_out in error
    assert answer.stderr == "", "not a line of the libraries' retries"
    assert answer.said["s"] < 5
    assert not answer.said["datasets"], "importing it would cost a second before the error"
    assert not answer.said["here"]


def test_without_a_hub_the_error_is_quick_and_names_the_ways_out(tmp_path):
    check_refused(user_loads("rte", tmp_path, closed_port()), "can't be reached")


def test_a_silent_hub_is_not_waited_for(tmp_path):
    with silent_host() as endpoint:
        start = time.perf_counter()
        check_refused(
            user_loads("rte", tmp_path, endpoint), f"did not answer within {probe.PROBE_S} s"
        )
        assert time.perf_counter() - start < 8  # the thread that still waits holds up no exit


def test_a_name_that_is_not_resolved_in_time_is_not_waited_for(monkeypatch):
    probe.problem.cache_clear()
    monkeypatch.setattr(probe, "PROBE_S", 0.1)
    monkeypatch.setattr(probe, "_ask", lambda url: time.sleep(0.5))
    start = time.perf_counter()
    assert not probe.reachable()
    assert time.perf_counter() - start < 0.4
    probe.problem.cache_clear()


def test_offline_mode_asks_nobody(tmp_path):
    with running_hub(repository()) as other:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            check_refused(user_loads("rte", tmp_path, other.endpoint, **{name: "1"}), name)
    assert other.asked == []


def test_a_hub_whose_pages_answer_but_not_its_data_is_not_asked_for_long(tmp_path, monkeypatch):
    def answer(self: Handler) -> None:
        self.send(200 if self.path == "/" else 503, b"")

    monkeypatch.setattr(Handler, "answer", answer)
    with running_hub({}) as other:
        check_refused(
            user_loads("rte", tmp_path, other.endpoint), "README.md answers with status 503"
        )


def test_a_hub_in_trouble_counts_as_unreachable(monkeypatch):
    class Session:
        def head(self, url: str, **options: object) -> Any:
            return type("Response", (), {"status_code": 503})

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    assert probe._ask("https://hub") == "https://hub answers with status 503"


def test_a_hub_without_the_data_says_so(tmp_path):
    with running_hub({}) as other:
        answer = user_loads("rte", tmp_path, other.endpoint)
    assert "can't be loaded from the hub" in answer.said["error"]
    assert "--data-dir" in answer.said["error"]
    assert answer.stderr == ""


def test_the_libraries_keep_their_retries_to_themselves():
    from huggingface_hub.utils import logging as hub_logging

    level = hub_logging.get_verbosity()
    with hub._libraries(offline=False):
        assert hub_logging.get_verbosity() == logging.ERROR
    assert hub_logging.get_verbosity() == level


@pytest.mark.parametrize("offline", [True, False])
def test_the_switches_of_the_libraries_are_put_back(visited, monkeypatch, offline):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", visited[0] / "datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    huggingface_hub.utils.disable_progress_bars()
    level = datasets.logging.get_verbosity()
    assert tasks.load("rte").source == f"hub nyu-mll/glue@{COMMIT}"
    assert huggingface_hub.constants.HF_HUB_OFFLINE is offline
    assert not datasets.config.HF_HUB_OFFLINE
    assert datasets.logging.get_verbosity() == level
    assert not datasets.utils.are_progress_bars_disabled()
    assert huggingface_hub.utils.are_progress_bars_disabled()
    huggingface_hub.utils.enable_progress_bars()
