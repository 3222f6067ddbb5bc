"""A method of one's own in twenty lines, beside LoRA: train the norms and nothing else.

    python examples/own_method.py         a minute of one core's time
    peftlab compare --plugin examples/own_method.py --methods lora,norms --tasks acceptability

Every norm's gain and bias are trained, and the head, as for every method. docs/methods/own.md has
a method with a layer of its own that can be merged.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic.dataclasses import dataclass
from torch import nn

import peftlab
from peftlab.methods import STRICT, train_head_only


@dataclass(frozen=True, config=STRICT)
@peftlab.register
class Norms(peftlab.Method):
    """Train the norms. `bias`: their biases too, or their gains alone."""

    name: ClassVar[str] = "norms"
    summary: ClassVar[str] = "every norm of the backbone"
    paper: ClassVar[str] = "an example"
    default_lr: ClassVar[float] = 1e-3
    mergeable: ClassVar[bool] = False
    base_precision: ClassVar[str] = "fp32"  # steps of 1e-3 vanish in a gain of 1 held in bf16

    bias: bool = True

    def inject(self, model):
        train_head_only(model)
        for module in model.base_model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.requires_grad_(True)
                module.bias.requires_grad_(self.bias)


def main(
    model: str = "minilm", task: str | peftlab.Task = "acceptability", epochs: int = 3
) -> dict[str, float]:
    methods = ["lora", Norms(), Norms(bias=False)]
    records = peftlab.compare(model=model, tasks=[task], methods=methods, epochs=epochs)
    for record in records:
        print(f"{record.method.label:18} {record.n_trainable.adapter:6,} numbers beside the head's")
    return {record.method.label: record.score["accuracy"] for record in records}


if __name__ == "__main__":
    print(main())
