"""Rows of the table: groups of records that differ in nothing but the seed, and their averages.

A row is one method with one request. Records of the same label whose model, settings, targets,
precision or training differ belong to different rows, and the rows' names say what differs.
Statistics are over seeds; a value that cannot be known is None: absence is not certainty.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from peftlab.records.record import Record, TaskPart
from peftlab.settings import identity_settings

TaskKey = tuple[str, str, str]  # name, metric, sha256 of the examples
TUNED = "tuned"  # in place of a setting that trials found: it may be another on each task
OPAQUE_FIELDS = {"revision", "weights", "code", "adapted"}  # in a label if nothing else differs
RowKey = tuple[str, str]  # label; all other fields of the request, as canonical JSON
LOWER_IS_BETTER = frozenset({"rmse", "mae"})  # metrics of which less is better
BY_TASK = '"by task"'  # in place of a setting that the task decides, as JSON
TASK_DEFAULTS = {"training.epochs", "training.max_length"}  # fields with a default for each task
RATE_FIELDS = frozenset({"training.lr", "training.head_lr"})  # as `request_fields` names them
MARGIN = 0.01  # differences within ± one point of a score count as a tie
COLLAPSED = "collapsed"  # first word of the warning on a collapsed run
CONSTANT = ("constant", "majority", "mean")  # baselines that read no text; the last two are old


def task_key(record: Record) -> TaskKey:
    return (record.task.name, record.task.main_metric, record.task.sha256)


def task_label(key: TaskKey, tasks: Iterable[TaskKey]) -> str:
    """The task's name; where several of `tasks` have it, with the metric or hash that differs."""
    name, metric, sha256 = key
    namesakes = [other for other in tasks if other[0] == name]
    extra = [metric] if len({other[1] for other in namesakes}) > 1 else []
    extra += [sha256[:8]] if len({other[2] for other in namesakes}) > 1 else []
    return f"{name} ({', '.join(extra)})" if extra else name


def request_fields(record: Record) -> dict[str, str]:
    """The cell's request without seed and task: value by field, as canonical JSON."""
    parts: dict[str, Mapping[str, object]] = {
        "": {
            "model": record.model.name,
            # a later commit of the hub's may leave the weights as they were
            "revision": None if record.model.sha256 else record.model.revision,
            "weights": record.model.sha256,
            "method": record.method.name,
            "code": record.method.source_sha256,
            "precision": record.precision,
            "adapted": record.method.targets,
            "threads": record.environment.threads,
            "tuned": record.method.tuned,
            "side": record.side,
        },
        "settings.": record.method.settings,
        "training.": identity_settings(record.training),
    }
    searched = set(record.method.tuned.get("space", ()))
    return {
        prefix + name: json.dumps(TUNED if name in searched else value, sort_keys=True, default=str)
        for prefix, fields in parts.items()
        for name, value in fields.items()
    }


def speed_key(record: Record) -> str:
    """A key of what speed and memory depend on: the data, and the request but rates and epochs.

    A short cell (`--repeat-speed`) has the key of the cells of the data that it was drawn from.
    """
    ignored = RATE_FIELDS | {"training.epochs"}
    fields = {name: value for name, value in request_fields(record).items() if name not in ignored}
    rates = {field.removeprefix("training.") for field in ignored}
    found = {name: value for name, value in _tuned_values(record).items() if name not in rates}
    return json.dumps([_data(record), fields, *filter(None, [found])], sort_keys=True)


def _data(record: Record) -> str:
    return record.task.drawn_from or record.task.sha256


def shared_rounds(rounds: Iterable[Record]) -> list[Record]:
    """The rounds of a task in which all its rows had a turn that had any; without such, all.

    A later command with fewer rounds leaves earlier ones, in which its new rows had no turn.
    """
    by_task: dict[str, list[Record]] = defaultdict(list)
    for record in rounds:
        by_task[_data(record)].append(record)
    return [record for of_task in by_task.values() for record in _shared(of_task)]


def _shared(rounds: Sequence[Record]) -> Sequence[Record]:
    by_row: dict[str, list[Record]] = defaultdict(list)
    for record in rounds:
        by_row[speed_key(record)].append(record)
    turns = set.intersection(*map(rounds_taken, by_row.values()))
    return [record for record in rounds if record.speed and record.speed.turn in turns] or rounds


def rounds_by_row(records: Iterable[Record], rounds: Iterable[Record]) -> dict[str, list[Record]]:
    """By `speed_key`, the rounds that speed and memory of the records' rows are read from."""
    shown = set(map(speed_key, records))
    done = [record for record in rounds if record.is_done and speed_key(record) in shown]
    by_row: dict[str, list[Record]] = defaultdict(list)
    for record in shared_rounds(done):
        by_row[speed_key(record)].append(record)
    return by_row


