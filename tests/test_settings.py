"""A setting is one field; one that is added later leaves the identities of older cells alone."""

from __future__ import annotations

import pytest

from peftlab.errors import RequestError
from peftlab.settings import Resolved, Training, identity_settings, later
from plans import SHORT


class Newer(Resolved):
    smoothing: float = later(0.0, ge=0, lt=1, description="A setting of another version.")


def test_a_later_setting_at_its_default_leaves_a_cells_identity_as_it_was() -> None:
    values = SHORT.model_dump()
    assert SHORT.identity == {name: value for name, value in values.items() if name != "graphs"}
    assert Newer(**values).identity == SHORT.identity
    assert Newer(**values, smoothing=0.1).identity == SHORT.identity | {"smoothing": 0.1}
    assert Newer(**values).model_dump() == values | {"smoothing": 0.0}  # the record holds it


def test_records_from_before_a_later_setting_are_of_one_row_with_those_at_its_default() -> None:
    before, after = SHORT.model_dump(), Newer(**SHORT.model_dump()).model_dump()
    identities = [identity_settings(values, Newer.model_fields) for values in (before, after)]
    assert identities == [SHORT.identity] * 2
    assert identity_settings({"no setting": 1}) == {"no setting": 1}


def test_only_what_was_given_is_given() -> None:
    assert Training.of({"epochs": 3, "batch_size": 32}).given == {"epochs": 3, "batch_size": 32}
    with pytest.raises(RequestError, match="training: clip must be greater than 0, got -1"):
        Training.of({"clip": -1.0})


def test_every_setting_that_is_asked_for_is_one_that_is_run_or_decides_on_one() -> None:
    assert Training.model_fields.keys() - Resolved.model_fields.keys() == {"precision"}
    assert Resolved.model_fields.keys() - Training.model_fields.keys() == set()
