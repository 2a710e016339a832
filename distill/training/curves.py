"""Figures by step, as dvclive writes and DVC plots them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from storage.files.publish import publish


@contextmanager
def curve_log(folder: Path, *, step: int) -> Iterator[Any]:
    """A dvclive log of figures by step, to be continued at ``step``: what a killed run logged after it is forgotten."""
    from dvclive.live import Live  # half a second to import

    class Curves(Live):
        """Live, but it stays out of the user's folder: no ``dvc init``, no git commit needed, no experiment saved."""

        def _init_dvc(self) -> None:
            self._dvc_file = "dvc.yaml"

    for table in folder.glob("plots/metrics/**/*.tsv"):
        lines = table.read_text().splitlines(keepends=True)
        kept = [line for line in lines[1:] if line.endswith("\n") and int(line.split("\t")[0]) <= step]
        with publish(table) as partial:
            partial.write_text("".join([*lines[:1], *kept]))
    with Curves(dir=str(folder), resume=step > 0, report=None, save_dvc_exp=False, dvcyaml=None) as live:
        yield live
    (folder / "metrics.json").unlink()  # the run's own metrics.json says more
