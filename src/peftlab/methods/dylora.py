"""DyLoRA: train one LoRA that can be cut to any lower rank.

    y = x Wᵀ + c + (alpha / b) · dropout(x) A[:b]ᵀ B[:, :b]ᵀ        b ~ U{1 … rank}, one a step

Paper      Valipour et al. 2023, arXiv:2210.07558, algorithm 1
Reference  github.com/huawei-noah/Efficient-NLP, DyLoRA (uniform b, one for all layers of a step)
Shapes     W (out, in) frozen · A (rank, in), B (out, rank) trained
Init       as LoRA
Cost       as LoRA of the full rank; a step works on b of its rows
Departs    the score is the full rank's, and every other rank's is recorded beside it.
           update="last": rows before the b-th are constants, as in the paper's frozen variant,
           which the authors' script for GLUE runs; here all rows up to the b-th learn by default.
           Rows that a step does not train have a gradient of zero and still move by AdamW's
           momentum, as in the reference, unless strict=true puts them back after the step
Raises     as LoRA
"""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from peftlab.errors import RequestError
from peftlab.layers import Adapter, Linear, LowRank, Pair, PreTrainedModel
from peftlab.methods.base import STRICT, ManyRanks, Method, Step
from peftlab.methods.low_rank import PeftLoRA
from peftlab.methods.registry import register


@dataclass(frozen=True, config=STRICT)
@register
class DyLoRA(PeftLoRA, ManyRanks):
    """LoRA for every rank up to `rank`.

    Attributes:
        rank: the largest rank.
        alpha: the update at rank b is scaled by alpha / b.
        dropout, targets: LoRA's, see `LowRankMethod`.
        update: whether "all" rows up to the step's rank learn, or the "last" of them alone.
        strict: whether rows that a step does not train are kept from moving at all.
    """

    name: ClassVar[str] = "dylora"
    summary: ClassVar[str] = "one LoRA for every rank up to the largest"
    paper: ClassVar[str] = "arXiv:2210.07558"
    default_lr: ClassVar[float] = 1.5e-3

    update: Literal["all", "last"] = "all"
    strict: bool = False

    def layer(self, base: Linear) -> Adapter:
        return DyLoRALinear(base, self.rank, self.alpha, self.dropout, self.update == "last")

    def draw(self, seed: int, index: int) -> int:
        """The rank of a step: uniform over 1 … rank."""
        # seeded by a string, which is hashed whole: torch's generator reads 32 bits of a number
        return random.Random(f"{seed}/{index}/rank").randint(1, self.rank)

    def before_step(self, model: PreTrainedModel, step: Step) -> None:
        b = self.draw(step.seed, step.index)
        for layer in _layers(model):
            layer.train_rank, layer.eval_rank = b, self.rank
            if self.strict:
                layer.save_rows()

    def before_update(self, model: PreTrainedModel, step: Step) -> None:
        for layer in _layers(model):
            layer.note_gradients()

    def after_step(self, model: PreTrainedModel, step: Step) -> None:
        if self.strict:
            for layer in _layers(model):
                layer.restore_rows()

    def ranks(self, model: PreTrainedModel) -> Generator[int]:
        try:
            for rank in range(1, self.rank + 1):
                for layer in _layers(model):
                    layer.eval_rank = rank
                yield rank
        finally:  # the model answers at its full rank again, however the loop ends
            for layer in _layers(model):
                layer.eval_rank = self.rank

    def at_rank(self, state: dict[str, Tensor], rank: int) -> tuple[Method, dict[str, Tensor]]:
        if not 1 <= rank <= self.rank:
            raise RequestError(f"rank must be from 1 to {self.rank}, got {rank}")
        tensors = dict(state)
        for name, tensor in state.items():
            if name.endswith(".lora_A"):
                tensors[name] = tensor[:rank]
            if name.endswith(".lora_B"):
                tensors[name] = tensor[:, :rank]
        return replace(self, rank=rank), tensors


