"""One writer for each output: others are refused, or wait and say so."""

import logging
import threading
from pathlib import Path

import pytest

from storage.errors import StoreError
from storage.files.claim import exclusive


def test_a_second_writer_is_refused_or_waits_until_the_first_has_ended_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="storage")
    path, events = Path("answers.zarr"), []
    held, waiting = threading.Event(), threading.Event()

    def first() -> None:
        with exclusive(path, wait=True):
            held.set()
            waiting.wait(10)
            events.append("first ends")

    thread = threading.Thread(target=first)
    thread.start()
    held.wait(10)
    with pytest.raises(StoreError, match=r"another run is writing answers\.zarr; wait for it to end"), exclusive(path):
        events.append("never")
    assert not caplog.records
    threading.Timer(0.2, waiting.set).start()
    with exclusive(path, wait=True):
        events.append("second begins")
    thread.join()
    assert events == ["first ends", "second begins"]
    assert [record.message for record in caplog.records] == [
        "another run is writing answers.zarr; waiting for it to end"
    ]


def test_a_claim_ends_with_its_block_whatever_happens_there() -> None:
    with pytest.raises(KeyError), exclusive(Path("x")):
        raise KeyError
    with exclusive(Path("x")):
        pass
