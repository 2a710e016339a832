"""Time and memory are bounded for every file of a corpus, and a fault costs what it damages and no more."""

import errno
import functools
import http.server
import io
import os
import re
import resource
import struct
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpora import parquet_rows, reader, tars
from pipeline.corpora.locate import resolve_corpus
from pipeline.corpora.reader import ImageReader, list_images
from storage.errors import CorpusError, ImageError
from storage.files.local import LocalFiles

END = bytes(1024)


def keys_of(place: Path) -> list[str]:
    return list_images(resolve_corpus(str(place))).keys


def outcomes(place: Path) -> dict[str, str]:
    """What becomes of each image: its length, or why it could not be read."""
    corpus, found = resolve_corpus(str(place)), {}
    manifest = list_images(corpus)
    with ImageReader(corpus, manifest) as images:
        for row, key in enumerate(manifest.keys):
            try:
                found[key] = str(len(images.read(row)))
            except ImageError as error:
                found[key] = str(error)
    return found


@contextmanager
def memory_of(mebibytes: int) -> Iterator[None]:
    """Let this process take no more memory than it has and so much."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + mebibytes * 2**20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """A bound that is far from what is measured, for what would otherwise take minutes or never end."""
    start = time.perf_counter()
    yield
    assert time.perf_counter() - start < seconds


class TestFolders:
    def test_crossed_links_show_each_image_once(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "x.jpg").write_bytes(b"x")
            for number in range(4):
                (tmp_path / folder / f"link{number}").symlink_to(f"../{'b' if folder == 'a' else 'a'}")
        with within(10):
            assert keys_of(tmp_path) == ["a/x.jpg", "b/x.jpg"]
            assert keys_of(tmp_path / "**/*.jpg") == ["a/x.jpg", "b/x.jpg"]
        assert "links to folders that are visited at another place: 8" in caplog.text

    def test_crossed_links_outside_the_corpus_show_each_image_once(self, tmp_path: Path) -> None:
        for folder in ("corpus", "p", "q"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / f"{folder}.jpg").write_bytes(b"x")
        for number in range(3):
            (tmp_path / f"corpus/p{number}").symlink_to("../p")
            (tmp_path / f"p/q{number}").symlink_to("../q")
            (tmp_path / f"q/p{number}").symlink_to("../p")
        with within(10):
            assert keys_of(tmp_path / "corpus") == ["corpus.jpg", "p0/p.jpg", "p0/q0/q.jpg"]

    def test_a_link_to_a_hidden_folder_is_the_way_to_its_images(self, tmp_path: Path) -> None:
        (tmp_path / ".cache/images").mkdir(parents=True)
        (tmp_path / ".cache/images/x.jpg").write_bytes(b"x")
        (tmp_path / "train").symlink_to(".cache/images")
        assert keys_of(tmp_path) == ["train/x.jpg"]

    def test_folders_may_be_deeper_than_pythons_stack(self, tmp_path: Path) -> None:
        depth, here = 1500, Path.cwd()
        os.chdir(tmp_path)
        try:
            for _ in range(depth):
                Path("d").mkdir()
                os.chdir("d")
            Path("x.jpg").write_bytes(b"x")
            (tmp_path / "z.jpg").write_bytes(b"z")
            assert keys_of(tmp_path) == ["d/" * depth + "x.jpg", "z.jpg"]
            assert keys_of(tmp_path / "**/*.jpg") == ["d/" * depth + "x.jpg", "z.jpg"]
            Path("x.jpg").unlink()
            for _ in range(depth):  # neither shutil nor pytest can remove so deep a tree
                os.chdir("..")
                Path("d").rmdir()
        finally:
            os.chdir(here)

    def test_a_folder_that_cannot_be_listed_costs_its_images_whatever_the_errno(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        for name in ("a/x.jpg", "b/y.jpg"):
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).write_bytes(b"x")
        plain = LocalFiles.entries

        def entries(self: LocalFiles, folder: str) -> object:
            if folder == "a":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return plain(self, folder)

        monkeypatch.setattr(LocalFiles, "entries", entries)
        assert keys_of(tmp_path) == ["b/y.jpg"]
        assert "folders that cannot be opened: 1 (such as a)" in caplog.text


class TestFiles:
    def test_only_regular_files_are_read(self, tmp_path: Path) -> None:
        (tmp_path / "good.jpg").write_bytes(b"good")
        (tmp_path / "late.jpg").write_bytes(b"x")
        (tmp_path / "zero.jpg").symlink_to("/dev/zero")
        (tmp_path / "log.jpg").symlink_to("/proc/self/mem")
        os.mkfifo(tmp_path / "pipe.jpg")
        os.mkfifo(tmp_path / "pipe-without-extension")
        corpus = resolve_corpus(str(tmp_path))
        manifest = list_images(corpus)
        assert manifest.keys == ["good.jpg", "late.jpg", "log.jpg"]
        (tmp_path / "late.jpg").unlink()
        os.mkfifo(tmp_path / "late.jpg")
        with within(10), ImageReader(corpus, manifest) as images:
            assert (images.read(0), images.read(2)) == (b"good", b"")
            with pytest.raises(ImageError, match="cannot be read: Not a regular file"):
                images.read(1)

    def test_a_file_of_forty_gigabytes_is_refused_and_not_read(self, tmp_path: Path) -> None:
        (tmp_path / "good.jpg").write_bytes(b"good")
        (tmp_path / "video.jpg").touch()
        os.truncate(tmp_path / "video.jpg", 40 << 30)
        (tmp_path / "list.txt").write_text("good.jpg\nvideo.jpg\n")
        for place in (tmp_path, tmp_path / "list.txt"):  # sizes known, and not
            with memory_of(400):
                found = outcomes(place)
            assert found["good.jpg"] == "4"
            assert found["video.jpg"].startswith("42,949,672,960 bytes, and no image has more than 536,870,912")

    def test_one_that_grew_since_the_listing_is_refused_too(self, tmp_path: Path) -> None:
        (tmp_path / "x.jpg").write_bytes(b"x")
        corpus = resolve_corpus(str(tmp_path))
        manifest = list_images(corpus)
        os.truncate(tmp_path / "x.jpg", 40 << 30)
        with memory_of(400), ImageReader(corpus, manifest) as images, pytest.raises(ImageError, match="no image has"):
            images.read(0)

    @pytest.mark.parametrize("code", ["EIO", "ENODATA", "EBADMSG", "ESTALE", "EUCLEAN", "ENXIO", "ETXTBSY", "EINVAL"])
    def test_an_image_is_one_bad_image_whatever_its_errno(
        self, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            (tmp_path / name).write_bytes(b"xyz")
        number, plain = getattr(errno, code), LocalFiles.read_file

        def read_file(self: LocalFiles, path: str, most: int | None = None) -> bytes:
            if path == "b.jpg":
                raise OSError(number, os.strerror(number))
            return plain(self, path, most)

        monkeypatch.setattr(LocalFiles, "read_file", read_file)
        expected = {"a.jpg": "3", "b.jpg": f"cannot be read: {os.strerror(number)}", "c.jpg": "3"}
        assert outcomes(tmp_path) == expected

    @pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM])
    def test_what_this_process_lacks_is_no_images_fault(
        self, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a.jpg").write_bytes(b"x")

        def read_file(*arguments: object) -> bytes:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(LocalFiles, "read_file", read_file)
        with pytest.raises(CorpusError, match="run again to continue"):
            outcomes(tmp_path)

    def test_a_dead_disk_is_no_images_fault(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a.jpg").write_bytes(b"x")
        corpus = resolve_corpus(str(tmp_path))
        manifest = list_images(corpus)

        def fail(*arguments: object) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(LocalFiles, "read_file", fail)
        monkeypatch.setattr(LocalFiles, "entries", fail)
        with ImageReader(corpus, manifest) as images, pytest.raises(CorpusError, match="run again to continue"):
            images.read(0)

    def test_absurd_names_of_a_list_are_bad_images(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").write_bytes(b"x")
        (tmp_path / "list.txt").write_text("a.jpg\nb\0.jpg\n" + "n" * 5000 + ".jpg\n")
        found = list(outcomes(tmp_path / "list.txt").values())
        assert found[0] == "1"
        assert "cannot be read: ValueError" in found[1]
        assert "cannot be read: File name too long" in found[2]


def header(name: bytes, size: int, kind: bytes = b"0", raw: bytes = b"", sparse: bytes = b"") -> bytes:
    """A tar header with a correct checksum and whatever size."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = b"0000644\0"
    block[124:136] = raw or b"%011o\0" % size
    block[156:157], block[257:265] = kind, b"ustar\x0000"
    if sparse:
        block[257:265], block[386 : 386 + len(sparse)] = b"ustar  \0", sparse
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: bytes, data: bytes = b"good") -> bytes:
    return header(name, len(data)) + data + bytes(-len(data) % 512)