def rounds_taken(rounds: Iterable[Record]) -> set[str | None]:
    """The rounds in which a row had its turn; None stands for rounds of earlier versions."""
    return {record.speed.turn for record in rounds if record.speed}


def row_of(record: Record) -> str:
    """A key of the records of one row on one task: the task and the request but the seed."""
    return json.dumps([task_key(record), request_fields(record)], sort_keys=True)


def seeds_key(record: Record) -> str:
    """The same, of the records that are seeds of one another: at the values that trials found."""
    return json.dumps([row_of(record), _tuned_values(record)], sort_keys=True)


def is_judged_on_train(record: Record) -> bool:
    """Whether a part of train stood for dev; tasks/split.py says so in the task's source."""
    return re.search(r", (a fifth|[\d.]+) of train$", record.task.source) is not None


def rate_from_dev(record: Record, others: Iterable[Record]) -> bool:
    """Whether to prefer this run's row is to choose its learning rate on dev.

    It is if dev judged the run and another row of the task differs from its row in rates alone.
    """
    if is_judged_on_train(record):
        return False
    request = request_fields(record)
    return any(
        task_key(other) == task_key(record)
        and RATE_FIELDS >= _differing_fields(request, request_fields(other)) > set()
        for other in others
    )


def _differing_fields(a: Mapping[str, str], b: Mapping[str, str]) -> set[str]:
    return {name for name in a.keys() | b.keys() if a.get(name) != b.get(name)}


