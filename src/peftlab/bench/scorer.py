"""Scores from a process of its own: `python -m peftlab.bench.scorer`.

scikit-learn and scipy, with pandas behind them, take 138 MiB, as much as the activations of a
small training, and a cell's memory is what its method needs. So the warm parent of the cells
starts this beside itself, and its forks ask it over the two pipes.

stdin    one JSON request a line: {"id": ..., "arguments": those of `score`}
stdout   one JSON answer a line: {"id": ..., "scores": {...}} or {"id": ..., "error": message}
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from peftlab.tasks.metrics import score

COMMAND = [sys.executable, "-P", "-m", "peftlab.bench.scorer"]


class Scorer:
    """`peftlab.tasks.metrics.score`, computed by a process that lives as long as its caller."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.numbers = itertools.count()

    def __call__(
        self,
        metrics: Sequence[str],
        labels: Sequence[float],
        predictions: Sequence[float],
        n_classes: int | None = None,
    ) -> dict[str, float]:
        """See `peftlab.tasks.metrics.score`.

        Raises:
            ValueError: as there, and if the process is gone.
        """
        asked = f"{os.getpid()}-{next(self.numbers)}"
        arguments = [list(metrics), list(labels), list(predictions), n_classes]
        assert self.process.stdin is not None and self.process.stdout is not None
        request = json.dumps({"id": asked, "arguments": arguments}) + "\n"
        with contextlib.suppress(BrokenPipeError):  # said below, where the answer is missing
            self.process.stdin.write(request.encode())
        for line in self.process.stdout:
            answer: dict[str, Any] = json.loads(line)
            if answer["id"] != asked:  # of a fork that was killed before it read it
                continue
            if "error" in answer:
                raise ValueError(answer["error"])
            scores: dict[str, float] = answer["scores"]
            return scores
        raise ValueError("the process that computes the scores has ended")


def main() -> None:
    """Answer until stdin ends."""
    import scipy.stats  # noqa: F401 - now, not when the first cell waits for its score
    import sklearn.metrics  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer: dict[str, Any] = {"scores": score(*request["arguments"])}
        except ValueError as error:
            answer = {"error": str(error)}
        print(json.dumps({"id": request["id"]} | answer), flush=True)


if __name__ == "__main__":
    main()
