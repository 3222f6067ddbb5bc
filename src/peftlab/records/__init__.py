"""Records of runs, their folder, the rows of a table, and statistics. Never imports torch.

record.py, store.py           one cell's record; the folder of a comparison
rows.py, table.py             which records are one row; the runs of every row on every task
lock.py                       one writing command at a time
predictions.py, scored_run.py a run's answers on dev; its score and each example's influence on it
influence.py, crossed.py      an example's influence on a metric; intervals over seeds and examples
own.py, pairs.py, across.py   a row's score; the difference of two rows; rows over all tasks
noise.py                      how far runs of the same row differ
costs.py, conditions.py       speed, memory and time; which runs may be compared by them
verdicts.py, recommend.py     all statistics of a comparison; which row to take
sides.py, published.py        several folders side by side; published scores beside ours
trials.py, now.py             the trials of tuning; the cell that is running
"""
