"""An experiment is a file, a run of it a command, and what came out a record."""
