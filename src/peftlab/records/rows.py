"""Which records may be averaged, those that differ in nothing but the seed, and how.

A row of the table is one method as it was asked for. Two records of one label whose model,
settings, targets, precision or training differ are two rows, told apart by what differs.
Statistics are over seeds; what cannot be known is None: absence is not certainty.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from peftlab.records.record import Record, TaskPart
from peftlab.settings import told_apart

TaskKey = tuple[str, str, str]  # name, metric, sha256 of the examples
TUNED = "tuned"  # in place of a setting that trials found: it may be another on each task
UNREADABLE = {"revision", "weights", "code", "adapted"}  # in a label if nothing else differs
RowKey = tuple[str, str]  # label, everything else that was asked, as canonical JSON
LOWER_IS_BETTER = frozenset({"rmse", "mae"})  # metrics of which less is better
BY_TASK = '"by task"'  # in place of a setting that the task decides, as JSON
OF_TASKS = {"training.epochs", "training.max_length"}  # their defaults are of each task's own
RATE_FIELDS = frozenset({"training.lr", "training.head_lr"})  # as `asked` names them
MARGIN = 0.01  # differences within ± one point of a score count as a tie
COLLAPSED = "collapsed"  # how a record's warning of it begins
CONSTANT = ("constant", "majority", "mean")  # baselines that read no text; now it is the first


def task_key(record: Record) -> TaskKey:
    return (record.task.name, record.task.main_metric, record.task.sha256)


def task_label(key: TaskKey, tasks: Iterable[TaskKey]) -> str:
    """The task's name, and where some of `tasks` share it, by what they differ."""
    name, metric, sha256 = key
    same = [other for other in tasks if other[0] == name]
    extra = [metric] if len({other[1] for other in same}) > 1 else []
    extra += [sha256[:8]] if len({other[2] for other in same}) > 1 else []
    return f"{name} ({', '.join(extra)})" if extra else name


