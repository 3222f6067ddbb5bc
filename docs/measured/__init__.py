"""Tables of docs/ and README, made from results/; a table says what is missing.

text       how scores, differences and rates are typeset
speed      speed and memory beside HF PEFT: README's table, and an older one in engine.md

which.md
tuned      all methods tuned alike
seeds      LoRA beside full fine-tuning, paired by seed

rates.md
protocol   every method at four rates

reproduction.md
runs       the records and verdicts of each part and task
parts      what ran, and where
scores     table 1, every task, figures, the other methods
distance   LoRA's distance on CoLA, by protocol and by rate
claims     every claim of the founding report, and whether the records hold it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from measured import claims, distance, parts, protocol, scores, seeds, speed, tuned

# by page, and there by the mark of a table's place
BLOCKS: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "which.md": {
        "tuned": tuned.tuned_table,
        "seeds": seeds.seeds_table,
    },
    "rates.md": {"protocol": protocol.protocol_tables},
    "engine.md": {"older": speed.older_table},
    "reproduction.md": {
        "plan": parts.plan_table,
        "machine": parts.machine_line,
        "table": scores.scores_table,
        "tasks": scores.tasks_table,
        "figures": scores.figures,
        "gap": distance.gap_table,
        "rates": distance.rates_table,
        "claims": claims.claims_table,
        "beside": claims.beside_table,
        "others": scores.others_table,
    },
    "../README.md": {
        "table": lambda: scores.scores_table("docs/methods"),
        "speed": speed.speed_table,
    },
}
