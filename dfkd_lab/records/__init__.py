"""Keeps measured results: writes and reads records, and says what follows from several runs."""

from .paper import paper_table
from .provenance import described, environment, peak_memory
from .records import (
    RECORDS,
    Record,
    check_record,
    read_records,
    read_variants,
    record_names,
    record_path,
    write_record,
)
from .statistics import (
    Gaps,
    Summary,
    bootstrap_interval,
    claims,
    holm,
    paired,
    shared_teachers,
    spread,
    summarise,
    t_interval,
)

__all__ = [
    "RECORDS",
    "Gaps",
    "Record",
    "Summary",
    "bootstrap_interval",
    "check_record",
    "claims",
    "described",
    "environment",
    "holm",
    "paired",
    "paper_table",
    "peak_memory",
    "read_records",
    "read_variants",
    "record_names",
    "record_path",
    "shared_teachers",
    "spread",
    "summarise",
    "t_interval",
    "write_record",
]
