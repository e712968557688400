"""Turns experiment files into runs, runs into records, and records into tables and figures."""
