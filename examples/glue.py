"""GLUE's small tasks: predict the cost, compare several methods with three seeds, choose a row.

    python examples/glue.py GLUE          GLUE is a folder with the benchmark's files, such as
                                          GLUE/MRPC/train.tsv and GLUE/STS-B/train.tsv

How long it takes is printed first, after a few steps of every row. Rates are the defaults; `tune=6`
in compare(...) gives every row the same six trials on a part of train first.
"""

from __future__ import annotations

import sys
from pathlib import Path

import peftlab
from peftlab.records.verdicts import Comparison

METHODS = ("full", "head", "lora", "lora[rank=16]", "bitfit")


def main(
    data_dir: str | Path,
    model: str = "minilm",
    tasks: tuple[str, ...] = ("mrpc", "stsb"),
    methods: tuple[str, ...] = METHODS,
    seeds: tuple[int, ...] = (0, 1, 2),
    measure: bool = True,
    **training: int,  # such as epochs=1
) -> Comparison:
    request = {"tasks": tasks, "methods": methods, "seeds": seeds, "data_dir": data_dir, **training}
    plan = peftlab.plan(model=model, measure=measure, **request)
    time = f"about {plan.all_s / 60:.0f} minutes" if plan.all_s else "time unknown"
    print(f"{time}, at most {plan.peak_mib:.0f} MiB")

    peftlab.compare(model=model, out="runs/glue", keep="best", **request)

    comparison = peftlab.verdicts("runs/glue", margin=0.01)
    for pair in comparison.pairs:
        shown = f"{pair.difference:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}] {pair.verdict}"
        print(f"{pair.task:6} {pair.a:14} - {pair.b:14} {shown}")
    for row in comparison.over_tasks:
        print(f"{row.row:14} among the best on {row.n_best} of {row.n_tasks} tasks")
    chosen = comparison.recommendation
    print(f"take {chosen.row}: {chosen.cost.trained:,} numbers, {chosen.cost.memory_mib:.0f} MiB")
    return comparison


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