def pax(body: bytes) -> bytes:
    return header(b"p", len(body), b"x") + body + bytes(-len(body) % 512)


def big(number: int) -> bytes:
    return b"\x80\0\0\0" + struct.pack(">q", number)


SPARSE = b"00000000000\0" * 8 + b"\1"
HOSTILE = {
    "attributes of 2^62 bytes": header(b"x", 0, b"x", big(2**62)),
    "a long name of 2^62 bytes": header(b"x", 0, b"L", big(2**62)),
    "a long name of a negative size": header(b"x", 0, b"L", b"\xff" * 4 + struct.pack(">q", -512)),
    "an image of 2^62 bytes": header(b"x.jpg", 0, b"0", big(2**62)),
    "a chain of attributes": header(b"x", 0, b"x") * 20_000,
    "a chain of long names": header(b"x", 0, b"L") * 20_000,
    "a sparse map that is cut off": header(b"s.jpg", 512, b"S", sparse=SPARSE),
    "a sparse map without end": header(b"s.jpg", 512, b"S", sparse=SPARSE) + (bytes(504) + b"\1" + bytes(7)) * 20_000,
    "records that are quadratic": pax(b"2 " * 250_000 + b"="),
    "digits that are quadratic": pax(b"400010 a=" + b"1" * 400_000 + b"\n"),
    "attributes for all members": b"".join(
        header(b"g", 512, b"g") + b"%d k%05d=v\n".replace(b"%d", b"13") % number + bytes(499) for number in range(2000)
    ),
}