def by_task(records: Sequence[Record]) -> dict[str, dict[TaskKey, str]]:
    """The training fields that the task decides, with the value on each, such as epochs for RTE.

    They distinguish columns and not rows. Within one task all records agree on them; or most do,
    where the field has a default for each task and at least as many rows follow the defaults as
    keep to one value.
    """
    requests = [(task_key(record), request_fields(record)) for record in records]
    counts: dict[str, dict[TaskKey, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for task, request in requests:
        for field, value in request.items():
            if field.startswith("training."):
                counts[field][task][value] += 1
    usual = {
        field: {task: _usual(values, tasks.values()) for task, values in tasks.items()}
        for field, tasks in counts.items()
    }
    return {
        field: values
        for field, values in usual.items()
        if len(set(values.values())) > 1
        and (
            all(len(on_task) == 1 for on_task in counts[field].values())
            or (field in TASK_DEFAULTS and _follows_tasks(field, requests))
        )
    }


def _usual(values: Counter[str], on_tasks: Iterable[Counter[str]]) -> str:
    """The most frequent value on a task; of equally frequent ones that of the fewest tasks."""
    n_tasks = Counter(value for on_task in on_tasks for value in on_task)
    return min(values, key=lambda value: (-values[value], n_tasks[value], value))


def _follows_tasks(field: str, requests: Iterable[tuple[TaskKey, dict[str, str]]]) -> bool:
    """Whether at most half of the rows on several tasks keep to one value of the field on all."""
    rows: dict[str, dict[TaskKey, set[str]]] = defaultdict(lambda: defaultdict(set))
    for task, request in requests:
        rest = {name: value for name, value in request.items() if not name.startswith("training.")}
        rows[json.dumps(rest, sort_keys=True)][task].add(request.get(field, ""))
    is_constant = [
        bool(set.intersection(*values.values())) for values in rows.values() if len(values) > 1
    ]
    return bool(is_constant) and 2 * sum(is_constant) <= len(is_constant)


def group(records: Iterable[Record]) -> dict[RowKey, list[Record]]:
    """The records of every row, rows in the order in which they first appear.

    A row has the label of its first record: two suites may have given the method different labels.
    It has one record of a seed on a task, the last one, since another search may have found other
    settings; but a failed run does not replace a done one at the very same settings. Records at
    values that an earlier search found are left out: they are no seeds of the last search's values.
    """
    records = list(records)
    task_values = by_task(records)
    rows: dict[str, dict[tuple[TaskKey, int], Record]] = {}
    last: dict[tuple[str, TaskKey], Record] = {}
    for record in records:
        task = task_key(record)
        usual = {field: values[task] for field, values in task_values.items() if task in values}
        fields = {
            name: BY_TASK if usual.get(name) == value else value
            for name, value in request_fields(record).items()
        }
        key = json.dumps(fields, sort_keys=True)
        row = rows.setdefault(key, {})
        last[key, task] = record
        earlier = row.get((task, record.seed))
        if earlier is None or not _is_failed_repeat(record, earlier):
            row[task, record.seed] = record
    return {
        (next(iter(row.values())).method.label, key): [
            record
            for (task, _), record in row.items()
            if _tuned_values(record) == _tuned_values(last[key, task])
        ]
        for key, row in rows.items()
    }


def _tuned_values(record: Record) -> dict[str, object]:
    """The settings that trials found; empty for a record that is not tuned."""
    settings = record.method.settings | record.training
    return {name: settings.get(name) for name in record.method.tuned.get("space", ())}


def key_without_rate(key: RowKey, head_alone: bool) -> str:
    """A key of the rows that differ in the learning rate alone; labels don't count.

    Where the head alone is trained its rate is the row's.
    """
    rates = RATE_FIELDS if head_alone else {"training.lr"}
    fields = {name: value for name, value in json.loads(key[1]).items() if name not in rates}
    return json.dumps(fields, sort_keys=True)


def _is_failed_repeat(record: Record, earlier: Record) -> bool:
    """Whether the record failed and `earlier`, at the very same settings, is done."""
    settings = (record.training, record.method.settings)
    is_repeat = settings == (earlier.training, earlier.method.settings)
    return is_repeat and not record.is_done and earlier.is_done


def labels(keys: Iterable[RowKey]) -> dict[RowKey, str]:
    """A unique name for every row: its label, and where rows share that, the fields that differ.

    >>> keys = [("lora", '{"training.lr": "0.001"}'), ("lora", '{"training.lr": "0.002"}')]
    >>> list(labels(keys).values())
    ['lora (lr 0.001)', 'lora (lr 0.002)']
    """
    keys = list(keys)
    names: dict[RowKey, str] = {}
    for key in keys:
        namesakes = {other: json.loads(other[1]) for other in keys if other[0] == key[0]}
        extra = _describe_differences(namesakes[key], list(namesakes.values()))
        names[key] = f"{key[0]} ({', '.join(extra)})" if extra else key[0]
    counts = Counter(names.values())
    return {
        key: name if counts[name] == 1 else f"{name} #{position}"
        for position, (key, name) in enumerate(names.items(), start=1)
    }


def _describe_differences(row: dict[str, str], all_rows: list[dict[str, str]]) -> list[str]:
    """`field value` of the row for each field on which the rows disagree, in the fields' order."""
    fields = dict.fromkeys(name for other in all_rows for name in other)
    differing = [name for name in fields if len({other.get(name) for other in all_rows}) > 1]
    if "tuned" in differing:  # the search is described, not the values that it found
        searched = json.loads(row["tuned"]).get("space", ())
        differing = [name for name in differing if name.rpartition(".")[2] not in searched]
    descriptions = [
        _describe(name.rpartition(".")[2], json.loads(row[name]) if name in row else "–")
        for name in [name for name in differing if name not in OPAQUE_FIELDS] or differing
    ]
    return list(dict.fromkeys(descriptions))


def _describe(name: str, value: object) -> str:
    if name in {"weights", "code"}:
        return f"{name} {str(value)[:8]}"
    if name == "tuned" and isinstance(value, dict):
        if not value:
            return "not tuned"
        space, share = " and ".join(value["space"]), value["validation"]
        return f"{value['trials']} trials of {space} on {share:g} of train"
    if name in {"model", "precision", "side"}:
        return str(value)
    return f"{name} {value}"


def is_collapsed(record: Record) -> bool:
    """Whether the run scores no more than one constant answer, as one of its warnings says."""
    return any(warning.startswith(COLLAPSED) for warning in record.warnings)


def constant_of(task: TaskPart) -> dict[str, float]:
    """The scores, by metric, of the baseline that gives all texts one answer; empty if unknown."""
    return next((task.baselines[name] for name in CONSTANT if name in task.baselines), {})


def finite_values(values: Iterable[float | None]) -> list[float]:
    """The values that were measured: neither None nor NaN nor infinite.

    >>> finite_values([1.0, None, float("nan")])
    [1.0]
    """
    return [value for value in values if value is not None and math.isfinite(value)]


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None for no values.

    >>> mean([0.5, 0.75]), mean([])
    (0.625, None)
    """
    return statistics.fmean(values) if values else None


def sample_sd(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n - 1 below); None for fewer than two values.

    >>> sample_sd([1.0, 3.0, 5.0]), sample_sd([1.0])
    (2.0, None)
    """
    return statistics.stdev(values) if len(values) > 1 else None


def merit(metric: str, score: float) -> float:
    """The score as a number of which more is better, whatever the metric.

    >>> merit("accuracy", 0.75), merit("rmse", 0.75)
    (0.75, -0.75)
    """
    return -score if metric in LOWER_IS_BETTER else score