class DyLoRALinear(LowRank):
    """A linear layer with a low-rank update of which a part is used.

    In training the rank is the step's, `train_rank`; in evaluation it is `eval_rank`, which is the
    full one unless `DyLoRA.ranks` sets another.
    """

    def __init__(
        self, base: Linear, rank: int, alpha: float, dropout_p: float = 0.0, last: bool = False
    ) -> None:
        super().__init__(base, rank, dropout_p)
        self.alpha, self.last = alpha, last
        self.train_rank = self.eval_rank = rank
        self.all_seen = False
        # of a run, not of the adapter: which rows were drawn, and which of those had a gradient
        for name in ("was_drawn", "was_drawn_again", "had_gradient"):
            no_rows = torch.zeros(rank, dtype=torch.bool, device=self.lora_A.device)
            self.register_buffer(name, no_rows, persistent=False)
        self.was_drawn: Tensor
        self.was_drawn_again: Tensor
        self.had_gradient: Tensor

    @property
    def rank(self) -> int:
        return self.train_rank if self.training else self.eval_rank

    def pair(self) -> Pair:
        """A and B of the rank in use, at their full size (rank, in), (out, rank).

        Past the b-th, columns of B are zeros, so that neither they nor A's rows have a gradient.
        Cut to size, the products of every rank would need kernels of their own (LOG.md).
        """
        b = self.rank
        rows = torch.arange(len(self.lora_A), device=self.lora_A.device)
        lora_A: Tensor = self.lora_A
        lora_B = self.lora_B * (rows < b)
        if self.last and self.training:
            lora_A = torch.where((rows == b - 1)[:, None], lora_A, lora_A.detach())
            lora_B = torch.where(rows == b - 1, lora_B, lora_B.detach())
        return Pair(lora_A, lora_B, self.alpha / b)

    def merged_weight(self, weight: Tensor) -> Tensor:  # (out, in) -> (out, in)
        b = self.eval_rank
        return weight + self.alpha / b * self.lora_B[:, :b] @ self.lora_A[:b]

    @property
    def trained_rows(self) -> tuple[int, int]:
        """The first row that a step trains, and the one behind the last."""
        return self.train_rank - 1 if self.last else 0, self.train_rank

    @torch.no_grad()
    def note_gradients(self) -> None:
        """Note which rows this step trains, and which columns of B have a gradient."""
        if self.all_seen:  # every row was drawn twice and had a gradient: no mask changes any more
            return
        first, stop = self.trained_rows
        self.was_drawn_again[first:stop] = self.was_drawn[first:stop]
        self.was_drawn[first:stop] = True
        if self.lora_B.grad is not None:
            self.had_gradient |= self.lora_B.grad.ne(0).any(dim=0)
        self.all_seen = bool((self.had_gradient & self.was_drawn_again).all())

    def idle(self, name: str) -> list[str]:
        columns = (self.was_drawn & ~self.had_gradient).nonzero().flatten().tolist()
        return [f"column {n + 1} of {name}.lora_B, though its rank was drawn" for n in columns]

    def excused(self, name: str) -> set[str]:
        """With `last`, A as long as no row was drawn twice: the row's column of B was 0."""
        return {f"{name}.lora_A"} if self.last and not self.was_drawn_again.any() else set()

    def save_rows(self) -> None:
        """Keep copies of A and B for `restore_rows`."""
        self.saved = [self.lora_A.detach().clone(), self.lora_B.detach().clone()]

    @torch.no_grad()
    def restore_rows(self) -> None:
        """Put every row back but those that the step trains."""
        rows = slice(*self.trained_rows)
        saved_A, saved_B = self.saved
        saved_A[rows], saved_B[:, rows] = self.lora_A[rows], self.lora_B[:, rows]
        self.lora_A.copy_(saved_A)
        self.lora_B.copy_(saved_B)
        del self.saved


def _layers(model: nn.Module) -> list[DyLoRALinear]:
    return [layer for layer in model.modules() if isinstance(layer, DyLoRALinear)]