class TestTars:
    @pytest.mark.parametrize("name", HOSTILE)
    def test_a_hostile_header_costs_what_lies_behind_it_and_is_named(
        self, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "x.tar"
        path.write_bytes(member(b"0.jpg") + HOSTILE[name] + member(b"1.jpg") + END)
        with within(10), memory_of(400):
            assert outcomes(path) == {"0.jpg": "4"}
        assert re.search(r"x\.tar .*cut off", caplog.text)

    @pytest.mark.parametrize("name", HOSTILE)
    def test_at_the_beginning_it_costs_that_tar_alone(
        self, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "a.tar").write_bytes(HOSTILE[name] + member(b"1.jpg") + END)
        (tmp_path / "b.tar").write_bytes(member(b"2.jpg") + END)
        with within(10), memory_of(400):
            assert keys_of(tmp_path / "*.tar") == ["2.jpg"]
        assert "a.tar" in caplog.text

    def test_forty_gigabytes_of_header_are_not_read(self, tmp_path: Path) -> None:
        path = tmp_path / "x.tar"
        path.write_bytes(member(b"0.jpg") + header(b"x", 39 << 30, b"x", big(39 << 30)))
        os.truncate(path, 40 << 30)
        with within(10), memory_of(400):
            assert keys_of(path) == ["0.jpg"]

    def test_long_names_and_attributes_of_honest_tars_are_read(self, tmp_path: Path) -> None:
        names = ["d/" * 200 + f"{style}.jpg" for style in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)]
        with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            first = tarfile.TarInfo(names[0])
            first.pax_headers = {"SCHILY.xattr.user.note": "n" * 100_000, "comment": "c" * 3000}
            tar.addfile(first)
        gnu = io.BytesIO()
        with tarfile.open(fileobj=gnu, mode="w", format=tarfile.GNU_FORMAT) as tar:
            tar.addfile(tarfile.TarInfo(names[1]))
        (tmp_path / "y.tar").write_bytes(gnu.getvalue())
        assert keys_of(tmp_path / "*.tar") == names

    def test_a_fault_of_the_disk_costs_what_lies_behind_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "a.tar").write_bytes(member(b"0.jpg") + member(b"1.jpg") + END)
        (tmp_path / "b.tar").write_bytes(member(b"2.jpg") + END)
        plain = tars._Part.read

        def read(self: tars._Part, size: int = -1) -> bytes:
            if self._stream.name and self.tell() == 1024 and self._stop == 3072:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return plain(self, size)

        monkeypatch.setattr(tars._Part, "read", read)
        assert keys_of(tmp_path / "*.tar") == ["0.jpg", "2.jpg"]
        assert "a.tar is damaged or cut off after byte 512 (Input/output error)" in caplog.text

    def test_a_tar_that_is_none_is_left_out_beside_others_and_refused_alone(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
        with pytest.raises(CorpusError, match=r"a\.tar is not a tar"):
            keys_of(tmp_path / "a.tar")
        (tmp_path / "b.tar").write_bytes(member(b"2.jpg") + END)
        assert keys_of(tmp_path / "*.tar") == ["2.jpg"]
        assert "tars that cannot be read: 1 (such as a.tar is not a tar" in caplog.text


def write(path: Path, images: list[object], kind: pa.DataType, **options: object) -> Path:
    pq.write_table(pa.table({"image": pa.array(images, kind)}), path, **options)
    return path


class TestParquet:
    @pytest.mark.parametrize(
        ("kind", "value"), [(pa.string(), "text"), (pa.int64(), 40 << 30), (pa.struct([("a", pa.int8())]), {"a": 1})]
    )
    def test_bytes_that_are_none_are_no_images(self, kind: pa.DataType, value: object, tmp_path: Path) -> None:
        path = write(tmp_path / "x.parquet", [{"bytes": value}], pa.struct([("bytes", kind)]))
        with pytest.raises(CorpusError, match="has no column of image bytes"):
            keys_of(path)

    def test_columns_of_one_name_are_refused(self, tmp_path: Path) -> None:
        column = pa.array([b"x"], pa.binary())
        pq.write_table(pa.Table.from_arrays([column, column], names=["image", "image"]), tmp_path / "x.parquet")
        with pytest.raises(CorpusError, match="several columns of the name 'image'"):
            keys_of(tmp_path / "x.parquet")

    def test_keys_that_are_no_text_are_not_used(self, tmp_path: Path) -> None:
        offsets = pa.py_buffer(np.array([0, 2], np.int32).tobytes())
        bad = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff\xfe")])
        pq.write_table(pa.table({"image": pa.array([b"x"], pa.binary()), "key": bad}), tmp_path / "x.parquet")
        assert outcomes(tmp_path / "x.parquet") == {"x.parquet:0": "1"}

    def test_a_few_bytes_that_decode_to_any_memory_are_given_up(self, tmp_path: Path) -> None:
        same = pa.DictionaryArray.from_arrays(pa.array(np.zeros(400, np.int32)), pa.array([bytes(16 << 20)]))
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table({"image": same}), path, compression="zstd", store_schema=False)
        assert path.stat().st_size < 2000  # and 6.7 GB decoded
        with within(60), memory_of(1500):
            found = list(outcomes(path).values())
        assert found[:60] == [str(16 << 20)] * 60
        assert set(found[70:]) == {"row group 0 of the Parquet file is damaged"}

    def test_more_rows_than_bytes_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table({"image": pa.nulls(1_000_000, pa.binary())}), path, compression="zstd")
        with pytest.raises(CorpusError, match=r"states 1,000,000 rows in [\d,]+ bytes"):
            keys_of(path)

    def test_a_damaged_group_is_met_once_and_what_lies_before_is_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        noise = np.random.default_rng(0)
        images = [noise.bytes(2000) for _ in range(300)]
        options = {"use_dictionary": False, "data_page_size": 20_000, "compression": "zstd", "write_batch_size": 10}
        path = write(tmp_path / "x.parquet", images, pa.binary(), **options)
        data = bytearray(path.read_bytes())
        at = data.rfind(b"\x28\xb5\x2f\xfd")  # the last page
        data[at : at + 4] = bytes(4)
        path.write_bytes(data)
        begun, plain = [], parquet_rows._read_group

        def counted(*arguments: object) -> Iterator[parquet_rows.Row]:
            begun.append(arguments)
            return plain(*arguments)

        monkeypatch.setattr(parquet_rows, "_read_group", counted)
        found = list(outcomes(path).values())
        sound = found.index("row group 0 of the Parquet file is damaged")
        assert 200 < sound < 300
        assert found[:sound] == ["2000"] * sound
        assert len(set(found[sound:])) == 1
        assert len(begun) == 1

    def test_a_file_that_is_none_is_left_out_beside_others(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "a.parquet").write_bytes(b"PAR1" + b"\xff" * 100 + b"PAR1")
        write(tmp_path / "b.parquet", [b"x"], pa.binary())
        assert keys_of(tmp_path / "*.parquet") == ["b.parquet:0"]
        assert "Parquet files that cannot be read: 1 (such as a.parquet is not a complete" in caplog.text

    def test_a_file_that_was_replaced_by_another_thing_costs_its_rows(self, tmp_path: Path) -> None:
        for name in ("a.parquet", "b.parquet"):
            write(tmp_path / name, [b"x", b"y"], pa.binary())
        corpus = resolve_corpus(str(tmp_path))
        manifest = list_images(corpus)
        (tmp_path / "a.parquet").write_bytes(b"<html>not here</html>")
        with ImageReader(corpus, manifest) as images:
            for row in (0, 1):
                with pytest.raises(ImageError, match=r"a\.parquet is not a complete Parquet file"):
                    images.read(row)
            assert images.read(2) == b"x"

    def test_a_group_larger_than_the_cache_is_decoded_once_in_order(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(parquet_rows, "PARQUET_CACHE_BYTES", 10_000)
        noise = np.random.default_rng(0)
        images = [noise.bytes(1000) for _ in range(200)]
        path = write(tmp_path / "x.parquet", images, pa.binary())
        corpus = resolve_corpus(str(path))
        with ImageReader(corpus, list_images(corpus)) as opened:
            assert [opened.read(row) for row in range(200)] == images
            assert opened.read(3) == images[3]


class TestNetwork:
    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[str]:
        class Handler(http.server.SimpleHTTPRequestHandler):
            """It knows no ranges."""

            def log_message(self, *arguments: object) -> None:
                pass

        handler = functools.partial(Handler, directory=str(tmp_path))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
            threading.Thread(target=served.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{served.server_port}"
            served.shutdown()

    def test_a_server_without_ranges_gives_every_image_or_is_refused(
        self, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images = [bytes([number]) * (1000 + number) for number in range(40)]
        members = b"".join(member(b"%02d.jpg" % number, data) for number, data in enumerate(images))
        (tmp_path / "x.tar").write_bytes(members + END)
        corpus = resolve_corpus(f"{server}/x.tar")
        manifest = list_images(corpus)
        with ImageReader(corpus, manifest) as opened:
            assert [opened.read(row) for row in range(40)] == images
        monkeypatch.setattr("storage.files.remote._WHOLE", 10_000)
        with ImageReader(corpus, manifest) as opened, pytest.raises(CorpusError, match="it knows no ranges; download"):
            opened.read(7)

    def test_a_fault_that_passes_is_no_fault(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import fsspec

        system = fsspec.filesystem("memory")
        system.store.clear()
        for name in ("a", "b"):
            system.pipe_file(f"/bucket/{name}.jpg", name.encode())
        corpus = resolve_corpus("memory://bucket")
        manifest, plain, failures = list_images(corpus), type(system).cat_file, [1, 2, 3]

        def flaky(self: object, path: str, **options: object) -> bytes:
            if failures and path.endswith("a.jpg"):
                failures.pop()
                raise RuntimeError("503")
            return plain(self, path, **options)

        monkeypatch.setattr(type(system), "cat_file", flaky)
        monkeypatch.setattr(reader, "_PAUSE", 0.0)
        with ImageReader(corpus, manifest) as opened:
            with pytest.raises(ImageError, match="cannot be read: RuntimeError"):  # twice in a row
                opened.read(0)
            assert opened.read(0) == b"a"
            assert opened.read(1) == b"b"
        system.store.clear()


def test_listing_ends_where_a_hundred_thousand_names_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(header(b"a.jpg", 0) * 20_000 + END)
    with within(20):
        assert len(set(keys_of(tmp_path / "x.tar"))) == 20_000
