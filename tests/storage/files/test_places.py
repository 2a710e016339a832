"""Local and remote places keep one contract."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import fsspec
import pytest
from storage_files_contract import CONTENT, FilesContract

from storage.files.local import LocalFiles
from storage.files.places import Files, join, open_files
from storage.files.remote import RemoteFiles


class TestLocal(FilesContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.root = tmp_path / "place"

    def fill(self, content: Mapping[str, bytes]) -> Files:
        for path, data in content.items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_bytes(data)
        return open_files(str(self.root))

    def test_is_served_without_fsspec(self, files: Files) -> None:
        assert isinstance(files, LocalFiles)

    def test_reads_go_on_until_they_are_whole(self, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
        read, pread = os.read, os.pread
        monkeypatch.setattr(os, "read", lambda file, size: read(file, min(size, 3)))
        monkeypatch.setattr(os, "pread", lambda file, size, offset: pread(file, min(size, 3), offset))
        assert files.read_file("a.jpg") == CONTENT["a.jpg"]
        assert files.read_range("a.jpg", 1, 8) == CONTENT["a.jpg"][1:9]
        assert files.read_range("a.jpg", 4, 100) == CONTENT["a.jpg"][4:]

    def test_a_pipe_is_refused_and_does_not_wait(self, files: Files) -> None:
        os.mkfifo(self.root / "pipe")
        for read in (files.read_file, files.open, lambda path: files.read_range(path, 0, 1)):
            with pytest.raises(OSError, match="Not a regular file"):
                read("pipe")


class TestRemote(FilesContract):
    @pytest.fixture(autouse=True)
    def _memory(self) -> Iterator[None]:
        self.system = fsspec.filesystem("memory")
        self.system.store.clear()
        self.system.pseudo_dirs[:] = [""]
        yield
        self.system.store.clear()

    def fill(self, content: Mapping[str, bytes]) -> Files:
        for path, data in content.items():
            self.system.pipe_file(f"/place/{path}", data)
        return open_files("memory://place")

    def test_is_served_by_fsspec(self, files: Files) -> None:
        assert isinstance(files, RemoteFiles)

    def test_answers_that_are_short_or_whole_give_the_bytes_that_were_asked_for(
        self, files: Files, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain, data = type(self.system).cat_file, CONTENT["a.jpg"]

        def short(system: object, path: str, start: int, end: int) -> bytes:
            return bytes(plain(system, path, start=start, end=min(end, start + 3)))

        def whole(system: object, path: str, start: int, end: int) -> bytes:
            return bytes(plain(system, path))

        for answer in (short, whole):
            monkeypatch.setattr(type(self.system), "cat_file", answer)
            for offset in (4, 2, 7, 9):
                files.close()
                assert files.read_range("a.jpg", offset, 3) == data[offset : offset + 3]
                assert files.read_range("a.jpg", offset, 5) == data[offset : offset + 5]


@pytest.mark.parametrize(
    ("root", "path", "joined"),
    [
        ("", "a", "a"),
        (".", "a", "a"),
        ("r", "", "r"),
        ("r", "a", "r/a"),
        ("r/", "a", "r/a"),
        ("s3://b", "a", "s3://b/a"),
    ],
)
def test_roots_and_paths_are_joined(root: str, path: str, joined: str) -> None:
    assert join(root, path) == joined
