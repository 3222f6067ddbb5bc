"""What a run leaves: its record, the folder it lies in, rows of a table. Never imports torch."""
