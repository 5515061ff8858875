"""Records: which choices won, kept as lines of JSON that a review can read, and found again.

`record` is one line, `store` and `upkeep` keep files of them, `lookup` finds the ones for a call.
"""

from dcn_tvm.records.lookup import Found, find, forget
from dcn_tvm.records.nearness import FAR, Point, distance, locate
from dcn_tvm.records.record import FORMAT, NewerRecordError, Record, RecordError
from dcn_tvm.records.store import (
    Damage,
    Line,
    Summary,
    append,
    file_of,
    files,
    read,
    rewrite,
    shipped_root,
    user_root,
)
from dcn_tvm.records.upkeep import merge, prune

__all__ = [
    "FAR",
    "FORMAT",
    "Damage",
    "Found",
    "Line",
    "NewerRecordError",
    "Point",
    "Record",
    "RecordError",
    "Summary",
    "append",
    "distance",
    "file_of",
    "files",
    "find",
    "forget",
    "locate",
    "merge",
    "prune",
    "read",
    "rewrite",
    "shipped_root",
    "user_root",
]
