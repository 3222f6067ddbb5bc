"""Fixtures that several rooms share: tiny models and tasks, made here, never downloaded."""

from __future__ import annotations

import os

# Before torch is imported: OpenMP's threads spin so long by default that tests on a busy machine
# take ten times longer (LOG.md); cells get the same value from peftlab itself.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
if "PYTEST_XDIST_WORKER" in os.environ:  # processes side by side share the cores between them
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# how a developer's or a CI's terminal configures rich
for _variable in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
    os.environ.pop(_variable, None)

import gc
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from peftlab.bench.execute import Worker
from peftlab.engine import KERNELS
from peftlab.layers import native
from peftlab.methods import METHODS
from peftlab.tasks import Examples, Task

# the same examples each time, and no deadline: a busy machine may stand still for a second
settings.register_profile(
    "same", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same")


def pytest_configure(config: pytest.Config) -> None:
    """Build the kernels once, before processes side by side would each build all of them.

    Tests run on the CPU even where there is a GPU, but for those selected by `-m gpu`.
    """
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if not (hasattr(config, "workerinput") or config.option.collectonly):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "BUILD_S", 600)
            for kernel in KERNELS:
                kernel.is_built()


def pytest_collection_finish() -> None:
    """Keep the collector from what is imported: searching it costs each training 0.25 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def thawed() -> Iterator[None]:
    """The collector as any program has it."""
    gc.unfreeze()
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle machine, on which all threads are used: tests compare bits, which depend on that."""
    for function in ("others_share", "others_share_lately"):
        monkeypatch.setattr(f"peftlab.machine.{function}", lambda: 0.0)


@pytest.fixture
def own_methods_forgotten() -> Iterator[None]:
    """Methods that a test registers are gone for the next one."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


class KeptWorker:
    """One worker for many sessions; it ends with a session that fails in the midst of a cell."""

    def __init__(self) -> None:
        self.worker: Worker | None = None

    @contextmanager
    def __call__(self) -> Iterator[Worker]:
        self.worker = self.worker or Worker()
        try:
            yield self.worker
        except BaseException:
            self.end()
            raise

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self.worker is not None
        return self.worker.process

    def end(self) -> None:
        if self.worker is not None:
            self.worker.__exit__()
        self.worker = None


@pytest.fixture(scope="session")
def kept_worker() -> Iterator[KeptWorker]:
    kept = KeptWorker()
    yield kept
    kept.end()


@pytest.fixture(scope="module")
def warm(kept_worker: KeptWorker) -> Iterator[None]:
    """Cells run in a worker that stays: starting one takes four seconds of a core."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peftlab.bench.run.Worker", kept_worker)
        patch.setattr("peftlab.bench.times.Worker", kept_worker)
        yield


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of the test's own, in a module whose tests are `warm`."""
    monkeypatch.setattr("peftlab.bench.run.Worker", Worker)


WORDS = [
    *("the", "a", "cat", "dog", "bird", "fish", "sees", "hears", "likes"),
    *("red", "blue", "old", "new", "big", "small", "and", "not", "very"),
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def save_tiny_model(folder: Path, width: int = 32) -> Path:
    """A random two-layer BERT with a word-level tokenizer, as a complete model folder."""
    torch.manual_seed(0)
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=width * 3 // 2,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def make_tiny_model() -> Callable[..., Path]:
    """A function that saves another tiny model, which a test may spoil."""
    return save_tiny_model


def _texts(n: int, start: int) -> list[tuple[str, ...]]:
    return [
        (f"the {WORDS[2 + i % 4]} {WORDS[6 + i % 3]} a {WORDS[9 + i % 6]} " + "very " * (i % 5),)
        for i in range(start, start + n)
    ]


@pytest.fixture(scope="session")
def tiny_task() -> Task:
    """48 train and 16 dev examples in two classes: whether a cat comes first."""
    train, dev = _texts(48, 0), _texts(16, 48)

    def label(text: tuple[str, ...]) -> int:
        return int("the cat" in text[0])

    return Task(
        name="tiny",
        kind="classes",
        metrics=("accuracy", "f1"),
        train=Examples(train, [label(text) for text in train]),
        dev=Examples(dev, [label(text) for text in dev]),
        labels=("other", "cat"),
    )


@pytest.fixture
def tiny_csv(tmp_path: Path, tiny_task: Task) -> Path:
    """The tiny task's train split as a user's file."""
    path = tmp_path / "tiny.csv"
    rows = zip(tiny_task.train.texts, tiny_task.train.labels, strict=True)
    # the number in front makes every text a different one
    lines = [
        f"{i} {text[0].strip()},{tiny_task.labels[label]}" for i, (text, label) in enumerate(rows)
    ]
    path.write_text("sentence,answer\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path
