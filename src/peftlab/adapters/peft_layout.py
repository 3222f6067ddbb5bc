"""HF PEFT's layout of an adapter: its names of tensors and its settings, both ways.

ours   bert.encoder.layer.0.attention.self.query.lora_A
PEFT   base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight

PEFT's names for a method's tensors and settings are in the method's own file (`InPeft`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from peftlab.adapters.card import Base
from peftlab.atomic import CARD, PEFT_CONFIG
from peftlab.errors import JSON_ERRORS, RequestError
from peftlab.layers import Adapter, PreTrainedModel, is_stored_transposed
from peftlab.methods import METHODS, InPeft
from peftlab.methods.peft import PREFIX, refuse
from peftlab.models import head_names, head_parameters
from peftlab.naming import listed

# settings of PEFT's that change what an adapter computes and that no method here has
REFUSED = {"bias": "none"} | dict.fromkeys(
    ("trainable_token_indices", "target_parameters", "arrow_config")
)


def peft_name(name: str, peft_names: Mapping[str, str]) -> str:
    """PEFT's name of a tensor, for a method with these `peft_names`.

    >>> peft_name("bert.pooler.dense.weight", {"lora_A": "{layer}.lora_A.weight"})
    'base_model.model.bert.pooler.dense.weight'
    >>> peft_name("bert.layer.0.key.lora_A", {"lora_A": "{layer}.lora_A.weight"})
    'base_model.model.bert.layer.0.key.lora_A.weight'
    """
    for ending, pattern in peft_names.items():
        if name.endswith(f".{ending}"):
            return pattern.format(layer=PREFIX + name.removesuffix(f".{ending}"))
    return f"{PREFIX}{name}"


def to_file(method: InPeft, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's tensors as PEFT names and shapes them."""
    shaped = method.peft_tensors(tensors)
    return {peft_name(name, method.peft_names): tensor for name, tensor in shaped.items()}


def from_file(
    method: InPeft, tensors: dict[str, Tensor], names: Sequence[str]
) -> dict[str, Tensor]:
    """A file's tensors in our shapes, under our `names`; a tensor of no such name keeps PEFT's."""
    ours = {peft_name(name, method.peft_names): name for name in names}
    return method.own_tensors({ours.get(theirs, theirs): t for theirs, t in tensors.items()})


def make_config(model: PreTrainedModel, method: InPeft, base: Base) -> dict[str, Any]:
    """The content of adapter_config.json."""
    layers = {n: layer for n, layer in model.named_modules() if isinstance(layer, Adapter)}
    return {
        "peft_type": method.peft_type,
        **method.peft_config(layers),
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base.loadable,
        "revision": base.part.revision,
        "inference_mode": True,
        "fan_in_fan_out": any(is_stored_transposed(layer.base) for layer in layers.values()),
        "target_modules": list(layers),
        "modules_to_save": head_names(model),
    }


def read_config(folder: Path, needs_base: bool = True) -> dict[str, Any]:
    """The content of adapter_config.json, which must name the base if `needs_base`.

    Raises:
        RequestError: if the file is not there, can't be read, or lacks a field.
    """
    path = folder / PEFT_CONFIG
    if not path.is_file():
        raise RequestError(f"{folder} is no adapter: it has neither {CARD} nor {PEFT_CONFIG}")
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (*JSON_ERRORS, OSError) as error:
        raise RequestError(f"{path} is not JSON: {error}") from None
    base = {"base_model_name_or_path": str} if needs_base else {}
    _check_fields(path, config, {"peft_type": str, **base})
    for method in _methods_by_type().get(config["peft_type"], []):
        _check_fields(path, config, method.peft_needs)
    return config


def _check_fields(path: Path, config: Any, required: Mapping[str, type]) -> None:
    for field, kind in required.items():
        value = config.get(field) if isinstance(config, dict) else None
        if not isinstance(value, kind) or value == "":
            raise RequestError(f"{path} lacks {field}, or it is not {kind.__name__}")


def read_method(config: dict[str, Any], tensors: dict[str, Tensor]) -> InPeft:
    """The method that PEFT's config describes; its targets are the layers that have tensors.

    Raises:
        RequestError: if no method here computes the same.
    """
    refuse(config, REFUSED)
    methods = _methods_by_type()
    for candidate in methods.get(config["peft_type"], []):
        try:
            method = candidate.from_peft(config, tensors)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, RequestError):
                raise
            raise RequestError(f"{PEFT_CONFIG} is not as PEFT writes it: {error!r}") from error
        if method is not None:
            return method
    raise RequestError(
        f"PEFT's {config['peft_type']} is not known here; {listed(sorted(methods))} are"
    )


def _methods_by_type() -> dict[str, list[type[InPeft]]]:
    """The methods that PEFT has, by `peft_type`."""
    methods: dict[str, list[type[InPeft]]] = {}
    for method in METHODS.values():
        if issubclass(method, InPeft):
            methods.setdefault(method.peft_type, []).append(method)
    return methods


def check_head(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Raise `RequestError` if a part of the head is adapted: it is trained whole here."""
    whole = {f"{PREFIX}{name}" for name in head_parameters(model)}
    inside = tuple(f"{PREFIX}{name}." for name in head_names(model))
    adapted = [name for name in tensors if name.startswith(inside) and name not in whole]
    if adapted:
        layer = adapted[0].removeprefix(PREFIX)
        raise RequestError(
            f"the adapter has {layer}, and that is a part of the head, which is trained whole here "
            "(PEFT's all-linear adapts a pooler, too): have PEFT merge it (merge_and_unload), or "
            "train it with target_modules that leave the pooler out"
        )


def num_labels(tensors: Mapping[str, Tensor], name: str) -> int | None:
    """The number of outputs of the head's last layer, whose weight has this name; None without."""
    weight = tensors.get(f"{PREFIX}{name}")
    return None if weight is None else len(weight)
