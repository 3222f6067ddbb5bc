"""The tables of docs/reproduction.md, from results/reproduction: what is missing is said so.

read      the records and verdicts of each part and task
text      scores and differences as they are typeset
scores    the parts, table 1, every task, figures, LoRA's distance by protocol and rate, the others
claims    every claim of the founding report, and what it rests on
"""

from __future__ import annotations

from collections.abc import Callable

from reproduced import claims, scores

BLOCKS: dict[str, Callable[[], str]] = {  # by the mark in the page that a table stands at
    "plan": scores.plan_table,
    "machine": scores.machine_line,
    "table": scores.scores_table,
    "tasks": scores.tasks_table,
    "figures": scores.figures,
    "gap": scores.gap_table,
    "rates": scores.rates_table,
    "claims": claims.claims_table,
    "beside": claims.beside_table,
    "others": scores.others_table,
}
