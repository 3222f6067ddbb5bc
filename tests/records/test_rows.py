"""Statistics over seeds, against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftlab.records.rows import known, mean, sample_sd

scores = st.lists(st.floats(-1, 1), min_size=2, max_size=8)


@given(scores)
def test_mean_and_sd_equal_numpys(values: list[float]) -> None:
    assert mean(values) == pytest.approx(np.mean(values))
    assert sample_sd(values) == pytest.approx(np.std(values, ddof=1))


def test_one_value_has_no_spread_and_none_has_no_mean() -> None:
    assert sample_sd([0.9]) is None
    assert sample_sd([]) is None
    assert mean([]) is None


def test_equal_values_have_a_spread_of_nothing() -> None:
    assert sample_sd([0.5, 0.5]) == 0.0


def test_what_was_not_measured_is_left_out() -> None:
    assert known([0.0, None, math.nan, math.inf, 2.0]) == [0.0, 2.0]
