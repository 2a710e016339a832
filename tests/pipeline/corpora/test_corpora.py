import dataclasses
import io
import json
import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpora import parquet_rows
from pipeline.corpora.corpus import Corpus
from pipeline.corpora.locate import resolve_corpus
from pipeline.corpora.reader import ImageReader, list_images
from storage.errors import CorpusError, ImageError
from storage.files import local, remote


def content(name: str) -> bytes:
    """Bytes that no other name has, of a length of their own."""
    return name.encode() * (1 + len(name) % 5)


def write_folder(root: Path, names: list[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content(name))


def write_tar(path: Path, members: list[tuple[str, bytes]], style: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=style) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0


def read_all(corpus: Corpus) -> dict[str, bytes]:
    manifest = list_images(corpus)
    with ImageReader(corpus, manifest) as reader:
        return {key: reader.read(row) for row, key in enumerate(manifest.keys)}


@pytest.fixture
def memory():
    """A remote file system that lives in memory, and counts its requests."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


class TestFolder:
    NAMES = ("a/b/x.jpg", "a/b.jpg", "a-b.jpg", "Z.JPEG", "a.png", "deep/er/still/é.WebP", "a/b/w.tiff")

    def test_lists_every_image_below_in_the_order_of_the_paths(self, tmp_path):
        write_folder(tmp_path, [*self.NAMES, "notes.txt", "a/labels.json", ".hidden.jpg", "._a.png", "__MACOSX/a.jpg"])
        write_folder(tmp_path, [".cache/a.jpg", "a/.git/b.jpg"])
        corpus = resolve_corpus(str(tmp_path))
        manifest = list_images(corpus)
        assert corpus == Corpus(name=str(tmp_path), root=str(tmp_path), kind="folder")
        assert manifest.keys == sorted(self.NAMES)
        assert manifest.sources == ()
        assert set(manifest.source) == {-1}
        assert list(manifest.size) == [len(content(name)) for name in manifest.keys]
        assert read_all(corpus) == {name: content(name) for name in self.NAMES}

    def test_the_same_files_have_the_same_fingerprint_wherever_they_lie(self, tmp_path):
        for place in ("one", "two"):
            write_folder(tmp_path / place, list(self.NAMES)[:: 1 if place == "one" else -1])
        one, two = (list_images(resolve_corpus(str(tmp_path / place))).fingerprint for place in ("one", "two"))
        assert one == two

    def test_a_relative_path_stays_as_given(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write_folder(tmp_path, ["photos/1.jpg"])
        assert resolve_corpus("photos").root == "photos"
        assert resolve_corpus("photos", str(tmp_path)).root == f"{tmp_path}/photos"
        assert read_all(resolve_corpus(".")) == {"photos/1.jpg": content("photos/1.jpg")}
        assert read_all(resolve_corpus(f"file://{tmp_path}/photos")) == {"1.jpg": content("photos/1.jpg")}

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
    def test_names_that_are_not_utf8_are_read_too(self, tmp_path):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"coffee")
        assert read_all(resolve_corpus(str(tmp_path))) == {"caf\\xe9.jpg": b"coffee"}

    def test_links_are_followed_but_neither_in_circles_nor_into_nothing(self, tmp_path, caplog):
        write_folder(tmp_path, ["photos/a.jpg", "other/b.jpg"])
        (tmp_path / "photos/linked").symlink_to(tmp_path / "other")
        (tmp_path / "photos/circle").symlink_to(tmp_path / "photos")
        (tmp_path / "photos/itself.jpg").symlink_to("itself.jpg")
        (tmp_path / "photos/gone.jpg").symlink_to("nowhere.jpg")
        assert list_images(resolve_corpus(str(tmp_path / "photos"))).keys == ["a.jpg", "linked/b.jpg"]
        assert "left out links whose target does not exist: 2 (such as gone.jpg, itself.jpg)" in caplog.text

    def test_an_empty_folder_is_an_error_that_names_the_extensions(self, tmp_path):
        write_folder(tmp_path, ["readme.txt"])
        with pytest.raises(CorpusError, match=r"no image in .*\.jpg .*\.webp"):
            resolve_corpus(str(tmp_path))

    def test_tars_beside_images_are_mentioned(self, tmp_path, caplog):
        write_folder(tmp_path, ["a.jpg"])
        write_tar(tmp_path / "b.tar", [("b.jpg", b"b")])
        assert list_images(resolve_corpus(str(tmp_path))).keys == ["a.jpg"]
        assert "*.tar" in caplog.text

    def test_a_missing_or_changed_file_is_one_bad_image_and_a_missing_corpus_stops_the_run(self, tmp_path):
        write_folder(tmp_path, ["a.jpg", "b.jpg"])
        corpus = resolve_corpus(str(tmp_path))
        with ImageReader(corpus, list_images(corpus)) as reader:
            (tmp_path / "a.jpg").write_bytes(b"a")
            (tmp_path / "b.jpg").unlink()
            with pytest.raises(ImageError, match="1 bytes where 5 were listed"):
                reader.read(0)
            with pytest.raises(ImageError, match="^no longer exists$"):
                reader.read(1)
            (tmp_path / "a.jpg").unlink()  # an unmounted disk leaves an empty folder
            with pytest.raises(CorpusError, match=rf"'b\.jpg'.* exists: no b\.jpg in {tmp_path}; .*--root"):
                reader.read(1)

    def test_a_file_that_became_a_folder_is_one_bad_image(self, tmp_path):
        write_folder(tmp_path, ["a.jpg"])
        corpus = resolve_corpus(str(tmp_path))
        manifest = list_images(corpus)
        (tmp_path / "a.jpg").unlink()
        (tmp_path / "a.jpg").mkdir()
        with ImageReader(corpus, manifest) as reader, pytest.raises(ImageError, match="cannot be read"):
            reader.read(0)


class TestResolve:
    def test_a_known_name_resolves_through_the_catalogue(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write_folder(tmp_path, ["data/imagenet/train/n01440764/n01440764_10026.JPEG"])
        corpus = resolve_corpus("imagenet")
        assert (corpus.name, corpus.root, corpus.kind) == ("imagenet", "data/imagenet/train", "folder")
        assert list_images(corpus).keys == ["n01440764/n01440764_10026.JPEG"]
        write_tar(tmp_path / "moved/n01440764.tar", [("n01440764_10026.JPEG", b"fish")])
        assert read_all(resolve_corpus("imagenet", "moved")) == {"n01440764_10026.JPEG": b"fish"}

    def test_a_missing_known_name_points_to_a_folder_of_that_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write_folder(tmp_path, ["voc/1.jpg"])
        with pytest.raises(CorpusError, match=r"or use the folder here with --corpus \./voc"):
            resolve_corpus("voc")
        assert resolve_corpus("./voc").kind == "folder"

    def test_an_unknown_word_names_the_closest_and_all_known_corpora(self):
        with pytest.raises(
            CorpusError, match=r"'imagnet' is neither .*did you mean imagenet\b.*known: imagenet, .*voc"
        ):
            resolve_corpus("imagnet")

    @pytest.mark.parametrize("path", ["no/such/folder", "no/such/x.tar", "no/such/*.tar", "no/such/x-{0..3}.tar"])
    def test_a_path_that_does_not_exist_is_an_error(self, path):
        with pytest.raises(CorpusError, match="does not exist"):
            resolve_corpus(path)

    @pytest.mark.parametrize(
        ("name", "reason"),
        [("x.tar.gz", "compressed.*unpack"), ("x.jpg", "give its folder"), ("x.mp4", "neither")],
    )
    def test_files_that_are_not_a_corpus_say_why(self, name, reason, tmp_path):
        write_folder(tmp_path, [name])
        with pytest.raises(CorpusError, match=reason):
            resolve_corpus(str(tmp_path / name))
        if name != "x.jpg":
            with pytest.raises(CorpusError, match=reason):
                resolve_corpus(str(tmp_path / "x*"))

    def test_a_folder_of_compressed_tars_says_to_unpack_them(self, tmp_path):
        write_folder(tmp_path, ["x.tar.gz"])
        with pytest.raises(CorpusError, match=r"x\.tar\.gz is compressed"):
            resolve_corpus(str(tmp_path))

    def test_a_compressed_tar_under_another_name_is_recognised(self, tmp_path):
        with tarfile.open(tmp_path / "x.tar", "w:gz"):
            pass
        with pytest.raises(CorpusError, match=r"x\.tar is compressed"):
            list_images(resolve_corpus(str(tmp_path / "x.tar")))

    def test_a_corpus_survives_json_and_pickle(self, tmp_path):
        write_tar(tmp_path / "x.tar", [("a.jpg", b"a")])
        corpus = resolve_corpus(str(tmp_path / "*.tar"))
        assert Corpus(**json.loads(json.dumps(dataclasses.asdict(corpus)))) == corpus
        assert pickle.loads(pickle.dumps(corpus)) == corpus

    @pytest.mark.parametrize(
        ("url", "text"), [("s3://bucket/x", "pip install s3fs"), ("gopher://x/y", "Protocol not known")]
    )
    def test_a_url_that_cannot_be_served_says_what_to_do(self, url, text, monkeypatch):
        monkeypatch.setitem(sys.modules, "s3fs", None)
        with pytest.raises(CorpusError, match=text):
            resolve_corpus(url)

    def test_no_module_here_needs_torch(self):
        code = (
            "import sys, pipeline.corpora.locate, pipeline.corpora.reader, pipeline.decoding.pillow; "
            "sys.exit('torch' in sys.modules)"
        )
        root = Path(local.__file__).parents[2]
        assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


class TestTars:
    @pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_reads_the_images_and_nothing_else(self, style, tmp_path):
        members = [(f"{i:03}.{kind}", content(f"{i}{kind}")) for i in range(20) for kind in ("jpg", "cls", "json")]
        if style != tarfile.USTAR_FORMAT:
            members.append(("long/" * 60 + "ü.png", b"long name"))
        members += [("empty.jpg", b""), ("._000.jpg", b"x"), ("__MACOSX/000.jpg", b"x"), ("./dot.jpg", b"dot")]
        path = write_tar(tmp_path / "x.tar", members, style)
        with tarfile.open(path, "a") as tar:
            for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
                member = tarfile.TarInfo("no image.jpg")
                member.type, member.linkname = kind, "000.jpg"
                tar.addfile(member)
        wanted = [name for name, _ in members if name.endswith((".jpg", ".png")) and not name.startswith(("._", "__"))]
        assert read_all(resolve_corpus(str(path))) == {name: dict(members)[name] for name in wanted}

    def test_shards_are_read_in_the_order_of_the_range(self, tmp_path):
        for shard in range(12):
            write_tar(tmp_path / f"s-{shard}.tar", [(f"{shard}-{i}.jpg", content(f"{shard}-{i}")) for i in range(3)])
        corpus = resolve_corpus(str(tmp_path / "s-{0..11}.tar"))
        manifest = list_images(corpus)
        assert corpus.root == str(tmp_path)
        assert manifest.sources == tuple(f"s-{shard}.tar" for shard in range(12))
        assert manifest.keys == [f"{shard}-{i}.jpg" for shard in range(12) for i in range(3)]
        assert list(manifest.source) == [shard for shard in range(12) for _ in range(3)]
        assert read_all(corpus) == {f"{s}-{i}.jpg": content(f"{s}-{i}") for s in range(12) for i in range(3)}
        assert sorted(read_all(resolve_corpus(str(tmp_path)))) == sorted(manifest.keys)
        assert resolve_corpus("s-{0..11}.tar", str(tmp_path)).root == str(tmp_path)

    def test_shards_in_folders_are_ordered_by_their_paths(self, tmp_path):
        for place in ("a/1", "a-b/2", "b/0"):
            write_tar(tmp_path / f"{place}.tar", [(f"{place[-1]}.jpg", b"x")])
        assert list_images(resolve_corpus(str(tmp_path / "*/*.tar"))).sources == ("a-b/2.tar", "a/1.tar", "b/0.tar")

    def test_sparse_members_are_left_out(self, tmp_path):
        (tmp_path / "hole.jpg").touch()
        os.truncate(tmp_path / "hole.jpg", 2**20)
        (tmp_path / "b.jpg").write_bytes(b"b")
        command = ["tar", "--sparse", "-cf", "x.tar", "hole.jpg", "b.jpg"]
        if (
            not shutil.which("tar")
            or subprocess.run(command, cwd=tmp_path, check=False, capture_output=True).returncode
        ):
            pytest.skip("needs GNU tar")
        assert read_all(resolve_corpus(str(tmp_path / "x.tar"))) == {"b.jpg": b"b"}

    def test_a_missing_shard_of_a_range_is_named(self, tmp_path):
        for shard in (0, 1, 3):
            write_tar(tmp_path / f"s-{shard}.tar", [("a.jpg", b"a")])
        with pytest.raises(CorpusError, match=r"s-2\.tar is missing .*1 of the 4"):
            list_images(resolve_corpus(str(tmp_path / "s-{0..3}.tar")))

    def test_a_name_that_looks_like_a_pattern_is_taken_literally(self, tmp_path):
        write_tar(tmp_path / "a[1]{x}.tar", [("a.jpg", b"a")])
        assert read_all(resolve_corpus(str(tmp_path / "a[1]{x}.tar"))) == {"a.jpg": b"a"}

    def test_duplicate_names_become_distinct_keys_with_their_own_bytes(self, tmp_path):
        write_tar(tmp_path / "p.tar", [("a.jpg", b"p1"), ("b.jpg", b"b"), ("a.jpg", b"p22")])
        write_tar(tmp_path / "q.tar", [("a.jpg", b"q"), ("c.jpg", b"c"), ("c.jpg", b"cc")])
        assert read_all(resolve_corpus(str(tmp_path))) == {
            "p.tar/a.jpg": b"p1",
            "b.jpg": b"b",
            "p.tar/a.jpg#2": b"p22",
            "q.tar/a.jpg": b"q",
            "c.jpg": b"c",
            "c.jpg#2": b"cc",
        }

    def test_every_truncation_lists_what_is_whole_and_never_crashes(self, tmp_path, caplog):
        members = [(f"{i}.jpg", bytes([i]) * size) for i, size in enumerate((10, 512, 700, 1500))]
        whole = write_tar(tmp_path / "whole.tar", members).read_bytes()
        ends, position = [], 0
        for _, data in members:
            ends.append(position + 512 + len(data))
            position += 512 + -(-len(data) // 512) * 512
        for cut in [*range(0, position + 1, 100), *ends, *(end - 1 for end in ends), position, position + 512]:
            (tmp_path / "cut.tar").write_bytes(whole[:cut])
            caplog.clear()
            corpus = resolve_corpus(str(tmp_path / "cut.tar"))
            expected = dict(member for member, end in zip(members, ends, strict=True) if end <= cut)
            if expected:
                assert read_all(corpus) == expected, cut
            else:
                with pytest.raises(CorpusError, match="no image"):
                    list_images(corpus)
            warned = [record for record in caplog.records if record.levelno == logging.WARNING]
            assert bool(warned) == (cut < position + 512), cut

    def test_damaged_headers_never_crash_the_listing(self, tmp_path):
        members = [(f"{'n' * (i * 40)}{i}.jpg", bytes(300)) for i in range(8)]
        whole = write_tar(tmp_path / "whole.tar", members, tarfile.PAX_FORMAT).read_bytes()
        chance = random.Random(0)
        for _ in range(300):
            damaged = bytearray(whole)
            for _ in range(chance.randrange(1, 12)):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            (tmp_path / "cut.tar").write_bytes(damaged)
            corpus = resolve_corpus(str(tmp_path / "cut.tar"))
            try:
                manifest = list_images(corpus)
            except CorpusError:
                continue
            assert (manifest.offset + manifest.size <= len(damaged)).all()

    def test_a_file_that_is_not_a_tar_is_an_error_that_names_it(self, tmp_path):
        (tmp_path / "x.tar").write_bytes(b"<html>not found</html>" * 100)
        with pytest.raises(CorpusError, match=r"x\.tar is not a tar"):
            list_images(resolve_corpus(str(tmp_path / "x.tar")))

    def test_a_tar_cut_off_after_it_was_listed_costs_only_its_images(self, tmp_path):
        path = write_tar(tmp_path / "x.tar", [("a.jpg", b"a" * 600), ("b.jpg", b"b" * 600)])
        corpus = resolve_corpus(str(path))
        manifest = list_images(corpus)
        os.truncate(path, int(manifest.offset[1]) + 10)
        with ImageReader(corpus, manifest) as reader:
            assert reader.read(0) == b"a" * 600
            with pytest.raises(ImageError, match="10 bytes where 600 were listed"):
                reader.read(1)
        path.unlink()
        with ImageReader(corpus, manifest) as reader, pytest.raises(CorpusError, match=r"no x\.tar in"):
            reader.read(0)

    def test_listing_reads_headers_and_not_data(self, tmp_path, monkeypatch):
        write_tar(tmp_path / "x.tar", [(f"{i}.jpg", bytes(2**20)) for i in range(8)])
        corpus, taken = resolve_corpus(str(tmp_path)), []

        class Counted(io.FileIO):
            def readinto(self, buffer):
                taken.append(super().readinto(buffer))
                return taken[-1]

        monkeypatch.setattr(local.LocalFiles, "open", lambda self, path: io.BufferedReader(Counted(self._path(path))))
        assert len(list_images(corpus)) == 8
        assert sum(taken) < 2**18

    def test_more_tars_than_may_be_open_are_read_by_many_threads(self, tmp_path, monkeypatch):
        monkeypatch.setattr(local, "MAX_OPEN_FILES", 3)
        for shard in range(10):
            write_tar(tmp_path / f"{shard}.tar", [(f"{shard}-{i}.jpg", content(f"{shard}-{i}")) for i in range(20)])
        corpus = resolve_corpus(str(tmp_path))
        manifest = list_images(corpus)
        rows = [row for row in range(len(manifest)) for _ in range(5)]
        random.Random(0).shuffle(rows)
        before = open_descriptors()
        with ImageReader(corpus, manifest) as reader, ThreadPoolExecutor(8) as pool:
            for row, data in zip(rows, pool.map(reader.read, rows), strict=True):
                assert data == content(manifest.keys[row][:-4])
            assert open_descriptors() <= before + 3
        assert open_descriptors() == before


class TestRemote:
    def test_folders_tars_and_parquet_are_read_as_local_ones(self, memory, tmp_path):
        names = ["a/b.jpg", "a-b.PNG", "c/d/e.webp"]
        write_folder(tmp_path / "folder", [*names, "x.txt", ".hidden/x.jpg"])
        write_tar(tmp_path / "tars/t-0.tar", [("x.jpg", b"0"), ("y.jpg", b"y")])
        write_tar(tmp_path / "tars/t-1.tar", [("x.jpg", b"1")])
        (tmp_path / "rows").mkdir()
        pq.write_table(pa.table({"image": [b"p", b"q"], "key": ["k", "l"]}), tmp_path / "rows/r.parquet")
        memory.put(str(tmp_path), "/bucket", recursive=True)
        for place in ("folder", "tars", "tars/t-{0..1}.tar", "tars/*.tar", "tars/t-0.tar", "rows", "rows/r.parquet"):
            local, remote = resolve_corpus(f"{tmp_path}/{place}"), resolve_corpus(f"memory://bucket/{place}")
            assert (remote.kind, remote.pattern) == (local.kind, local.pattern)
            assert remote.root.startswith("memory://bucket")
            assert read_all(remote) == read_all(local)
            assert list_images(remote).fingerprint == list_images(local).fingerprint
            assert list_images(resolve_corpus(place, "memory://bucket")).fingerprint == list_images(local).fingerprint

    def test_what_is_missing_is_an_error_of_the_corpus(self, memory):
        memory.pipe_file("/bucket/a.jpg", b"a")
        with pytest.raises(CorpusError, match="does not exist"):
            resolve_corpus("memory://bucket/other")
        corpus = resolve_corpus("memory://bucket")
        manifest = list_images(corpus)
        memory.rm("/bucket/a.jpg")
        with ImageReader(corpus, manifest) as reader, pytest.raises(CorpusError, match="no longer exists"):
            reader.read(0)

    def test_a_failing_network_is_an_error_of_the_corpus(self, memory, monkeypatch):
        memory.pipe_file("/bucket/a.jpg", b"a")
        corpus = resolve_corpus("memory://bucket")
        manifest = list_images(corpus)

        def fail(*args, **kwargs):
            raise RuntimeError("connection reset")

        monkeypatch.setattr(type(memory), "cat_file", fail)
        monkeypatch.setattr(type(memory), "ls", fail)
        with (
            ImageReader(corpus, manifest) as reader,
            pytest.raises(CorpusError, match="RuntimeError: connection reset"),
        ):
            reader.read(0)
        with pytest.raises(CorpusError, match="RuntimeError: connection reset"):
            list_images(corpus)

    @pytest.fixture
    def requests(self, memory, monkeypatch):
        """Sizes that were asked for, with blocks of 90 images."""
        sizes, plain = [], type(memory).cat_file

        def counted(self, path, start=None, end=None, **options):
            sizes.append(end - start)
            return plain(self, path, start=start, end=end, **options)

        monkeypatch.setattr(type(memory), "cat_file", counted)
        monkeypatch.setattr(remote, "READAHEAD", 500_000)
        monkeypatch.setattr(remote, "_NEAR", 20_000)
        return sizes

    def test_a_thread_that_lags_behind_does_not_end_reading_ahead(self, memory, tmp_path, requests):
        memory.put(str(write_tar(tmp_path / "x.tar", [(f"{i}.jpg", bytes(5000)) for i in range(80)])), "/bucket/x.tar")
        corpus = resolve_corpus("memory://bucket/x.tar")
        with ImageReader(corpus, list_images(corpus)) as reader:
            for row in (0, 2, 1, *range(3, 80)):
                reader.read(row)
        assert requests == [5000, 500_000, 5000]

    @pytest.mark.parametrize("threads", [1, 4])
    def test_reading_in_order_needs_few_requests_and_random_reads_fetch_little(
        self, memory, tmp_path, requests, threads
    ):
        members = [(f"{i}.jpg", bytes([i % 251]) * 5000) for i in range(400)]
        memory.put(str(write_tar(tmp_path / "x.tar", members)), "/bucket/x.tar")
        corpus = resolve_corpus("memory://bucket/x.tar")
        manifest, rows = list_images(corpus), list(range(400))
        with ImageReader(corpus, manifest) as reader, ThreadPoolExecutor(threads) as pool:
            assert list(pool.map(reader.read, rows)) == [data for _, data in members]
        assert len(requests) < 100  # 6, but threads may lag
        requests.clear()
        random.Random(0).shuffle(rows)
        with ImageReader(corpus, manifest) as reader, ThreadPoolExecutor(threads) as pool:
            assert list(pool.map(reader.read, rows)) == [members[row][1] for row in rows]
        assert sum(size <= 5000 for size in requests) > 0.9 * len(requests)


class TestParquet:
    IMAGES = tuple(content(f"image {i}") for i in range(50))

    def write(self, path: Path, columns: dict, rows_per_group: int = 8) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
        return path

    @pytest.mark.parametrize("column", ["image", "bytes", "jpg", "png", "img", "JPG", "only_one"])
    def test_finds_the_column_of_bytes(self, column, tmp_path):
        self.write(tmp_path / "a.parquet", {"label": list(range(50)), column: list(self.IMAGES)})
        assert list(read_all(resolve_corpus(str(tmp_path))).values()) == list(self.IMAGES)

    def test_reads_what_hugging_face_datasets_write(self, tmp_path):
        images = [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(self.IMAGES)]
        images[3]["bytes"] = None
        corpus = resolve_corpus(str(self.write(tmp_path / "a.parquet", {"image": images, "label": [1] * 50})))
        manifest = list_images(corpus)
        assert manifest.keys == [f"{i}.jpg" for i in range(50)]
        with ImageReader(corpus, manifest) as reader:
            assert [reader.read(row) for row in (0, 49, 7)] == [self.IMAGES[row] for row in (0, 49, 7)]
            with pytest.raises(ImageError, match="no image bytes"):
                reader.read(3)

    @pytest.mark.parametrize(
        ("column", "values", "used"),
        [
            ("key", [f"k{i}" for i in range(50)], True),
            ("__key__", [f"k{i}" for i in range(50)], True),
            ("id", list(range(100, 150)), True),
            ("file_name", ["same"] * 50, False),
            ("path", [None, *(f"k{i}" for i in range(49))], False),
            ("caption", [f"k{i}" for i in range(50)], False),
        ],
    )
    def test_a_key_column_is_used_where_it_is_whole_and_unique(self, column, values, used, tmp_path):
        self.write(tmp_path / "a.parquet", {column: values, "image": list(self.IMAGES)})
        keys = list_images(resolve_corpus(str(tmp_path))).keys
        assert keys == ([str(value) for value in values] if used else [f"a.parquet:{row}" for row in range(50)])

    def test_keys_that_repeat_in_another_file_are_replaced_in_all(self, tmp_path):
        for name in ("a", "b"):
            self.write(
                tmp_path / f"{name}.parquet", {"key": ["x", "y"], "image": [f"{name}0".encode(), f"{name}1".encode()]}
            )
        assert read_all(resolve_corpus(str(tmp_path / "{a,b}.parquet"))) == {
            "a.parquet:0": b"a0",
            "a.parquet:1": b"a1",
            "b.parquet:0": b"b0",
            "b.parquet:1": b"b1",
        }

    def test_reading_in_order_reads_each_row_group_once_even_by_threads(self, tmp_path, monkeypatch):
        self.write(tmp_path / "a.parquet", {"image": list(self.IMAGES)})
        self.write(tmp_path / "b.parquet", {"image": list(self.IMAGES)[::-1]})
        corpus, groups, plain = resolve_corpus(str(tmp_path)), [], parquet_rows._read_group

        def counted(file, group, column, most):
            groups.append(group)
            return plain(file, group, column, most)

        monkeypatch.setattr(parquet_rows, "_read_group", counted)
        with ImageReader(corpus, list_images(corpus)) as reader, ThreadPoolExecutor(4) as pool:
            assert list(pool.map(reader.read, range(100))) == [*self.IMAGES, *self.IMAGES[::-1]]
        assert sorted(groups) == sorted([*range(7), *range(7)])

    def test_the_cache_is_bounded(self, tmp_path, monkeypatch):
        monkeypatch.setattr(parquet_rows, "PARQUET_CACHE_BYTES", 1)
        self.write(tmp_path / "a.parquet", {"image": list(self.IMAGES)})
        corpus = resolve_corpus(str(tmp_path))
        with ImageReader(corpus, list_images(corpus)) as reader:
            assert [reader.read(row) for row in range(49, -1, -1)] == list(self.IMAGES[::-1])
            assert len(reader._images._rows) == 1

    def test_files_without_images_or_not_whole_are_errors_that_name_them(self, tmp_path):
        path = self.write(tmp_path / "a.parquet", {"text": ["x"], "image": ["a path"]})
        with pytest.raises(CorpusError, match=r"a\.parquet has no column of image bytes.*text \(string\), image"):
            list_images(resolve_corpus(str(path)))
        self.write(path, {"image": list(self.IMAGES)})
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(CorpusError, match=r"a\.parquet is not a complete Parquet file"):
            list_images(resolve_corpus(str(path)))

    def test_a_damaged_row_group_costs_only_its_images(self, tmp_path):
        noise = np.random.default_rng(0)
        images = [noise.bytes(1000) for _ in range(16)]
        path = self.write(tmp_path / "a.parquet", {"image": images})
        corpus = resolve_corpus(str(path))
        manifest = list_images(corpus)
        data = bytearray(path.read_bytes())
        where = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
        data[where : where + 200] = bytes(200)
        path.write_bytes(data)
        with ImageReader(corpus, manifest) as reader:
            assert reader.read(0) == images[0]
            with pytest.raises(ImageError, match=r"row group 1 .* is damaged"):
                reader.read(8)


def test_listing_keeps_no_object_per_image_but_its_key(tmp_path):
    """Memory per row, measured: the key, its slot in the list, and 20 bytes of arrays."""
    import tracemalloc

    write_tar(tmp_path / "x.tar", [(f"{i:08}.jpg", b"x") for i in range(3000)])
    corpus = resolve_corpus(str(tmp_path))
    list_images(corpus)
    tracemalloc.start()
    manifest = list_images(corpus)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(manifest) == 3000
    key = sys.getsizeof(manifest.keys[0])
    assert kept / 3000 < key + 8 + 20 + 30
    assert peak / 3000 < 4 * (key + 28) + 100


def test_threads_started_at_once_read_every_kind(tmp_path):
    write_folder(tmp_path / "f", [f"{i}.jpg" for i in range(30)])
    corpus = resolve_corpus(str(tmp_path / "f"))
    manifest, seen = list_images(corpus), {}
    with ImageReader(corpus, manifest) as reader:
        threads = [
            threading.Thread(target=lambda start=start: seen.update({r: reader.read(r) for r in range(start, 30, 3)}))
            for start in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == {row: content(key) for row, key in enumerate(manifest.keys)}
