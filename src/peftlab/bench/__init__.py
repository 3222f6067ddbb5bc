"""A suite becomes cells, each a training in a process of its own, and their records.

suite.py, grid.py, cell.py   the request, checked; the grid it resolves to; one cell of the grid
run.py, execute.py, worker.py   run the cells one after the other, each in a process of its own
process.py, tokens.py        one cell, from loading the model to its answers; a task's tokens
own_method.py, recipe.py     a user's own method, sent to a worker; published recipes
outcome.py, score_warnings.py   a cell's record and files; what its score hides
resume.py, retention.py      which cells are done already; which adapters stay on disk
tune.py, search.py, race.py  trials that find settings without looking at dev
speed.py, short.py           speed from short cells that take turns; short tasks
cost.py, times.py, foresee.py   predicted memory and time of cells, before they run
"""
