"""A decoder as a classifier: LoRA, and QLoRA, whose base is held in four bits.

    python examples/decoder.py            under a minute of one core's time

The decoder is made here, Llama's architecture with RANDOM weights, so that nothing is downloaded:
its scores say nothing about a real one, and it is too small for four bits to save much memory. The
steps are those of a real one: put a folder or a hub name in place of `make(...)`. Without
bitsandbytes (extra `qlora`) plain torch dequantises, slowly.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

import peftlab
from peftlab.tasks import load


def make(folder: Path, texts: list[str], width: int = 128, layers: int = 4) -> Path:
    """A model folder: config, random weights, and a tokenizer learnt from the texts."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<unk>", "<pad>", "</s>"]
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=400, special_tokens=special)
    )
    roles = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        pad_token_id=1,
    )
    LlamaModel(config).save_pretrained(folder)
    return folder


def main(task: peftlab.Task | None = None, epochs: int = 3, **size: int) -> dict[str, float]:
    task = task or load("acceptability")  # built in and synthetic
    model = make(Path("random-decoder"), [text for (text,) in task.train.texts], **size)
    methods = ["lora", "qlora[targets=all-linear]"]
    records = peftlab.compare(model=model, tasks=[task], methods=methods, epochs=epochs)
    for record in records:
        weights = record.memory.by_part["weights"]
        print(f"{record.method.label:26} base in {record.precision}, weights {weights:.1f} MiB")
    return {record.method.label: record.score[record.task.main_metric] for record in records}


if __name__ == "__main__":
    print(main())
