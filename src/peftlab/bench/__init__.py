"""A suite becomes cells, each a training in a process of its own, and their records.

suite.py, grid.py, cell.py   what is asked for, and what it means: every cell, all of it decided
run.py, execute.py, worker.py   the cells one after the other; the process that each runs in
process.py, tokens.py        one cell, from the model's loading to its answers; a task's tokens
own_method.py, recipe.py     a method of somebody's own, sent to a worker; a paper's suites
outcome.py, score_warnings.py        what comes out of it, and what a score hides
resume.py, retention.py      what is done already, and which adapters stay
tune.py, search.py, race.py  trials that find settings, dev unseen
speed.py, short.py           short cells in turns, and the tasks that they are of
cost.py, times.py, foresee.py   what cells will take, before they do
"""
