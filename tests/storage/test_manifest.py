import hashlib
import os
from dataclasses import replace

import numpy as np
import pytest

from storage.errors import CorpusError, SettingsError
from storage.keys import distinct_keys, key_to_path, path_to_key
from storage.manifest import Manifest


def make(keys=("a.jpg", "b.jpg", "c.jpg"), **changes):
    count = len(keys)
    columns = {
        "keys": list(keys),
        "sources": ("x.tar",),
        "source": np.zeros(count, np.int32),
        "offset": np.arange(count, dtype=np.int64) * 512,
        "size": np.full(count, 7, np.int64),
    }
    return Manifest(**{**columns, **changes})


def test_head_keeps_the_first_rows_and_never_adds_any():
    manifest = make()
    head = manifest.head(2)
    assert (head.keys, list(head.offset), len(head)) == (["a.jpg", "b.jpg"], [0, 512], 2)
    assert len(manifest.head(99)) == 3
    with pytest.raises(SettingsError, match="limit"):
        manifest.head(0)


def test_fingerprint_changes_with_everything_that_fixes_a_row_to_its_image():
    base = make()
    offset, size = base.offset.copy(), base.size.copy()
    offset[1] += 1
    size[2] += 1
    others = [
        make(keys=("a.jpg", "c.jpg", "b.jpg")),
        make(keys=("a.jp", "gb.jpg", "c.jpg")),
        replace(base, sources=("y.tar",)),
        replace(base, source=np.array([0, 0, -1], np.int32)),
        replace(base, offset=offset),
        replace(base, size=size),
        base.head(2),
    ]
    prints = [manifest.fingerprint for manifest in (base, *others)]
    assert len(set(prints)) == len(prints)
    assert make().fingerprint == base.fingerprint


def test_fingerprint_is_the_same_on_every_machine_and_in_every_release():
    # Spelled out independently: lengths, then text, for sources and keys; then the columns, little endian.
    digest = hashlib.sha256(b"dfss manifest 1\n")
    for strings in (["x.tar"], ["ä.jpg", "b"]):
        digest.update(len(strings).to_bytes(8, "little"))
        digest.update(b"".join(len(text).to_bytes(8, "little") for text in strings) + "".join(strings).encode())
    for numbers, width in (([0, 0], 4), ([0, 512], 8), ([7, 7], 8)):
        digest.update(b"".join(number.to_bytes(width, "little") for number in numbers))
    assert make(keys=("ä.jpg", "b")).fingerprint == digest.hexdigest()


def test_duplicate_keys_and_uneven_columns_are_errors():
    with pytest.raises(CorpusError, match=r"'a\.jpg' occurs 2 times"):
        make(keys=("a.jpg", "b.jpg", "a.jpg"))
    with pytest.raises(CorpusError, match="disagree in length"):
        make(size=np.zeros(2, np.int64))


@pytest.mark.parametrize(
    ("names", "source", "expected"),
    [
        (["a", "b"], [0, 1], ["a", "b"]),
        (["a", "b", "a"], [0, 0, 1], ["p/a", "b", "q/a"]),
        (["a", "a", "a"], [0, 0, 0], ["a", "a#2", "a#3"]),
        (["a", "a", "a"], [0, 0, 1], ["p/a", "p/a#2", "q/a"]),
        (["a", "a#2", "a"], [0, 0, 0], ["a", "a#2", "a#3"]),
        (["p/a", "a", "a"], [0, 0, 1], ["p/a", "p/a#2", "q/a"]),
    ],
    ids=["unique", "two sources", "one source", "both", "suffix taken", "prefix taken"],
)
def test_repeated_names_become_distinct_keys(names, source, expected):
    assert distinct_keys(names, source, ["p", "q"]) == expected


def test_distinct_keys_never_merge_whatever_the_names():
    random = np.random.default_rng(0)
    for _ in range(200):
        names = [str(name) for name in random.choice(["a", "a#2", "a#3", "p/a", "p/a#2", "q/a"], 12)]
        source = np.sort(random.integers(0, 2, 12))
        keys = distinct_keys(names, source, ["p", "q"])
        assert len(set(keys)) == 12
        assert keys == distinct_keys(names, source, ["p", "q"])
        for name, key in zip(names, keys, strict=True):
            assert names.count(name) > 1 or key == name


@pytest.mark.parametrize("raw", [b"a/b.jpg", "ä/猫.jpg".encode(), b"caf\xe9.jpg", b"a\\xe9.jpg", b"back\\slash.jpg"])
def test_every_path_has_a_key_that_can_be_stored_and_leads_back(raw):
    path = raw.decode("utf-8", "surrogateescape")
    key = path_to_key(path)
    assert key.encode()  # valid Unicode
    assert key_to_path(key) == path
    assert os.fsencode(key_to_path(key)) == raw


def test_escaped_paths_do_not_collide_with_literal_ones():
    assert path_to_key("caf\udce9.jpg") != path_to_key("caf\\xe9.jpg")
    assert path_to_key("photos/plain name.jpg") == "photos/plain name.jpg"
