"""Model folders of published sizes with random weights: speed doesn't depend on their values.

    python benchmarks/models.py                   makes them all
    python benchmarks/models.py roberta-base      makes one and prints its folder

A folder is like a published checkpoint: config.json, fp32 weights of the masked language model in
safetensors and a tokenizer. The tokenizer is the bundled model's, so nothing is downloaded.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from peftlab.models import find, quiet

BUNDLED = "minilm"
CACHE = Path("~/.cache/peftlab-bench").expanduser()

# the fields in which a published config.json differs from the defaults of its class
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta-base": (
        "roberta",
        {
            "vocab_size": 50265,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
        },
    ),
    "mpnet-base": (
        "mpnet",
        {"vocab_size": 30527, "max_position_embeddings": 514, "layer_norm_eps": 1e-5},
    ),
    "distilbert-base": ("distilbert", {"vocab_size": 30522}),
    # not a published size, but a decoder that any machine trains
    "tiny-gpt2": (
        "gpt2",
        {"vocab_size": 30522, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 256},
    ),
}


def folder_of(name: str, cache: Path = CACHE) -> Path:
    """The folder of a model, made if it is not there yet; `minilm` is the bundled one itself.

    Args:
        name: `minilm`, one of `CONFIGS`, or a folder.
        cache: where made folders are kept.
    """
    if name == BUNDLED:
        return find(BUNDLED).folder
    if name not in CONFIGS:
        return Path(name)
    folder = cache / name
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            _write_model(name, Path(scratch) / name)
            (Path(scratch) / name).rename(folder)
    return folder


def _write_model(name: str, folder: Path) -> None:
    model_type, fields = CONFIGS[name]
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(
        find(BUNDLED).folder,
        # these architectures know no second kind of token, as their own tokenizers know none
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=min(512, fields.get("n_positions", 512)),
    )
    config = transformers.AutoConfig.for_model(
        model_type,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        **fields,
    )
    torch.manual_seed(0)
    with quiet():
        auto_class = transformers.AutoModelForCausalLM
        if type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING:
            auto_class = transformers.AutoModelForMaskedLM
        auto_class.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(CONFIGS), metavar="NAME")
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="DIR")
    options = parser.parse_args()
    for name in options.names:
        print(folder_of(name, options.cache))


if __name__ == "__main__":
    main()
