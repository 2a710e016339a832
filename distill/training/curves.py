"""Figures by step, which dvclive writes and DVC plots."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from storage.files.publish import publish

Log = Callable[[int, Mapping[str, float]], None]
"""A function that logs the figures of a step."""


@contextmanager
def curve_log(folder: Path, *, step: int) -> Iterator[Log]:
    """Open a log of figures by step that continues at ``step``. Figures that a killed run logged later are dropped."""
    from dvclive.live import Live  # half a second to import

    class Curves(Live):
        """Live without ``dvc init``, without a git commit and without a saved experiment in the user's folder."""

        def _init_dvc(self) -> None:
            self._dvc_file = "dvc.yaml"

        def post_data_to_studio(self) -> None:
            """Send nothing anywhere: Live would start a thread for it, which never ends."""

    for table in folder.glob("plots/metrics/**/*.tsv"):
        lines = table.read_text().splitlines(keepends=True)
        kept = [line for line in lines[1:] if line.endswith("\n") and int(line.split("\t")[0]) <= step]
        with publish(table) as partial:
            partial.write_text("".join([*lines[:1], *kept]))
    with Curves(dir=str(folder), resume=step > 0, report=None, save_dvc_exp=False, dvcyaml=None) as live:

        def log(done: int, figures: Mapping[str, float]) -> None:
            live.step = done
            for name, value in figures.items():
                live.log_metric(name, value)

        yield log
    (folder / "metrics.json").unlink()  # the run's own metrics.json holds more
