"""Figures by step, which dvclive writes and DVC plots.

dvclive is imported here and not where it is used: its import calls colorama, which would keep the stdout of a progress
bar that is open then, and write ``[0m`` into it at the end of the process.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dvclive.live import Live

from storage.files.publish import publish

OF_A_STEP = ("loss", "lr")
"""The figures that a step gives; all others are those of an evaluation."""
Log = Callable[[int, Mapping[str, float]], None]
"""A function that logs the figures of a step."""


@contextmanager
def curve_log(folder: Path, *, step: int) -> Iterator[Log]:
    """Open a log of figures by step that continues at ``step``. Figures that a killed run logged later are dropped.

    Those of an evaluation at ``step`` are dropped too, because the evaluation is repeated.
    """

    class Curves(Live):
        """Live without ``dvc init``, without a git commit and without a saved experiment in the user's folder."""

        def _init_dvc(self) -> None:
            self._dvc_file = "dvc.yaml"

        def post_data_to_studio(self) -> None:
            """Send nothing anywhere: Live would start a thread for it, which never ends."""

    for table in folder.glob("plots/metrics/**/*.tsv"):
        lines = table.read_text().splitlines(keepends=True)
        last = step if table.stem in OF_A_STEP else step - 1
        kept = [line for line in lines[1:] if line.endswith("\n") and int(line.split("\t")[0]) <= last]
        with publish(table) as partial:
            partial.write_text("".join([*lines[:1], *kept]))
    with Curves(dir=str(folder), resume=step > 0, report=None, save_dvc_exp=False, dvcyaml=None) as live:

        def log(done: int, figures: Mapping[str, float]) -> None:
            live.step = done
            for name, value in figures.items():
                live.log_metric(name, value)

        yield log
    (folder / "metrics.json").unlink()  # the run's own metrics.json holds more
