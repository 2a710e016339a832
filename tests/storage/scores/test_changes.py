"""A stored manifest, compared with what the corpus holds now."""

from collections.abc import Sequence

import numpy as np

from storage.manifest import GONE, Manifest
from storage.scores.changes import compare

Image = tuple[str, str, int, int]
"""Key, source ("" for a file of its own), offset, size."""


def manifest(images: Sequence[Image]) -> Manifest:
    sources = tuple(dict.fromkeys(source for _, source, _, _ in images if source))
    return Manifest(
        keys=[key for key, _, _, _ in images],
        sources=sources,
        source=np.array([sources.index(source) if source else -1 for _, source, _, _ in images], np.int32),
        offset=np.array([offset for _, _, offset, _ in images], np.int64),
        size=np.array([size for _, _, _, size in images], np.int64),
    )


def images(found: Manifest) -> list[Image]:
    return [
        (key, found.sources[source] if source >= 0 else "", int(offset), int(size))
        for key, source, offset, size in zip(found.keys, found.source, found.offset, found.size, strict=True)
    ]


FOLDER = [("a", "", 0, 5), ("b", "", 0, 6), ("c", "", 0, 7)]
TARS = [("a", "x.tar", 512, 5), ("b", "x.tar", 1536, 6), ("c", "y.tar", 512, 7)]


def test_a_corpus_that_has_not_changed_has_no_changes() -> None:
    for listing in (FOLDER, TARS):
        changes = compare(manifest(listing), manifest(listing))
        assert (len(changes.gone), len(changes.replaced), list(changes.new), changes.absent) == (0, 0, [], 0)
        assert changes.manifest.fingerprint == manifest(listing).fingerprint


def test_what_is_gone_keeps_its_row_and_what_is_new_gets_none() -> None:
    changes = compare(manifest(FOLDER), manifest([("a", "", 0, 5), ("aa", "", 0, 1), ("c", "", 0, 7)]))
    assert (list(changes.gone), list(changes.new), changes.absent) == ([1], ["aa"], 1)
    assert images(changes.manifest) == [("a", "", 0, 5), ("b", "", GONE, -1), ("c", "", 0, 7)]


def test_another_size_is_another_image_unless_a_size_is_unknown() -> None:
    now = [("a", "", 0, 9), ("b", "", 0, -1), ("c", "", 0, 7)]
    assert list(compare(manifest(FOLDER), manifest(now)).replaced) == [0]
    assert list(compare(manifest(now), manifest(FOLDER)).replaced) == [0]


def test_an_image_that_comes_back_is_scored_and_one_that_stays_away_is_not_told_again() -> None:
    gone = compare(manifest(FOLDER), manifest(FOLDER[:2])).manifest
    still = compare(gone, manifest(FOLDER[:2]))
    assert (list(still.gone), list(still.replaced), still.absent) == ([], [], 1)
    assert still.manifest.fingerprint == gone.fingerprint
    back = compare(gone, manifest(FOLDER))
    assert (list(back.replaced), back.absent) == ([2], 0)
    assert back.manifest.fingerprint == manifest(FOLDER).fingerprint


def test_tars_that_were_packed_anew_are_followed_to_the_new_places() -> None:
    now = [("c", "all.tar", 512, 7), ("a", "all.tar", 1536, 5), ("b", "all.tar", 2560, 8), ("d", "z.tar", 512, 1)]
    changes = compare(manifest(TARS), manifest(now))
    assert [images(changes.manifest)[row] for row in range(3)] == [now[1], now[2], now[0]]
    assert (list(changes.gone), list(changes.replaced), list(changes.new)) == ([], [1], ["d"])


def test_keys_that_changed_because_another_file_has_the_same_names_are_known_by_their_places() -> None:
    now = [("x.tar/a", "x.tar", 512, 5), ("b", "x.tar", 1536, 6), ("c", "y.tar", 512, 7), ("z.tar/a", "z.tar", 512, 5)]
    changes = compare(manifest(TARS), manifest(now))
    assert images(changes.manifest) == TARS
    assert (list(changes.gone), list(changes.replaced), list(changes.new)) == ([], [], ["z.tar/a"])
