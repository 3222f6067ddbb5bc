"""A published recipe: what a paper or a report trained, and the scores that it reports.

A file peftlab/recipes/*.toml is a suite in which tasks may have settings of their own, together
with what the source says about itself. Only what stands under `open` is ours.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ValidationError

from peftlab.bench.suite import Suite, Variant, make_suite
from peftlab.errors import RequestError, explain, unknown
from peftlab.records.published import Published

SCALES = ("small", "full")


class Recipe(BaseModel, extra="forbid", frozen=True, strict=True):
    """One recipe.

    Attributes:
        name: the file's stem.
        about: one line on what was trained.
        source: where it is published; every number stands there.
        model, tasks, methods, seeds, training: as in a suite.
        by_task: a task's own settings, which win over `training`, and its `metric` if the source's
            is not the usual one.
        open: what the source does not say or we can't do, and what is taken in its place.
        flags: where the source contradicts itself, or its numbers can't be compared.
        small: tasks, methods, seeds and training that --scale small takes instead.
        published: the scores.
    """

    name: str
    about: str
    source: str
    model: str
    tasks: list[str]
    methods: list[Any]
    seeds: list[int]
    training: dict[str, Any] = {}
    by_task: dict[str, dict[str, Any]] = {}
    open: list[str] = []
    flags: list[str] = []
    small: dict[str, Any]
    published: Published

    def suites(
        self,
        scale: str,
        *,
        tasks: list[str] | None = None,
        methods: list[str] | None = None,
        training: Mapping[str, Any] = MappingProxyType({}),
        **over: Any,
    ) -> list[Suite]:
        """The recipe as suites, each with all tasks that are trained alike.

        Args:
            scale: full, or small: what the file says under `small`.
            tasks: some of the recipe's tasks; None for all.
            methods: some of the recipe's rows, by their labels; None for all.
            training: settings that win over the recipe's.
            over: `model`, `data_dir` and `seeds`, which win over the recipe's.

        Raises:
            RequestError: if one of them is wrong.
        """
        if scale not in SCALES:
            raise RequestError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
        small = self.small if scale == "small" else {}
        rows = {Variant.model_validate(method).label: method for method in self.methods}
        self._check_known("task", tasks, self.tasks)
        self._check_known("row", methods, rows)
        chosen = {**over, "tasks": tasks, "methods": methods and [rows[label] for label in methods]}
        request = {"model": self.model, "methods": self.methods, "seeds": self.seeds}
        request |= {"tasks": self.tasks}
        request |= {key: value for key, value in small.items() if key in request}
        request |= {key: value for key, value in chosen.items() if value is not None}
        training = {**small.get("training", {}), **training}
        tasks_by_settings: dict[str, list[str]] = {}  # the settings as JSON
        for task in request["tasks"]:
            settings = json.dumps(self.by_task.get(task, {}))
            tasks_by_settings.setdefault(settings, []).append(task)
        return [
            self._suite(json.loads(settings), request | {"tasks": tasks}, training)
            for settings, tasks in tasks_by_settings.items()
        ]

    def _check_known(self, kind: str, names: list[str] | None, known: Iterable[str]) -> None:
        for name in names or []:
            if name not in known:
                raise unknown(f"{kind} of the recipe {self.name}", name, known)

    def _suite(
        self, task_settings: dict[str, Any], request: dict[str, Any], training: dict[str, Any]
    ) -> Suite:
        metric = task_settings.pop("metric", None)
        merged = {**self.training, **task_settings, **training}
        return make_suite(name=self.name, metric=metric, training=merged, **request)


def recipes() -> dict[str, Recipe]:
    """All recipes, by name."""
    folder = resources.files("peftlab") / "recipes"
    files = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".toml")),
        key=lambda file: file.name,
    )
    parsed = [_parse(Path(file.name).stem, file.read_text(encoding="utf-8")) for file in files]
    return {recipe.name: recipe for recipe in parsed}


def recipe(name: str) -> Recipe:
    """The recipe with this name.

    Raises:
        RequestError: if there is none.
    """
    known = recipes()
    if name not in known:
        raise unknown("recipe", name, known)
    return known[name]


def _parse(name: str, text: str) -> Recipe:
    try:
        return Recipe.model_validate({"name": name, **tomllib.loads(text)})
    except ValidationError as error:
        raise explain(error, f"the recipe {name}", Recipe.model_fields) from None
