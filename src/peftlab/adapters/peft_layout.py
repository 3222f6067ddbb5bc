"""HF PEFT's own layout of an adapter: its names of tensors and its settings, both ways.

ours   bert.encoder.layer.0.attention.self.query.lora_A
PEFT   base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight

What PEFT calls a method's tensors and settings stands in the method's own file (`InPeft`).
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
from peftlab.layers import Adapter, PreTrainedModel, is_conv1d
from peftlab.methods import METHODS, InPeft
from peftlab.methods.peft import PREFIX, refuse
from peftlab.models import head_names, head_parameters
from peftlab.naming import listed

# settings of PEFT's that change what an adapter computes and that no method here has
REFUSED = {"bias": "none"} | dict.fromkeys(
    ("trainable_token_indices", "target_parameters", "arrow_config")
)


def name(ours: str, names: Mapping[str, str]) -> str:
    """PEFT's name of a tensor, of a method with these `peft_names`.

    >>> name("bert.pooler.dense.weight", {"lora_A": "{layer}.lora_A.weight"})
    'base_model.model.bert.pooler.dense.weight'
    >>> name("bert.layer.0.key.lora_A", {"lora_A": "{layer}.lora_A.weight"})
    'base_model.model.bert.layer.0.key.lora_A.weight'
    """
    for ending, theirs in names.items():
        if ours.endswith(f".{ending}"):
            return theirs.format(layer=PREFIX + ours.removesuffix(f".{ending}"))
    return f"{PREFIX}{ours}"


def to_file(method: InPeft, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's tensors as PEFT names and shapes them."""
    shaped = method.peft_tensors(tensors)
    return {name(ours, method.peft_names): tensor for ours, tensor in shaped.items()}


def from_file(
    method: InPeft, tensors: dict[str, Tensor], wanted: Sequence[str]
) -> dict[str, Tensor]:
    """A file's tensors under our names and in our shapes; what is not wanted keeps its own."""
    ours = {name(one, method.peft_names): one for one in wanted}
    return method.own_tensors({ours.get(theirs, theirs): t for theirs, t in tensors.items()})


def config(model: PreTrainedModel, method: InPeft, base: Base) -> dict[str, Any]:
    """The content of adapter_config.json."""
    layers = {n: layer for n, layer in model.named_modules() if isinstance(layer, Adapter)}
    return {
        "peft_type": method.peft_type,
        **method.peft_config(layers),
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base.loadable,
        "revision": base.part.revision,
        "inference_mode": True,
        "fan_in_fan_out": any(is_conv1d(layer.base) for layer in layers.values()),
        "target_modules": list(layers),
        "modules_to_save": head_names(model),
    }


def read_config(folder: Path, needs_base: bool = True) -> dict[str, Any]:
    """The content of adapter_config.json, which must name its base if that is needed.

    Raises:
        RequestError: if it is not there or can't be read.
    """
    path = folder / PEFT_CONFIG
    if not path.is_file():
        raise RequestError(f"{folder} is no adapter: it has neither {CARD} nor {PEFT_CONFIG}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (*JSON_ERRORS, OSError) as error:
        raise RequestError(f"{path} is not JSON: {error}") from None
    named = {"base_model_name_or_path": str} if needs_base else {}
    _check_fields(path, found, {"peft_type": str, **named})
    for known in _known().get(found["peft_type"], []):
        _check_fields(path, found, known.peft_needs)
    config: dict[str, Any] = found
    return config


def _check_fields(path: Path, found: Any, needed: Mapping[str, type]) -> None:
    for field, kind in needed.items():
        value = found.get(field) if isinstance(found, dict) else None
        if not isinstance(value, kind) or value == "":
            raise RequestError(f"{path} lacks {field}, or it is not {kind.__name__}")


def method(config: dict[str, Any], tensors: dict[str, Tensor]) -> InPeft:
    """The method that PEFT's settings mean; its targets are the layers that have tensors.

    Raises:
        RequestError: if no method here computes the same.
    """
    refuse(config, REFUSED)
    known = _known()
    for candidate in known.get(config["peft_type"], []):
        try:
            found = candidate.from_peft(config, tensors)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, RequestError):
                raise
            raise RequestError(f"{PEFT_CONFIG} is not as PEFT writes it: {error!r}") from error
        if found is not None:
            return found
    raise RequestError(
        f"PEFT's {config['peft_type']} is not known here; {listed(sorted(known))} are"
    )


def _known() -> dict[str, list[type[InPeft]]]:
    """The methods that PEFT has, by its words for them."""
    known: dict[str, list[type[InPeft]]] = {}
    for candidate in METHODS.values():
        if issubclass(candidate, InPeft):
            known.setdefault(candidate.peft_type, []).append(candidate)
    return known


def check_head(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Raise `RequestError` if a part of the head is adapted, which is trained whole here."""
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


def num_labels(tensors: Mapping[str, Tensor], last: str) -> int | None:
    """The number of outputs, as the file's weight of the head's last layer, `last`, has it."""
    found = tensors.get(f"{PREFIX}{last}")
    return None if found is None else len(found)
