from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from peftlab.bench.scorer import Scorer
from peftlab.tasks.metrics import METRICS, score


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    started = Scorer()
    with started.process:  # its end closes the pipes
        yield started
        started.process.kill()


def test_gives_the_scores_of_this_process(scorer: Scorer) -> None:
    labels, guesses = [0, 1, 2, 1, 0, 2], [0, 1, 1, 1, 0, 2]
    assert scorer(list(METRICS), labels, guesses, 3) == score(list(METRICS), labels, guesses, 3)


def test_what_is_refused_here_is_refused_there(scorer: Scorer) -> None:
    with pytest.raises(ValueError, match="at least one, got 0 labels and 1 predictions"):
        scorer(["accuracy"], [], [1])
    assert scorer(["accuracy"], [1], [1]) == {"accuracy": 1.0}


def test_an_answer_that_nobody_read_is_not_taken_for_the_next(scorer: Scorer) -> None:
    arguments = [["accuracy"], [1], [0], None]
    request = json.dumps({"id": "of a dead one", "arguments": arguments}) + "\n"
    scorer.process.stdin.write(request.encode())
    assert scorer(["accuracy"], [1], [1]) == {"accuracy": 1.0}


def test_a_process_that_ended_is_said() -> None:
    scorer = Scorer()
    with scorer.process:
        scorer.process.kill()
        scorer.process.wait()
        with pytest.raises(ValueError, match="has ended"):
            scorer(["accuracy"], [1], [1])
