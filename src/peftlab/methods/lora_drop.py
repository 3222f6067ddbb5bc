"""LoRA-drop: find out by a short training which layers' updates matter; the others share one.

    stage 1   LoRA everywhere, trained on a sample;  gᵢ = Σ_tokens ‖ΔWᵢ xᵢ‖²,  Iᵢ = gᵢ / Σⱼ gⱼ
    stage 2   the fewest layers whose I sums to `threshold` keep a pair of their own, all others
              share one; trained anew from a fresh start

Paper      Zhou et al. 2024, arXiv:2402.07721, section 3
Reference  none published by the authors; tests/methods/test_lora_drop.py
Shapes     as LoRA
Init       as LoRA, in both stages
Cost       (kept + 1)·rank·(in + out) trained parameters a kind of layer; stage 1 is `prepare_s`
Departs    where the paper is silent: the sample is a stratified tenth of train, at least 64
           examples; one epoch of it but at least 20 updates, at the cell's learning rates; g is
           summed in eval mode over the tokens that are not padding; each kind of layer (query,
           value) is scored and shared apart; stage 2 starts from where stage 1 did, so that with
           nothing shared it is LoRA's run bit for bit
Raises     as LoRA, and RequestError if it is trained a second time: importance is measured with a
           pair in each layer, and layers that share have lost theirs
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from peftlab.errors import RequestError
from peftlab.layers import LoRALinear, PreTrainedModel, low_rank_update
from peftlab.methods.base import STRICT, Batch, Prepared, Rehearsal
from peftlab.methods.low_rank import LowRankMethod
from peftlab.methods.registry import register
from peftlab.models import kind_of

LEAST_EXAMPLES = 64
LEAST_STEPS = 20
DECIDED = "is_decided"  # in a layer's `__dict__`: which layers share a pair has been decided


@dataclass(frozen=True, config=STRICT)
@register
class LoRADrop(LowRankMethod, Prepared):
    """LoRA with a pair of their own for the layers that matter and a shared one for the rest.

    Attributes:
        rank, alpha, dropout, targets: LoRA's, see `LowRankMethod`.
        threshold: the share of importance held by the layers with a pair of their own; 1 is LoRA.
        sample: the share of train that stage 1 sees.
    """

    name: ClassVar[str] = "lora-drop"
    summary: ClassVar[str] = "LoRA where it matters, one shared pair elsewhere"
    paper: ClassVar[str] = "arXiv:2402.07721"
    default_lr: ClassVar[float] = 1.5e-3

    threshold: float = Field(default=0.9, gt=0, le=1)
    sample: float = Field(default=0.1, gt=0, le=1)

    def prepare(self, model: PreTrainedModel, rehearsal: Rehearsal) -> None:
        """Stage 1, and the start of stage 2."""
        decided = any(DECIDED in vars(layer) for layer in _layers(model).values())
        if self.state(model)["shared"] or (decided and self.threshold < 1):
            raise RequestError(
                "lora-drop has been trained here, and which layers share a pair is found before "
                "any trains; load the base anew with load_model, and train that"
            )
        starts = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        batches = rehearsal.sample(self.sample, LEAST_EXAMPLES)
        try:
            rehearsal.fit(model, batches, max(LEAST_STEPS, len(batches)))
            scores = importance(model, batches)
        finally:  # if this is stopped, too: the next training must begin where LoRA's does
            with torch.no_grad():
                for name, start in starts.items():
                    model.get_parameter(name).copy_(start)
        share(model, [_unimportant(kind, self.threshold) for kind in _by_kind(scores)])

    def notes(self, model: PreTrainedModel) -> list[str]:
        if self.state(model)["shared"]:
            return []
        return ["no layers share a pair, each has its own: this run is LoRA's"]

    def state(self, model: PreTrainedModel) -> dict[str, Any]:
        owners: dict[int, list[str]] = {}
        for name, layer in _layers(model).items():
            owners.setdefault(id(layer.lora_A), []).append(name)
        return {"shared": [names for names in owners.values() if len(names) > 1]}

    def restore(self, model: PreTrainedModel, state: dict[str, Any]) -> None:
        share(model, state["shared"])


@torch.inference_mode()
def importance(model: PreTrainedModel, batches: list[Batch]) -> dict[str, float]:
    """The squared size of each layer's update, summed over real tokens: g by the layer's name.

    A layer whose inputs are no tokens, such as DeBERTa's relative positions, has none.
    """
    scores: dict[str, float] = {}
    mask: Tensor  # the real tokens of the batch that is passing

    def hook_for(name: str) -> Callable[..., None]:
        def hook(layer: LoRALinear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            (x,) = inputs
            if x.dim() == 2 and len(x) == mask.numel():  # OPT flattens before its FFN
                x = x.view(*mask.shape, -1)
            if x.shape[:-1] != mask.shape:
                return
            update = low_rank_update(x[mask].float(), layer.lora_A, layer.lora_B, layer.scaling)
            if update.device.type == "mps":  # which has no float64
                update = update.cpu()
            size = update.double().square().sum().item()
            scores[name] = scores.get(name, 0.0) + size

        return hook

    handles = [layer.register_forward_hook(hook_for(n)) for n, layer in _layers(model).items()]
    model.eval()
    try:
        for batch in batches:
            ids = batch.inputs["input_ids"]
            mask = batch.inputs.get("attention_mask", torch.ones_like(ids)).bool()
            model(**batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return scores


def keep(scores: dict[str, float], threshold: float) -> list[str]:
    """The fewest layers, most important first, whose scores sum to `threshold` of the whole.

    >>> keep({"a": 1.0, "b": 6.0, "c": 3.0}, threshold=0.9)
    ['b', 'c']
    >>> keep({"a": 1.0, "b": 6.0, "c": 3.0}, threshold=1.0)
    ['b', 'c', 'a']
    """
    ordered = sorted(scores, key=lambda name: -scores[name])
    total, reached = sum(scores.values()), 0.0
    kept = []
    for name in ordered:
        if threshold < 1 and total and reached >= threshold * total:
            break
        kept.append(name)
        reached += scores[name]
    return kept


def share(model: nn.Module, groups: list[list[str]]) -> None:
    """Let the layers of each group share the pair of its first; mark all layers as decided."""
    for layer in _layers(model).values():
        vars(layer)[DECIDED] = True
    for names in groups:
        layers: list[Any] = [model.get_submodule(name) for name in names]
        for layer in layers[1:]:
            layer.lora_A, layer.lora_B = layers[0].lora_A, layers[0].lora_B


def _unimportant(scores: dict[str, float], threshold: float) -> list[str]:
    kept = keep(scores, threshold)
    return [name for name in scores if name not in kept]


def _by_kind(scores: dict[str, float]) -> list[dict[str, float]]:
    """The scores of layers at the same place of every block, such as all the queries."""
    kinds: dict[str, dict[str, float]] = {}
    for name, score in scores.items():
        kinds.setdefault(kind_of(name), {})[name] = score
    return list(kinds.values())


def _layers(model: nn.Module) -> dict[str, LoRALinear]:
    return {n: layer for n, layer in model.named_modules() if isinstance(layer, LoRALinear)}
