"""HF PEFT's own layout of an adapter: its names of tensors and its settings, both ways.

ours   bert.encoder.layer.0.attention.self.query.lora_A
PEFT   base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from peftlab.adapters.origin import Base
from peftlab.errors import JSON_ERRORS, RequestError
from peftlab.layers import Adapter, is_conv1d
from peftlab.methods import Method, make
from peftlab.models import head_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "adapter_config.json"
PREFIX = "base_model.model."
ENDINGS = {
    ".lora_A": ".lora_A.weight",
    ".lora_B": ".lora_B.weight",
    ".magnitude": ".lora_magnitude_vector",
}
# settings of PEFT's that change what an adapter computes and that no method here has
REFUSED = {
    "bias": "none",
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layer_replication": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "use_qalora": False,
    "alora_invocation_tokens": None,
}
MOVED_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")  # inits that change the base itself


def name(ours: str) -> str:
    """PEFT's name of a tensor.

    >>> name("bert.pooler.dense.weight")
    'base_model.model.bert.pooler.dense.weight'
    >>> name("bert.encoder.layer.0.attention.self.query.shared.vera_A")
    'base_model.vera_A'
    """
    if ".shared.vera_" in ours:  # the one pair of the model
        return f"base_model.{ours.rpartition('.')[2]}"
    for ending, theirs in ENDINGS.items():
        if ours.endswith(ending):
            return f"{PREFIX}{ours.removesuffix(ending)}{theirs}"
    return f"{PREFIX}{ours}"


def from_file(tensors: dict[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
    """A file's tensors under our names; what is not wanted keeps its own."""
    ours = {name(one): one for one in wanted}
    return {ours.get(theirs, theirs): tensor for theirs, tensor in tensors.items()}


def config(model: PreTrainedModel, method: Method, base: Base) -> dict[str, Any] | None:
    """The content of adapter_config.json, or None where PEFT does not have the method."""
    settings = method.peft_config()
    if settings is None:
        return None
    layers = {n: layer for n, layer in model.named_modules() if isinstance(layer, Adapter)}
    return {
        **settings,
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base.loadable,
        "revision": base.part.revision,
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": any(is_conv1d(layer.base) for layer in layers.values()),
        "target_modules": list(layers),
        "modules_to_save": head_names(model),
    }


def read_config(folder: Path) -> dict[str, Any]:
    """The content of adapter_config.json.

    Raises:
        RequestError: if it is not there or can't be read.
    """
    path = folder / FILE
    if not path.is_file():
        raise RequestError(f"{folder} is no adapter: it has neither peftlab.json nor {FILE}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (*JSON_ERRORS, OSError) as error:
        raise RequestError(f"{path} is not JSON: {error}") from None
    needed: dict[str, type] = {"peft_type": str, "base_model_name_or_path": str}
    if isinstance(found, dict) and found.get("peft_type") in ("LORA", "VERA"):
        needed["r"] = int
    for field, kind in needed.items():
        if not isinstance(found, dict) or not isinstance(found.get(field), kind):
            raise RequestError(f"{path} lacks {field}, or it is not {kind.__name__}")
    config: dict[str, Any] = found
    return config


def method(config: dict[str, Any], tensors: dict[str, Tensor]) -> Method:
    """The method that PEFT's settings mean; its targets are the layers that have tensors.

    Raises:
        RequestError: if no method here computes the same.
    """
    kind = config.get("peft_type")
    for field, plain in REFUSED.items():
        if config.get(field) not in (plain, None):
            raise RequestError(f"PEFT's {field}={config[field]!r} is not known here")
    if str(config.get("init_lora_weights")).startswith(MOVED_BASE):
        raise RequestError(
            f"PEFT's init_lora_weights={config['init_lora_weights']!r} changes the base itself, "
            "so that these tensors do not belong to the base that the folder names"
        )
    if kind == "VERA":
        return _vera(config, tensors)
    if kind != "LORA":
        raise RequestError(f"PEFT's {kind} is not known here; LORA and VERA are")
    settings = {
        "rank": config["r"],
        "alpha": float(config["lora_alpha"]),
        "dropout": float(config.get("lora_dropout", 0.0)),
        "targets": _layers(tensors, ".lora_A.weight"),
    }
    stabilised = bool(config.get("use_rslora"))
    if not config.get("use_dora"):
        return make("lora", settings | {"rank_stabilised": stabilised})
    if stabilised:  # alpha / sqrt(rank) is alpha' / rank for alpha' = alpha · sqrt(rank)
        settings["alpha"] *= config["r"] ** 0.5
    return make("dora", settings)


def _vera(config: dict[str, Any], tensors: dict[str, Tensor]) -> Method:
    settings = {
        "rank": config["r"],
        "d_initial": float(config.get("d_initial", 0.1)),
        "dropout": float(config.get("vera_dropout", 0.0)),
        "projection_seed": config.get("projection_prng_key", 0),
        "targets": _layers(tensors, ".vera_lambda_d"),
    }
    return make("vera", settings)


def _layers(tensors: dict[str, Tensor], ending: str) -> str:
    names = [
        theirs.removeprefix(PREFIX).removesuffix(ending)
        for theirs in tensors
        if theirs.endswith(ending)
    ]
    if not names:
        raise RequestError(f"the adapter has no tensors that end in {ending}")
    return ",".join(names)


def num_labels(tensors: dict[str, Tensor], head: Sequence[str]) -> int:
    """The number of outputs, read from the head's last matrix in the file.

    Raises:
        RequestError: if the file has no head.
    """
    matrices = [
        tensors[theirs]
        for theirs in map(name, head)
        if theirs in tensors and tensors[theirs].ndim == 2
    ]
    if not matrices:
        raise RequestError(
            f"the adapter has no head ({', '.join(head)}): it was saved without modules_to_save, "
            "and a head drawn anew would answer at random"
        )
    return len(matrices[-1])