def asked(record: Record) -> dict[str, str]:
    """What the cell was asked, seed and task apart: field -> value as canonical JSON."""
    parts: dict[str, Mapping[str, object]] = {
        "": {
            "model": record.model.name,
            "revision": record.model.revision,
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
        "training.": told_apart(record.training),
    }
    found = set(record.method.tuned.get("space", ()))
    return {
        prefix + name: json.dumps(TUNED if name in found else value, sort_keys=True, default=str)
        for prefix, fields in parts.items()
        for name, value in fields.items()
    }


def measured_alike(record: Record) -> str:
    """What speed and memory follow from: all that was asked but rates and epochs.

    A short cell (`--repeat-speed`) is alike with those of the data that it was drawn from.
    """
    apart = RATE_FIELDS | {"training.epochs"}
    fields = {name: value for name, value in asked(record).items() if name not in apart}
    return json.dumps([record.task.drawn_from or record.task.sha256, fields], sort_keys=True)


def turns(rounds: Iterable[Record]) -> set[str | None]:
    """The rounds that a row had its turn in; None stands for those of earlier versions."""
    return {one.speed.turn for one in rounds if one.speed}


def row_of(record: Record) -> str:
    """What the records of a row on one task have in common: all that was asked but the seed."""
    return json.dumps([task_key(record), asked(record)], sort_keys=True)


def judged_on_train(record: Record) -> bool:
    """Whether a part of train stood for dev, as tasks/split.py says where it is so."""
    return record.task.source.endswith(" of train")


def rate_from_dev(record: Record, others: Iterable[Record]) -> bool:
    """Whether to prefer this run's row is to choose its learning rate on dev.

    It is where another row of the task differs from it in rates alone, and dev judged them.
    """
    if judged_on_train(record):
        return False
    own = asked(record)
    return any(
        task_key(other) == task_key(record) and RATE_FIELDS >= _unlike(own, asked(other)) > set()
        for other in others
    )


def _unlike(own: Mapping[str, str], other: Mapping[str, str]) -> set[str]:
    return {name for name in own.keys() | other.keys() if own.get(name) != other.get(name)}


def by_task(records: Sequence[Record]) -> dict[str, dict[TaskKey, str]]:
    """The training fields that the task decides, with its value on each, such as epochs for RTE.

    They part columns and not rows. Within one task all records agree on them; or most do, where the
    field has a default of each task's own and no fewer rows follow it than keep to one value.
    """
    fields = [(task_key(record), asked(record)) for record in records]
    seen: dict[str, dict[TaskKey, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for task, own in fields:
        for field, value in own.items():
            if field.startswith("training."):
                seen[field][task][value] += 1
    usual = {
        field: {task: counts.most_common(1)[0][0] for task, counts in on.items()}
        for field, on in seen.items()
    }
    return {
        field: values
        for field, values in usual.items()
        if len(set(values.values())) > 1
        and (
            all(len(counts) == 1 for counts in seen[field].values())
            or (field in OF_TASKS and _followed(field, fields))
        )
    }


def _followed(field: str, fields: Iterable[tuple[TaskKey, dict[str, str]]]) -> bool:
    """Whether of the rows on several tasks no fewer have no value on all of them than have one."""
    rows: dict[str, dict[TaskKey, set[str]]] = defaultdict(lambda: defaultdict(set))
    for task, own in fields:
        rest = {name: value for name, value in own.items() if not name.startswith("training.")}
        rows[json.dumps(rest, sort_keys=True)][task].add(own.get(field, ""))
    kept = [bool(set.intersection(*on.values())) for on in rows.values() if len(on) > 1]
    return bool(kept) and 2 * sum(kept) <= len(kept)


def group(records: Iterable[Record]) -> dict[RowKey, list[Record]]:
    """The records of every row, rows in the order in which they were first seen.

    A row has the label of its first record: two suites may have called the same method otherwise.
    It has one record of a seed on a task, the last one, since another search may have found other
    settings; but of runs at the very same settings a failed one takes no done one's place. And what
    an earlier search found is no seed of what the last one did: such records are left out.
    """
    records = list(records)
    decided = by_task(records)
    rows: dict[str, dict[tuple[TaskKey, int], Record]] = {}
    last: dict[tuple[str, TaskKey], Record] = {}
    for record in records:
        task = task_key(record)
        usual = {field: values[task] for field, values in decided.items() if task in values}
        fields = {
            name: BY_TASK if usual.get(name) == value else value
            for name, value in asked(record).items()
        }
        key = json.dumps(fields, sort_keys=True)
        row = rows.setdefault(key, {})
        last[key, task] = record
        before = row.get((task, record.seed))
        if before is None or not _only_failed(record, before):
            row[task, record.seed] = record
    return {
        (next(iter(row.values())).method.label, key): [
            record for (task, _), record in row.items() if _found(record) == _found(last[key, task])
        ]
        for key, row in rows.items()
    }


def _found(record: Record) -> dict[str, object]:
    """What trials found of the record's settings; empty of one that is not tuned."""
    settings = record.method.settings | record.training
    return {name: settings.get(name) for name in record.method.tuned.get("space", ())}


def but_for_rate(key: RowKey, head_alone: bool) -> str:
    """What rows have in common that differ in the learning rate alone, labels apart.

    Where the head alone is trained its rate is the row's.
    """
    rates = RATE_FIELDS if head_alone else {"training.lr"}
    fields = {name: value for name, value in json.loads(key[1]).items() if name not in rates}
    return json.dumps(fields, sort_keys=True)


def _only_failed(record: Record, before: Record) -> bool:
    """Whether it failed where `before`, at the very same settings, came to its end."""
    alike = (record.training, record.method.settings) == (before.training, before.method.settings)
    return alike and not record.is_done and before.is_done


def labels(keys: Iterable[RowKey]) -> dict[RowKey, str]:
    """A name of its own for every row: its label, and where rows share one, what differs.

    >>> keys = [("lora", '{"training.lr": "0.001"}'), ("lora", '{"training.lr": "0.002"}')]
    >>> list(labels(keys).values())
    ['lora (lr 0.001)', 'lora (lr 0.002)']
    """
    keys = list(keys)
    names: dict[RowKey, str] = {}
    for key in keys:
        fields = {other: json.loads(other[1]) for other in keys if other[0] == key[0]}
        extra = _differing(fields[key], list(fields.values()))
        name = f"{key[0]} ({', '.join(extra)})" if extra else key[0]
        names[key] = name
    clashes = Counter(names.values())
    return {
        key: name if clashes[name] == 1 else f"{name} #{position}"
        for position, (key, name) in enumerate(names.items(), start=1)
    }


def _differing(own: dict[str, str], all_rows: list[dict[str, str]]) -> list[str]:
    """`field value` for each field on which the rows disagree, in the fields' order."""
    fields = dict.fromkeys(name for row in all_rows for name in row)
    differing = [name for name in fields if len({row.get(name) for row in all_rows}) > 1]
    if "tuned" in differing:  # what was found is told by how
        found = json.loads(own["tuned"]).get("space", ())
        differing = [name for name in differing if name.rpartition(".")[2] not in found]
    words = [
        _word(name.rpartition(".")[2], json.loads(own[name]) if name in own else "–")
        for name in [name for name in differing if name not in UNREADABLE] or differing
    ]
    return list(dict.fromkeys(words))


def _word(name: str, value: object) -> str:
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


def collapsed(record: Record) -> bool:
    """Whether the run scores no more than one constant answer: a warning of it says so."""
    return any(warning.startswith(COLLAPSED) for warning in record.warnings)


def constant_of(task: TaskPart) -> dict[str, float]:
    """The scores, by metric, of the baseline that gives one answer to all; empty if not known."""
    return next((task.baselines[name] for name in CONSTANT if name in task.baselines), {})


def known(values: Iterable[float | None]) -> list[float]:
    """The values that were measured: neither None nor NaN nor infinite.

    >>> known([1.0, None, float("nan")])
    [1.0]
    """
    return [value for value in values if value is not None and math.isfinite(value)]


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None of no values.

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
