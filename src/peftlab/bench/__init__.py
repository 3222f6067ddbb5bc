"""A suite becomes cells, each a training in a process of its own, and their records.

suite.py, grid.py, cell.py   what is asked for, and what it means: every cell, all of it decided
run.py, execute.py           the cells one after the other; the worker that each runs in
process.py                   one cell, from the model's loading to its scores
outcome.py, doubts.py        what comes out of it, and what a score hides
resume.py, retention.py      what is done already, and which adapters stay
tune.py, search.py, race.py  trials that find settings, dev unseen
speed.py                     short cells in turns
cost.py, times.py, foresee.py   what cells will take, before they do
"""
