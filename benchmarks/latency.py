"""What an adapter adds to the time of a prediction: before merging, after it, and Houlsby's.

    python benchmarks/latency.py            writes benchmarks/latency.txt too

One model a way, the same batch, the ways in turn, the median over rounds; each ratio is of one
round's two times, so that the machine's moods cancel.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch

import peftlab
from peftlab.machine import processor

ROUNDS, WARMING = 60, 5
TEXT = "The committee has not yet decided whether the old bridge can be repaired this year."


def base() -> Any:
    return peftlab.load_model("minilm", precision="fp32")[0].eval()


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
    ways = {
        "base": base(),
        "base, once more": base(),
        "lora": adapted("lora"),
        "lora, merged": adapted("lora", merged=True),
        "dora, merged": adapted("dora", merged=True),
        "houlsby": adapted("houlsby"),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(WARMING + ROUNDS):
        for name, model in ways.items():
            took = seconds(model, inputs)
            if round_ >= WARMING:
                times[name].append(took)
    size = "x".join(map(str, inputs["input_ids"].shape))
    lines = [
        f"minilm, fp32, batch {size} tokens, {torch.get_num_threads()} threads, {processor()}, "
        f"torch {torch.__version__}, {ROUNDS} rounds",
        f"{'':<16} {'ms, median':>10} {'of base, median of pairs':>26}",
    ]
    for name, own in times.items():
        ratio = statistics.median(a / b for a, b in zip(own, times["base"], strict=True))
        lines.append(f"{name:<16} {1000 * statistics.median(own):>10.2f} {ratio:>26.3f}")
    text = "\n".join(lines) + "\n"
    print(text, end="")
    Path(__file__).with_suffix(".txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
