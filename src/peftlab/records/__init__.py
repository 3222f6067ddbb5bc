"""What a run leaves: its record, the folder it lies in, rows of a table. Never imports torch.

record.py, store.py           one cell's record; the folder of a comparison
rows.py, table.py             which records are one row; the runs of every row on every task
predictions.py, scored_run.py what a run answered; what each example adds to its score
influence.py, crossed.py      an example's part in a metric; intervals over seeds and examples
own.py, pairs.py, across.py   of a row's score; of two rows' difference; over tasks
noise.py                      how far a row differs from itself
costs.py, conditions.py       speed, memory and time, and where they may be compared
verdicts.py, recommend.py     all of that of a folder; which row to take
sides.py, published.py        several folders beside each other; published numbers beside ours
trials.py, now.py             what tuning tried; what runs at the moment
"""
