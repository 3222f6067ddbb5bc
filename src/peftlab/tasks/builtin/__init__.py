"""The built-in synthetic tasks. Adding one is adding a file here that defines `TASK`."""
