"""Local and remote places keep one contract."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import fsspec
import pytest
from storage_files_contract import FilesContract

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
