"""Every file that could be an image has a row, or is counted and named."""

import io
import os
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.corpora.corpus import Corpus
from pipeline.corpora.locate import resolve_corpus
from pipeline.corpora.masks import warn_of_masks
from pipeline.corpora.reader import ImageReader, list_images
from pipeline.corpora.recognise import by_name, matches
from storage.errors import CorpusError, ImageError, SettingsError


def picture(index: int, mode: str = "RGB", kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(index).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def tar_of(members: dict[str, bytes], end: bool = True) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue() if end else buffer.getvalue()[: tar.offset - 2 * tarfile.BLOCKSIZE]


def read_all(corpus: Corpus) -> dict[str, bytes]:
    manifest = list_images(corpus)
    with ImageReader(corpus, manifest) as reader:
        return {key: reader.read(row) for row, key in enumerate(manifest.keys)}


class TestNames:
    def test_files_whose_names_say_nothing_are_known_by_their_bytes(self, tmp_path: Path) -> None:
        images = {"4f2a9c": picture(0), "b.jpg?width=640": picture(1), "c.jpg_large": picture(2, kind="JPEG"),
                  "d.php?id=3": picture(3), "e.dat": picture(4, kind="WEBP")}  # fmt: skip
        others = {
            "LICENSE": b"MIT",
            "BMW": b"BMW is a car",
            "x.json": b"{}",
            "y.txt?z": b"hello",
            "z.html?a": b"<html>",
        }
        write(tmp_path, images | others)
        assert read_all(resolve_corpus(str(tmp_path))) == images
        (tmp_path / "x.tar").write_bytes(tar_of(images | others))
        assert read_all(resolve_corpus(str(tmp_path / "x.tar"))) == images

    def test_a_name_of_an_image_with_a_query_has_a_row_whatever_it_holds(self, tmp_path: Path) -> None:
        write(tmp_path, {"a.jpg?x=1": b"<html>not found</html>", "b.HEIC": b"phone"})
        assert list(read_all(resolve_corpus(str(tmp_path)))) == ["a.jpg?x=1", "b.HEIC"]

    def test_names_are_judged_by_their_extension_alone(self) -> None:
        assert [by_name(name) for name in ("a.JPG", "a.heif", "a.b/c", "a.svg", "a.txt", "a.txt?x", ".jpg")] == [
            True, True, None, False, False, None, None,
        ]  # fmt: skip


class TestCounted:
    def test_what_has_no_row_is_counted_and_named(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        names = [".trash/x.jpg", ".b.jpg", "@eaDir/a.jpg/t.jpg", "c.svg", "d.CR2", "e.dng", "f.nef", "g.tar", "._a.jpg"]
        write(tmp_path, {"a.jpg": picture(0), **dict.fromkeys(names, b"x"), ".DS_Store": b"x", "n.txt": b"x"})
        os.mkfifo(tmp_path / "pipe.jpg")
        (tmp_path / "gone.jpg").symlink_to("nowhere")
        (tmp_path / "gone.txt").symlink_to("nowhere")
        assert list_images(resolve_corpus(str(tmp_path))).keys == ["a.jpg"]
        said = [message.partition("left out ")[2] for message in caplog.messages]
        assert sorted(said) == [
            "archives or Parquet files beside the images (to read such instead: --corpus 'DIR/*.tar'): 1 (such as "
            "g.tar)",
            "hidden folders, or those of a system: 2 (such as .trash, @eaDir)",
            "hidden images: 1 (such as .b.jpg)",
            "images of formats that are not decoded: 4 (such as c.svg, d.CR2, e.dng)",
            "links whose target does not exist: 1 (such as gone.jpg)",
            "pipes, sockets or devices: 1 (such as pipe.jpg)",
        ]

    def test_a_folder_that_cannot_be_opened_is_left_out_and_named(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path, {"a/x.jpg": picture(0), "locked/y.jpg": picture(1), "z.jpg": picture(2)})
        plain = os.scandir

        def scandir(path: str) -> object:
            if str(path).endswith("locked"):
                raise PermissionError(13, "Permission denied", path)
            return plain(path)

        monkeypatch.setattr(os, "scandir", scandir)
        assert list_images(resolve_corpus(str(tmp_path))).keys == ["a/x.jpg", "z.jpg"]
        assert list_images(resolve_corpus(str(tmp_path / "**/*.jpg"))).keys == ["a/x.jpg", "z.jpg"]
        assert caplog.text.count("left out folders that cannot be opened: 1 (such as locked)") == 2
        with pytest.raises(CorpusError, match="Permission denied"):
            resolve_corpus(str(tmp_path / "locked"))

    def test_tar_members_that_are_no_plain_files_are_counted(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            member = tarfile.TarInfo("a.jpg")
            member.size = 4
            tar.addfile(member, io.BytesIO(b"a.jp"))
            for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)):
                member = tarfile.TarInfo(f"{number}.jpg")
                member.type, member.linkname = kind, "a.jpg"
                tar.addfile(member)
        assert list_images(resolve_corpus(str(tmp_path / "x.tar"))).keys == ["a.jpg"]
        assert "tar members that are links, sparse or no files: 3 (such as x.tar/0.jpg, x.tar/1.jpg," in caplog.text

    def test_sparse_members_are_counted(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "hole.jpg").touch()
        os.truncate(tmp_path / "hole.jpg", 2**20)
        (tmp_path / "b.jpg").write_bytes(b"b")
        command = ["tar", "--sparse", "-cf", "x.tar", "hole.jpg", "b.jpg"]
        if subprocess.run(command, cwd=tmp_path, check=False, capture_output=True).returncode:
            pytest.skip("needs GNU tar")
        list_images(resolve_corpus(str(tmp_path / "x.tar")))
        assert "links, sparse or no files: 1 (such as x.tar/hole.jpg)" in caplog.text

    def test_a_place_without_images_says_what_it_holds(self, tmp_path: Path) -> None:
        write(tmp_path / "raw", {"a.nef": b"x", "b.nef": b"x"})
        with pytest.raises(CorpusError, match=r"formats that are not decoded: 2 .*holds a\.nef, b\.nef"):
            resolve_corpus(str(tmp_path / "raw"))
        write(tmp_path / "deep", {"data-00000-of-00001.arrow": b"x", "state.json": b"{}"})
        with pytest.raises(CorpusError, match=r"holds data-00000-of-00001\.arrow, state\.json"):
            resolve_corpus(str(tmp_path / "deep"))


CLASSES = {
    name: {f"{name}_{i}.JPEG": picture(10 * number + i) for i in range(3)}
    for number, name in enumerate(("n01440764", "n01443537"))
}


class TestTarOfTars:
    @pytest.mark.parametrize("end", [True, False])
    def test_it_is_read_in_place(self, end: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        outer = {f"{name}.tar": tar_of(members, end) for name, members in CLASSES.items()}
        path = write(tmp_path, {"ILSVRC2012_img_train.tar": tar_of(outer)}) / "ILSVRC2012_img_train.tar"
        expected = {f"{c}.tar/{name}": data for c, members in CLASSES.items() for name, data in members.items()}
        assert read_all(resolve_corpus(str(path))) == expected
        assert read_all(resolve_corpus("imagenet", str(tmp_path))) == expected
        assert bool(caplog.messages) != end  # an inner tar without its end is mentioned

    def test_inner_tars_that_give_nothing_are_named(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz"):
            pass
        outer = {"a.tar": tar_of({"x.jpg": b"x"}), "b.tar": tar_of({"x.txt": b"x"}), "c.tar": packed.getvalue()}
        write(tmp_path, {"x.tar": tar_of(outer), "y.tar": tar_of({"y.json": b"{}"})})
        assert read_all(resolve_corpus(str(tmp_path))) == {"a.tar/x.jpg": b"x"}
        assert "tars inside a tar that are compressed or damaged: 1 (such as x.tar/c.tar)" in caplog.text
        assert "tars without an image: 3 (such as x.tar/b.tar, x.tar/c.tar, y.tar)" in caplog.text

    def test_tars_are_not_followed_for_ever(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        data = tar_of({"a.jpg": b"a"})
        for _ in range(40):
            data = tar_of({"t.tar": data})
        (tmp_path / "x.tar").write_bytes(data)
        with pytest.raises(CorpusError, match="too deep inside other tars: 1"):
            list_images(resolve_corpus(str(tmp_path / "x.tar")))


class TestInclude:
    def test_a_glob_says_which_files_and_members_are_images(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        files = {"a/1.jpg": picture(1), "a/1.seg.png": picture(2), "b/2.jpg": picture(3), "b/2.bin": picture(4)}
        write(tmp_path / "f", files)
        (tmp_path / "x.tar").write_bytes(tar_of(files))
        for place in ("f", "x.tar"):
            for glob, names in {
                "*.jpg": ["a/1.jpg", "b/2.jpg"],
                "a/*": ["a/1.jpg", "a/1.seg.png"],
                "*.{jpg,bin}": ["a/1.jpg", "b/2.bin", "b/2.jpg"],
                "?.jpg": ["a/1.jpg", "b/2.jpg"],
            }.items():
                corpus = resolve_corpus(str(tmp_path / place), include=glob)
                assert read_all(corpus) == {name: files[name] for name in names}, glob
        assert "left out images that --include leaves out: 1 (such as a/1.seg.png)" in caplog.text
        assert not [record for record in caplog.records if record.levelname == "WARNING"]

    def test_a_glob_that_matches_nothing_is_an_error_that_says_so(self, tmp_path: Path) -> None:
        write(tmp_path, {"a.jpg": picture(0)})
        with pytest.raises(CorpusError, match=r"images that --include leaves out: 1 \(such as a\.jpg\)"):
            resolve_corpus(str(tmp_path), include="*.png")

    def test_options_are_refused_where_they_mean_nothing(self, tmp_path: Path) -> None:
        write(tmp_path, {"f/a.jpg": picture(0)})
        pq.write_table(pa.table({"image": [picture(0)]}), tmp_path / "a.parquet")
        with pytest.raises(SettingsError, match="column is for Parquet files"):
            resolve_corpus(str(tmp_path / "f"), column="image")
        with pytest.raises(SettingsError, match="include is for image files and members of tars"):
            resolve_corpus(str(tmp_path / "a.parquet"), include="*.jpg")

    def test_a_glob_matches_paths_and_names(self) -> None:
        assert matches("a/b/c.jpg", "*.jpg")
        assert matches("a/b/c.jpg", "a/*")
        assert matches("a/b/c.jpg", "c.*")
        assert not matches("a/b/c.jpg", "b/*")


class TestOtherPlaces:
    def test_image_files_are_given_by_a_glob(self, tmp_path: Path) -> None:
        files = {"a/1.JPEG": picture(1), "a/b/2.JPEG": picture(2), "a/3.png": picture(3), "c/4.JPEG": picture(4)}
        write(tmp_path, files)
        for glob, names in {"a/**/*.JPEG": ["1.JPEG", "b/2.JPEG"], "*/[34].*": ["a/3.png", "c/4.JPEG"]}.items():
            corpus = resolve_corpus(str(tmp_path / glob))
            manifest = list_images(corpus)
            assert manifest.keys == names
            assert list(manifest.size) == [len(data) for data in read_all(corpus).values()]
        assert list_images(resolve_corpus(str(tmp_path / "{c,a}/*.JPEG"))).keys == ["c/4.JPEG", "a/1.JPEG"]

    def test_a_text_file_names_images(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        files = {"p/b.jpg": picture(1), "p/a.jpg": picture(2)}
        write(tmp_path, files)
        (tmp_path / "list.txt").write_text("# of mine\np/b.jpg\n./p/a.jpg\np/gone.jpg\np/b.jpg\n")
        (tmp_path / "there.txt").write_text("b.jpg\na.jpg\n")
        (tmp_path / "absolute.lst").write_text(f"{tmp_path}/p/b.jpg\n")
        corpus = resolve_corpus("list.txt")
        manifest = list_images(corpus)
        assert manifest.keys == ["p/b.jpg", "p/a.jpg", "p/gone.jpg"]
        assert "lines that repeat another: 1" in caplog.text
        with ImageReader(corpus, manifest) as reader:
            assert reader.read(0) == files["p/b.jpg"]
            with pytest.raises(ImageError, match="no longer exists"):
                reader.read(2)
        assert list(read_all(resolve_corpus("there.txt", "p"))) == ["b.jpg", "a.jpg"]
        assert list(read_all(resolve_corpus(f"{tmp_path}/list.txt", include="*a.jpg"))) == ["p/a.jpg"]
        assert list(read_all(resolve_corpus("absolute.lst")).values()) == [files["p/b.jpg"]]
        (tmp_path / "p/list.txt").write_text("p/a.jpg\n")  # as find writes it: relative to where it ran
        assert list(read_all(resolve_corpus("p/list.txt"))) == ["p/a.jpg"]

    @pytest.mark.parametrize(
        ("text", "reason"),
        [(b"", "names no image"), (b"\xff\xfe", "no UTF-8 text"), (b"https://x.org/1.jpg\n", "address https://x.org"),
         (b"/a.jpg\nb.jpg\n", "absolute and relative"), (b"nowhere/a.jpg\n", "none of the images")],
    )  # fmt: skip
    def test_a_text_file_that_names_no_images_says_why(self, text: bytes, reason: str, tmp_path: Path) -> None:
        write(tmp_path, {"list.txt": text})
        with pytest.raises(CorpusError, match=reason):
            list_images(resolve_corpus(str(tmp_path / "list.txt")))

    def test_a_zip_is_read_in_place(self, tmp_path: Path) -> None:
        files = {"val/1.jpg": picture(1), "val/2.jpg": picture(2), "x.json": b"{}"}
        with zipfile.ZipFile(tmp_path / "val.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        assert read_all(resolve_corpus(str(tmp_path / "val.zip"))) == {name: files[name] for name in list(files)[:2]}
        with pytest.raises(CorpusError, match=r"val\.zip is a zip: give it as --corpus itself"):
            resolve_corpus(str(tmp_path))

    def test_a_misspelled_folder_is_recognised(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        write(tmp_path, {"photos/a.jpg": picture(0)})
        with pytest.raises(CorpusError, match=r"'photso' is neither .*did you mean photos\?"):
            resolve_corpus("photso")
        with pytest.raises(CorpusError, match=r"did you mean photos\?"):
            resolve_corpus(f"{tmp_path}/fotos")

    def test_parquet_of_a_hubs_snapshot_is_found_below_its_folder(self, tmp_path: Path) -> None:
        for number in range(2):
            path = tmp_path / f"snapshot/data/train-{number:05}-of-00002.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({"image": [picture(number)]}), path)
        assert list(read_all(resolve_corpus(str(tmp_path / "snapshot"))).values()) == [picture(0), picture(1)]
        assert len(list_images(resolve_corpus("imagenet", str(tmp_path / "snapshot")))) == 2


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


class TestColumns:
    PHOTOS = tuple(picture(index) for index in range(6))
    MASKS = tuple(picture(index, "L") for index in range(6))

    def structs(self, data: tuple[bytes | None, ...]) -> pa.Array:
        return pa.array([{"bytes": item, "path": f"{i}.png"} for i, item in enumerate(data)], STRUCT)

    def corpus(self, tmp_path: Path, column: str = "", **columns: object) -> Corpus:
        pq.write_table(pa.table(columns), tmp_path / "x.parquet", row_group_size=4)
        return resolve_corpus(str(tmp_path / "x.parquet"), column=column)

    @pytest.mark.parametrize(
        "kind", [pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary()), pa.list_(pa.binary())]
    )
    def test_every_type_that_holds_bytes_is_read(self, kind: pa.DataType, tmp_path: Path) -> None:
        data = [[photo] for photo in self.PHOTOS] if pa.types.is_list(kind) else list(self.PHOTOS)
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        column = pa.array(data, plain)
        column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column
        assert tuple(read_all(self.corpus(tmp_path, image=column)).values()) == self.PHOTOS

    def test_the_column_that_is_read_is_said_and_can_be_chosen(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        columns = {"pixel_values": self.structs(self.PHOTOS), "label": self.structs(self.MASKS)}
        assert tuple(read_all(self.corpus(tmp_path, **columns)).values()) == self.PHOTOS
        assert "the images are those of column pixel_values; --column names another (label)" in caplog.text
        assert tuple(read_all(self.corpus(tmp_path, "label", **columns)).values()) == self.MASKS

    def test_columns_that_cannot_be_told_apart_or_do_not_fit_are_named(self, tmp_path: Path) -> None:
        columns = {"left": self.structs(self.PHOTOS), "right": self.structs(self.MASKS), "text": pa.array(["x"] * 6)}
        with pytest.raises(CorpusError, match=r"several columns of image bytes \(left, right\).*--column"):
            list_images(self.corpus(tmp_path, **columns))
        with pytest.raises(CorpusError, match=r"'text' is not a column of image bytes .*text \(string\)"):
            list_images(self.corpus(tmp_path, "text", **columns))
        with pytest.raises(CorpusError, match="'absent' is not a column of"):
            list_images(self.corpus(tmp_path, "absent", **columns))

    def test_paths_in_place_of_bytes_lead_to_files_of_the_corpus_and_nowhere_else(self, tmp_path: Path) -> None:
        write(tmp_path, {"0.png": self.PHOTOS[0]})
        paths = ["0.png", "1.png", "/etc/hostname", "../x.png"]
        image = pa.array([{"bytes": None, "path": path} for path in paths], STRUCT)
        corpus = self.corpus(tmp_path, image=image)
        with ImageReader(corpus, list_images(corpus)) as reader:
            assert reader.read(0) == self.PHOTOS[0]
            for row, reason in ((1, r"no file '1\.png' lies in"), (2, "leads out of"), (3, "leads out of")):
                with pytest.raises(ImageError, match=reason):
                    reader.read(row)

    def test_a_row_of_several_images_is_not_silently_its_first(self, tmp_path: Path) -> None:
        images = pa.array([[self.PHOTOS[0]], list(self.PHOTOS[:3]), []], pa.list_(pa.binary()))
        corpus = self.corpus(tmp_path, images=images)
        with ImageReader(corpus, list_images(corpus)) as reader:
            assert reader.read(0) == self.PHOTOS[0]
            for row, reason in ((1, "the row holds 3 images"), (2, "no image bytes")):
                with pytest.raises(ImageError, match=reason):
                    reader.read(row)

    def test_a_pointer_of_git_lfs_says_what_to_do(self, tmp_path: Path) -> None:
        write(tmp_path, {"x.parquet": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"})
        with pytest.raises(CorpusError, match=r"x\.parquet is a Git LFS pointer; run git lfs pull"):
            list_images(resolve_corpus(str(tmp_path)))


class TestMasks:
    @pytest.mark.parametrize(
        ("files", "suggestion"),
        [
            ({"{}.jpg": "RGB", "{}_seg.png": "P"}, "such as --include '*.jpg'"),
            ({"{}.input.png": "RGB", "{}.target.png": "L"}, "such as --include '*.input.png'"),
            ({"images/{}.png": "RGB", "labels/{}.png": "L"}, "such as --include 'images/*'"),
            ({"{}a.png": "RGB", "{}b.png": "L"}, "by --include GLOB"),
        ],
    )
    def test_single_channel_images_beside_photographs_are_noticed(
        self, files: dict[str, str], suggestion: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write(tmp_path, {name.format(i): picture(i, mode) for name, mode in files.items() for i in range(6)})
        corpus = resolve_corpus(str(tmp_path))
        warn_of_masks(corpus, list_images(corpus))
        assert "6 of 12 images that were looked at have a single channel" in caplog.messages[0]
        assert caplog.messages[0].endswith(suggestion)

    @pytest.mark.parametrize("grey", [0, 2, 20])
    def test_a_few_grey_photographs_or_a_grey_corpus_are_no_masks(
        self, grey: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write(tmp_path, {f"{i}.png": picture(i, "L" if i < grey else "RGB") for i in range(20)} | {"x.jpg": b"no"})
        corpus = resolve_corpus(str(tmp_path))
        warn_of_masks(corpus, list_images(corpus))
        assert caplog.messages == []
