"""An adapter leaves: as a folder, and to a small server that speaks the hub's API."""

from __future__ import annotations

import base64
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
)
from typer.testing import CliRunner

import peftlab
from peftlab import network
from peftlab.api.push import push
from peftlab.atomic import PUSHED_FILES
from peftlab.cli import app
from peftlab.errors import RequestError
from peftlab.tasks import Task

NAME = "somebody/answers"
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


class Hub(http.server.BaseHTTPRequestHandler):
    """Takes commits of small files and keeps them; every request needs the token."""

    files: dict[str, bytes]
    posts: list[str]  # the paths of all POST requests
    created: list[dict[str, Any]]

    def do_HEAD(self) -> None:
        self._answer({})

    def do_GET(self) -> None:
        tree = [{"type": "file", "path": p, "size": 1, "oid": "a" * 40} for p in self.files]
        if self._is_known():
            self._answer(tree if "/tree/" in self.path else {})

    def _is_known(self) -> bool:
        is_known = self.headers.get("Authorization") == "Bearer secret"
        if not is_known:
            self.send_response(401)
            self.end_headers()
        return is_known

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).posts.append(self.path)
        if not self._is_known():
            return
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            self._answer({"url": f"{self._address()}/{NAME}"})
        elif self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [
                {"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names
            ]
            self._answer({"files": modes})
        elif self.path.endswith("/commit/main"):
            for line in body.decode().splitlines():
                operation = json.loads(line)
                value = operation["value"]
                if operation["key"] == "file":
                    type(self).files[value["path"]] = base64.b64decode(value["content"])
                if operation["key"] == "deletedFile":
                    del type(self).files[value["path"]]
            self._answer(
                {"commitUrl": f"{self._address()}/{NAME}/commit/{'a' * 40}", "commitOid": "a" * 40}
            )
        else:  # a check of the card's front matter
            self._answer({"errors": [], "warnings": []})

    def _address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def _answer(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.files, Hub.posts, Hub.created = {}, [], []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "secret")
        monkeypatch.setattr(network, "PROBE_S", 60)  # it is there, if busy
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        network._known.clear()
        yield Hub
        server.shutdown()
    network._known.clear()


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tiny_task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained adapter with its record, as `train` writes it."""
    out = tmp_path_factory.mktemp("pushed") / "adapter"
    model, tokenizer = peftlab.load_model(str(tiny_model))
    peftlab.train(model, tokenizer, tiny_task, "lora", epochs=1, batch_size=8, out=out)
    return out


def test_nothing_of_this_machine_leaves_and_the_rest_is_what_loads(
    adapter: Path, tiny_model: Path, tiny_task: Task, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    push(adapter, NAME, base="somebody/tiny", to=to)
    sent = {path.name: path.read_bytes() for path in to.iterdir()}
    local_paths = [str(tiny_model).encode(), str(adapter.parent).encode()]
    assert not any(path in content for path in local_paths for content in sent.values())
    private = {"record.json", "predictions.jsonl", "curve.jsonl"}
    assert private <= {path.name for path in adapter.iterdir()}
    assert not private & sent.keys()
    config = json.loads(sent["adapter_config.json"])
    assert config["base_model_name_or_path"] == "somebody/tiny"
    model, tokenizer = peftlab.load(to, base=tiny_model)
    before, _ = peftlab.load(adapter)
    texts = [text[0] for text in tiny_task.dev.texts]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, before(**batch).logits)
        base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2)
        in_peft = PeftModel.from_pretrained(base, to).eval()
        assert torch.allclose(in_peft(**batch).logits, model(**batch).logits.float(), atol=0.05)


def test_the_card_says_what_it_is_how_good_and_how_to_use_it(adapter: Path, tmp_path: Path) -> None:
    push(adapter, NAME, base="somebody/tiny", licence="apache-2.0", to=tmp_path / "to")
    card = ModelCard.load(tmp_path / "to" / "README.md")
    data = card.data.to_dict()
    assert (data["base_model"], data["library_name"]) == ("somebody/tiny", "peft")
    assert (data["license"], data["tags"]) == ("apache-2.0", ["peftlab", "lora"])
    record = json.loads((adapter / "record.json").read_text())
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type) == ("tiny", "accuracy")
    assert result.metric_value == pytest.approx(record["score"]["accuracy"], abs=1e-4)
    assert f"`accuracy` {record['score']['accuracy']:.4f}" in card.text
    assert 'PeftModel.from_pretrained(base, "somebody/answers")' in card.text
    assert "Outputs: 0: `other`, 1: `cat`." in card.text
    assert "Base: as its own card says. Data: not stated. Adapter: `apache-2.0`." in card.text


def test_it_is_sent_whole_in_one_commit(adapter: Path, hub: type[Hub], tmp_path: Path) -> None:
    where = push(adapter, NAME, base="somebody/tiny", private=True)
    assert where.endswith(NAME)
    push(adapter, NAME, base="somebody/tiny", to=tmp_path / "to")
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()}
    (repo,) = hub.created  # huggingface_hub's versions say "private" in different fields
    assert repo["name"] == "answers" and (repo.get("private") or repo["visibility"] == "private")
    assert sum(path.endswith("/commit/main") for path in hub.posts) == 1


def test_what_an_earlier_one_left_is_deleted_and_what_is_the_owner_s_stays(
    adapter: Path, hub: type[Hub]
) -> None:
    """PEFT would read LoRA's configuration of a method that it does not have."""
    hub.files |= {"vocab.txt.old": b"", "notes.md": b"", "special_tokens_map.json": b"{}"}
    assert "special_tokens_map.json" in PUSHED_FILES - {path.name for path in adapter.iterdir()}
    push(adapter, NAME, base="somebody/tiny")
    assert {"vocab.txt.old", "notes.md"} < hub.files.keys()
    assert "special_tokens_map.json" not in hub.files


def test_without_private_the_owner_s_settings_hold(adapter: Path, hub: type[Hub]) -> None:
    push(adapter, NAME, base="somebody/tiny")
    (repo,) = hub.created
    assert "private" not in repo and "visibility" not in repo


def test_the_card_s_code_gives_the_answers(adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    """A reader copies it; here the base's own head has another size than the adapter's."""
    other = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=5)
    other.save_pretrained(tmp_path / "base")
    shutil.copytree(tiny_model, tmp_path / "base", dirs_exist_ok=True, ignore=_weights)
    check_card(adapter, tmp_path / "base", tmp_path / "to")


def test_the_card_s_code_gives_a_decoder_s_answers(tiny_model: Path, tmp_path: Path) -> None:
    """It answers at the last token but padding, and its configuration names no padding token."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=len(tokenizer), pad_token_id=0
    )
    torch.manual_seed(0)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "base")
    tokenizer.pad_token = "[SEP]"
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(tmp_path / "base")
    model, tokenizer = peftlab.load_model(tmp_path / "base", precision="fp32")
    peftlab.save(peftlab.inject(model, "lora"), tmp_path / "adapter", tokenizer=tokenizer)
    check_card(tmp_path / "adapter", tmp_path / "base", tmp_path / "to")


def check_card(adapter: Path, base: Path, to: Path) -> None:
    """Run the card's code for HF PEFT, and compare its answers with peftlab's."""
    push(adapter, NAME, base="somebody/tiny", to=to)
    card = (to / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0]
    code = code.replace('"somebody/tiny"', repr(str(base)))
    namespace: dict[str, Any] = {}
    exec(code.replace(f'"{NAME}"', repr(str(to))), namespace)
    model, tokenizer = peftlab.load(adapter, precision="fp32")
    batch = tokenizer(["the cat", "the dog sat"], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
        torch.testing.assert_close(namespace["model"](**batch).logits, logits, rtol=0, atol=1e-5)


def _weights(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name.endswith((".safetensors", "config.json"))]


def test_a_base_s_name_from_a_card_is_no_code(adapter: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    card = json.loads((copy / "peftlab.json").read_text())
    card["base"] |= {"name": 'x/y")\nimport os\n("', "folder": None}
    (copy / "peftlab.json").write_text(json.dumps(card))
    with pytest.raises(RequestError, match="a name on the hub is OWNER/NAME"):
        push(copy, NAME, to=tmp_path / "to")


def test_a_licence_is_no_markup(adapter: Path, tmp_path: Path) -> None:
    licence = "mit\n\n# Heading <img src=x>"
    push(adapter, NAME, base="somebody/tiny", licence=licence, to=tmp_path / "to")
    card = (tmp_path / "to" / "README.md").read_text(encoding="utf-8")
    assert "Adapter: `mit # Heading <img src=x>`." in card


def test_a_hub_that_refuses_or_is_not_there_is_explained(
    adapter: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(RequestError, match=r"could not be sent: .*401.*hf auth login"):
        push(adapter, NAME, base="somebody/tiny")
    assert hub.files == {}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    network._known.clear()
    with pytest.raises(RequestError, match=r"nothing was sent: HF_HUB_OFFLINE is set; --to DIR"):
        push(adapter, NAME, base="somebody/tiny")


def test_wrong_requests(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"its base lies in .*tiny, where nobody else finds it"):
        push(adapter, NAME, to=tmp_path / "to")
    with pytest.raises(RequestError, match="a name on the hub is OWNER/NAME, got 'a/b/c'"):
        push(adapter, "a/b/c", base="somebody/tiny", to=tmp_path / "to")
    with pytest.raises(RequestError, match="private must be True or False, got 'yes'"):
        push(adapter, NAME, private="yes", to=tmp_path / "to")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="adapter"):
        push(tmp_path, NAME, base="somebody/tiny", to=tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_the_command(adapter: Path, tmp_path: Path) -> None:
    command = ["push", str(adapter), NAME, "--base", "somebody/tiny", "--to", str(tmp_path / "to")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.exception
    assert f"adapter: {tmp_path / 'to'}" in result.stdout


def test_a_file_of_one_s_own_does_not_leave(adapter: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    (copy / "token.txt").write_text("hf_secret")
    (copy / "tokens-of-mine").mkdir()
    for _ in range(2):  # the second time into the folder that the first one wrote
        push(copy, NAME, base="somebody/tiny", to=tmp_path / "to")
    assert not list((tmp_path / "to").glob("token?.*")) + list((tmp_path / "to").glob("tokens*"))
    assert not (tmp_path / "to" / "token.txt").exists()


def test_names_from_outside_are_no_markup_in_the_card(adapter: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    card = json.loads((copy / "peftlab.json").read_text())
    evil = "# H1 `x`\n<script>alert(1)</script>"
    card["labels"] = card["task"]["labels"] = ["other", evil]
    card["precision"] = "nf4"
    (copy / "peftlab.json").write_text(json.dumps(card))
    push(copy, NAME, base="somebody/tiny", to=tmp_path / "to")
    text = (tmp_path / "to" / "README.md").read_text()
    assert "1: `# H1 'x' <script>alert(1)</script>`." in text
    assert "in four bits (nf4), on which peftlab loads it" in text
    pushed = json.loads((tmp_path / "to" / "peftlab.json").read_text())["base"]
    assert (pushed["name"], pushed["folder"]) == ("somebody/tiny", None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"base": "../secret"}, "a name on the hub is OWNER/NAME"),
        ({"base": 3}, "base must be a name on the hub"),
        ({"name": None}, "name must be OWNER/NAME"),
        ({"name": "tickets"}, "got 'tickets': it has no owner"),
    ],
)
def test_names_that_the_hub_can_t_have_are_refused(
    adapter: Path, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    arguments = {"name": NAME, "base": "somebody/tiny", **change}
    with pytest.raises(RequestError, match=reason):
        push(adapter, to=tmp_path / "to", **arguments)


def test_damaged_parts_are_named(adapter: Path, tmp_path: Path) -> None:
    for file, content, reason in (
        ("adapter_config.json", "[]", "lacks peft_type"),
        ("adapter_config.json", "{", "is not JSON"),
        ("peftlab.json", None, "unknown method 'mine'"),
    ):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(adapter, copy)
        if content is None:
            content = (copy / file).read_text().replace('"name": "lora"', '"name": "mine"')
        (copy / file).write_text(content)
        with pytest.raises(RequestError, match=reason):
            push(copy, NAME, base="somebody/tiny", to=tmp_path / "to")


def test_a_connection_that_breaks_is_explained(
    adapter: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Hub) -> None:
        self.connection.close()

    monkeypatch.setattr(Hub, "do_POST", broken)
    with pytest.raises(RequestError, match="could not be sent: "):
        push(adapter, NAME, base="somebody/tiny")


def test_a_readme_of_one_s_own_is_not_replaced(adapter: Path, tmp_path: Path) -> None:
    to = tmp_path / "to"
    push(adapter, NAME, base="somebody/tiny", to=to)
    (to / "README.md").write_text("mine")
    with pytest.raises(RequestError, match=r"README\.md"):
        push(adapter, NAME, base="somebody/tiny", to=to)
    assert (to / "README.md").read_text() == "mine"


def test_a_score_on_a_part_of_train_is_not_told_as_dev_s(adapter: Path, tmp_path: Path) -> None:
    """`fit` writes such an adapter if its time ends before a training on all of train."""
    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    record = json.loads((copy / "record.json").read_text())
    record["task"]["source"] = "tiny.csv, 0.1 of train"
    (copy / "record.json").write_text(json.dumps(record))
    push(copy, NAME, base="somebody/tiny", to=tmp_path / "to")
    card = ModelCard.load(tmp_path / "to" / "README.md")
    (result,) = card.data.eval_results
    assert result.dataset_split == "train"
    assert "examples of train that it was not trained on" in card.text


def test_an_adapter_is_not_written_over_itself(adapter: Path) -> None:
    before = sorted(path.name for path in adapter.iterdir())
    with pytest.raises(RequestError, match="is the adapter's own folder"):
        push(adapter, NAME, base="somebody/tiny", to=adapter)
    assert sorted(path.name for path in adapter.iterdir()) == before


def test_a_revision_of_another_repository_does_not_leave(adapter: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(adapter, tmp_path / "copy")
    for name in ("adapter_config.json", "peftlab.json"):
        config = json.loads((copy / name).read_text())
        config.get("base", config)["revision"] = "ab" * 20
        (copy / name).write_text(json.dumps(config))
    push(copy, NAME, base="me/fork", to=tmp_path / "to")
    config = json.loads((tmp_path / "to" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("me/fork", None)


def test_a_setting_with_a_bar_stays_in_its_cell(adapter: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(adapter, tmp_path / "copy")
    record = json.loads((copy / "record.json").read_text())
    record["method"]["settings"]["targets"] = r"self_attn\.(q|v)_proj"
    (copy / "record.json").write_text(json.dumps(record))
    push(copy, NAME, base="somebody/tiny", to=tmp_path / "to")
    text = (tmp_path / "to" / "README.md").read_text()
    (line,) = [line for line in text.splitlines() if "self_attn" in line]
    assert line.replace(r"\|", "").count("|") == 3
