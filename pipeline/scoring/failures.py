"""The list of all images that have no score: a tab-separated table of key, status and error."""

import csv
from pathlib import Path

from storage.files.publish import publish
from storage.scores.schema import STATUS_NAMES
from storage.scores.store import ScoreStore


def write_failures(store: ScoreStore, path: Path) -> None:
    """Write every unreadable and rejected row of a store, in the order of the rows; a header alone if there is none."""
    keys, status = store.column("key"), store.status()
    with publish(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["key", "status", "error"])
        table.writerows([keys[row], STATUS_NAMES[status[row]], text] for row, text in store.errors().items())
