"""What Python calls, and the command line with it: one file a verb, beginning with request.py."""
