"""What an adapter adds to the time of a prediction: LoRA before and after merging, and Houlsby.

    python benchmarks/latency.py            writes benchmarks/latency.txt too

In every round each model predicts the same batch, in turn; the table has medians over rounds. A
ratio is of two times of one round, so that what else the machine does cancels.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch

import peftlab
from peftlab.machine import processor

ROUNDS, WARMUP_ROUNDS = 60, 5
TEXT = "The committee has not yet decided whether the old bridge can be repaired this year."


def base() -> Any:
    return peftlab.load_model("minilm", precision="fp32", device="cpu")[0].eval()


def adapted(method: str, merged: bool = False) -> Any:
    model = base()
    peftlab.inject(model, method)
    if merged:
        peftlab.merge(model)
    return model.eval()


def seconds(model: Any, inputs: dict[str, torch.Tensor]) -> float:
    started = time.perf_counter()
    model(**inputs)
    return time.perf_counter() - started


@torch.inference_mode()
def main() -> None:
    tokenizer = peftlab.load_model("minilm")[1]
    inputs = dict(tokenizer([TEXT] * 16, return_tensors="pt"))
    models = {
        "base": base(),
        "base, once more": base(),
        "lora": adapted("lora"),
        "lora, merged": adapted("lora", merged=True),
        "dora, merged": adapted("dora", merged=True),
        "houlsby": adapted("houlsby"),
    }
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(WARMUP_ROUNDS + ROUNDS):
        for name, model in models.items():
            forward_s = seconds(model, inputs)
            if number >= WARMUP_ROUNDS:
                times[name].append(forward_s)
    size = "x".join(map(str, inputs["input_ids"].shape))
    lines = [
        f"minilm, fp32, batch {size} tokens, {torch.get_num_threads()} threads, {processor()}, "
        f"torch {torch.__version__}, {ROUNDS} rounds",
        f"{'':<16} {'ms, median':>10} {'of base, median of pairs':>26}",
    ]
    for name, model_times in times.items():
        ratio = statistics.median(a / b for a, b in zip(model_times, times["base"], strict=True))
        lines.append(f"{name:<16} {1000 * statistics.median(model_times):>10.2f} {ratio:>26.3f}")
    text = "\n".join(lines) + "\n"
    print(text, end="")
    Path(__file__).with_suffix(".txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
