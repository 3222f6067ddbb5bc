"""One training by HF PEFT and HF Trainer, written as their documentation says: one line of JSON.

    python benchmarks/peer.py --model FOLDER --task cola --precision bf16

Precision: `fp32`; `autocast` is TrainingArguments' bf16 on fp32 weights; `bf16` loads the weights
in bf16, and PEFT holds its adapters in fp32. Nothing is logged, saved or evaluated meanwhile.
"""

# ruff: noqa: E402 - a module must be kept out before the imports
from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# PEFT would import it where it is installed, 48 MiB, and nothing here needs it
sys.modules["bitsandbytes"] = None  # type: ignore[assignment]

import datasets
import torch
from meter import Meter
from peft import LoraConfig, TaskType, get_peft_model
from sides import add_options, settings_of, write_task
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices
from transformers.utils import logging

POOL = 50  # batches whose examples are sorted by length together, on all of CoLA and most of GLUE
TARGETS = {"mpnet": ["q", "v"], "distilbert": ["q_lin", "v_lin"]}  # query and value elsewhere
LRS = {"lora": 2e-3, "full": 1e-4}  # peftlab's own
WARMUP = 0.06


class Clock(TrainerCallback):
    """Passes the Trainer's steps and epochs on to the meter."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.meter.begin_epoch()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.meter.end_step()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.meter.end_epoch()


class PooledSampler(LengthGroupedSampler):
    """Batches of like lengths as on a whole task, from a sample of it.

    Trainer's own pools shrink with the examples, to a quarter of them: on 640 of CoLA's that is
    five batches, and 27 % more tokens are padding's than are real, where on all of CoLA it is 4 %.
    One pool of 960 has those 4 %.
    """

    def __iter__(self) -> Iterator[int]:
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, mega_batch_mult=POOL))


class SampleTrainer(Trainer):
    """Trainer on a sample of a task, which groups lengths as it would on all of it."""

    def _get_train_sampler(self, *args: Any) -> Any:
        sampler = super()._get_train_sampler(*args)
        if isinstance(sampler, LengthGroupedSampler):
            return PooledSampler(sampler.batch_size, lengths=sampler.lengths)
        return sampler


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument("--precision", choices=["fp32", "autocast", "bf16"], default="fp32")
    parser.add_argument("--attention", choices=["eager", "sdpa"], default="sdpa")
    optimizers = ["adamw_torch", "adamw_torch_fused"]
    parser.add_argument("--optimizer", choices=optimizers, default=optimizers[1])
    parser.add_argument(
        "--batches", choices=["group_by_length", "random"], default="group_by_length"
    )
    return parser.parse_args()


def tokenize(tokenizer: Any, examples: dict[str, Any], max_length: int) -> datasets.Dataset:
    """A split as the Trainer takes it, not yet padded."""
    columns = [list(column) for column in zip(*examples["texts"], strict=True)]
    names = [f"text{number}" for number in range(len(columns))]
    rows = dict(zip(names, columns, strict=True)) | {"labels": examples["labels"]}
    return datasets.Dataset.from_dict(rows).map(
        lambda batch: tokenizer(
            *[batch[name] for name in names], truncation=True, max_length=max_length
        ),
        batched=True,
        remove_columns=names,
    )


def load_model(options: argparse.Namespace, task: dict[str, Any]) -> Any:
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model,
        num_labels=len(task["labels"]) or 1,
        dtype=torch.bfloat16 if options.precision == "bf16" else torch.float32,
        attn_implementation=options.attention,
    )
    if options.method == "full":
        return model
    targets = TARGETS.get(model.config.model_type, ["query", "value"])
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules=targets)
    return get_peft_model(model, config)


def training_arguments(options: argparse.Namespace, folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=2 * options.batch_size,
        learning_rate=options.lr or LRS[options.method],
        warmup_steps=WARMUP,
        optim=options.optimizer,
        bf16=options.precision == "autocast",
        train_sampling_strategy=options.batches,
        seed=options.seed,
        use_cpu=options.device == "cpu",
        dataloader_pin_memory=options.device == "cuda",  # on a CPU it warns
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )


def score(trainer: Trainer, dev: datasets.Dataset, task: dict[str, Any]) -> float:
    """The task's main metric on dev, by peftlab's own function."""
    from peftlab.tasks.metrics import score as score_of

    outputs = trainer.predict(dev).predictions
    n_classes = len(task["labels"]) or None
    answers = outputs.argmax(-1) if n_classes else outputs.squeeze(-1)
    metrics = tuple(task["metrics"])
    return score_of(metrics, task["dev"]["labels"], answers.tolist(), n_classes)[metrics[0]]


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    task = write_task(folder / "task.json", options)
    meter = Meter(options.device)
    meter.begin_at_first_call()
    set_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    train = tokenize(tokenizer, task["train"], task["max_length"])
    model = load_model(options, task)
    trainer = (SampleTrainer if options.examples else Trainer)(
        model=model,
        args=training_arguments(options, folder),
        train_dataset=train,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[Clock(meter)],
    )
    trainer.train()
    measured = meter.result([len(ids) for ids in train["input_ids"]])
    tensors = [*model.parameters(), *model.buffers()]
    dev = tokenize(tokenizer, task["dev"], task["max_length"]) if options.score else None
    return measured | {
        "weights_mib": sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20,
        "n_trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "score": score(trainer, dev, task) if dev is not None else None,
    }


def main() -> None:
    options = parse()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        measured = run(options, Path(folder))
    pool = {"pool": POOL} if options.examples else {}
    print(json.dumps({"side": "peer", "settings": settings_of(options) | pool} | measured))


if __name__ == "__main__":
    main()
