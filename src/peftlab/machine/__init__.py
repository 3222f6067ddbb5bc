"""The machine: what it is, how busy it is, and how many threads that leaves."""
