"""Batches of decoded images."""

import threading
import time
from collections.abc import Container

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.decoding.batches import BATCHES_AHEAD, load_batches
from storage.errors import CorpusError, ImageError, RejectedImageError
from storage.scores.schema import REJECTED, UNREADABLE


class FakeReader:
    """Row number as bytes; remembers what was asked for, and hangs at some rows."""

    def __init__(self, hangs: Container[int] = ()) -> None:
        self.asked: list[int] = []
        self.given_up: list[int] = []
        self.hangs, self.released = hangs, threading.Event()
        self.lock = threading.Lock()

    def read(self, row: int) -> bytes:
        with self.lock:
            self.asked.append(row)
        time.sleep(0.001 * (row % 3))  # threads end in another order than they began
        if row == 99:
            raise CorpusError("the corpus has gone")
        if row in self.hangs:
            self.released.wait()
        return str(row).encode()

    def give_up(self, row: int) -> None:
        self.given_up.append(row)


def decode(data: bytes) -> NDArray[np.uint8]:
    row = int(data)
    if row % 7 == 3:
        raise ImageError("broken")
    if row % 7 == 5:
        raise RejectedImageError("too small")
    return np.full((2, 3, 3), row, np.uint8)


@pytest.mark.parametrize("workers", [1, 4])
def test_batches_come_in_order_never_cross_a_unit_and_tell_failures_apart(workers: int) -> None:
    units = [range(10, 17), range(20, 24)]
    batches = list(load_batches(FakeReader(), decode, units, batch_size=3, workers=workers))
    assert [batch.rows for batch in batches] == [
        range(10, 13), range(13, 16), range(16, 17), range(20, 23), range(23, 24),
    ]  # fmt: skip
    for batch in batches:
        assert sorted([*batch.good, *batch.failures]) == list(batch.rows)
        assert list(batch.images_NHW3[:, 0, 0, 0]) == batch.good
        for row, failure in batch.failures.items():
            assert failure.status == (UNREADABLE if row % 7 == 3 else REJECTED)


def test_only_a_few_batches_are_ever_in_memory() -> None:
    reader = FakeReader()
    batches = load_batches(reader, decode, [range(0, 90)], batch_size=2, workers=2)
    next(batches)
    time.sleep(0.1)
    assert len(reader.asked) <= 2 * (BATCHES_AHEAD + 1)
    batches.close()  # type: ignore[attr-defined]


def test_a_corpus_that_no_longer_exists_ends_the_run() -> None:
    with pytest.raises(CorpusError, match="has gone"):
        list(load_batches(FakeReader(), decode, [range(98, 100)], batch_size=1, workers=2))


def test_a_reader_that_hangs_is_given_up_and_counted() -> None:
    reader = FakeReader(hangs={4, 9})
    batches = list(load_batches(reader, decode, [range(0, 14)], batch_size=4, workers=2, patience=0.3))
    reader.released.set()
    failures = {row: failure for batch in batches for row, failure in batch.failures.items()}
    assert {row for row in failures if "given up" in failures[row].error} == {4, 9} == set(reader.given_up)
    assert failures[4].status == UNREADABLE
    assert failures[4].error == "given up: reading it took more than 0.3 seconds"
    assert [row for batch in batches for row in batch.good] == [0, 1, 2, 6, 7, 8, 11, 13]


def test_a_decoder_that_hangs_is_given_up_and_its_file_is_not() -> None:
    reader, released = FakeReader(), threading.Event()

    def hanging(data: bytes) -> NDArray[np.uint8]:
        if data == b"1":
            released.wait()
        return decode(data)

    batches = list(load_batches(reader, hanging, [range(0, 3)], batch_size=4, workers=1, patience=0.3))
    released.set()
    assert batches[0].failures[1].error == "given up: decoding it took more than 0.3 seconds"
    assert batches[0].good == [0, 2]
    assert reader.given_up == []


def test_a_place_where_everything_hangs_ends_the_run() -> None:
    reader = FakeReader(hangs=range(100))
    with pytest.raises(CorpusError, match="8 images in a row did not come within 0.1 seconds"):
        list(load_batches(reader, decode, [range(0, 50)], batch_size=4, workers=2, patience=0.1))
    reader.released.set()
