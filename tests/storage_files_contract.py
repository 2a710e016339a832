"""The contract of every place of files. A test module inherits :class:`FilesContract` and fills its place."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import pytest

from storage.errors import ImageError
from storage.files.places import Entry, Files

CONTENT = {"a.jpg": b"0123456789", "deep/er/b.png": b"inner", "deep/notes.txt": b"", "été.jpg": b"\x00\xff"}


class FilesContract(ABC):
    """Tests of :class:`~storage.files.places.Files`."""

    @pytest.fixture
    def files(self) -> Files:
        """A place that holds CONTENT."""
        return self.fill(CONTENT)

    @abstractmethod
    def fill(self, content: Mapping[str, bytes]) -> Files:
        """Make a place with these files."""

    def test_files_and_folders_are_told_apart(self, files: Files) -> None:
        assert [files.is_file(path) for path in ("a.jpg", "deep", "deep/er/b.png", "absent")] == [
            True,
            False,
            True,
            False,
        ]
        assert [files.is_folder(path) for path in ("", "deep", "a.jpg", "absent")] == [True, True, False, False]

    def test_a_folder_is_listed_with_sizes(self, files: Files) -> None:
        assert sorted(files.entries("")) == [
            Entry("a.jpg", False, 10),
            Entry("deep", True, -1),
            Entry("été.jpg", False, 2),
        ]
        assert sorted(files.entries("deep")) == [Entry("er", True, -1), Entry("notes.txt", False, 0)]

    def test_a_file_is_read_whole(self, files: Files) -> None:
        for path, data in CONTENT.items():
            assert files.read_file(path) == data

    def test_a_range_is_read_from_anywhere_and_ends_with_the_file(self, files: Files) -> None:
        for offset, size in ((0, 4), (3, 4), (9, 1), (8, 100), (0, 10), (2, 3)):
            assert files.read_range("a.jpg", offset, size) == CONTENT["a.jpg"][offset : offset + size]

    def test_a_file_of_more_bytes_than_wanted_is_refused(self, files: Files) -> None:
        assert files.read_file("a.jpg", 10) == CONTENT["a.jpg"]
        with pytest.raises(ImageError, match="10 bytes, and no image has more than 9"):
            files.read_file("a.jpg", 9)

    def test_folders_are_told_apart(self, files: Files) -> None:
        assert len({files.identity(folder) for folder in ("", "deep", "deep/er")}) == 3
        assert files.identity("deep") == files.identity("deep")

    def test_an_open_file_can_be_read_and_sought(self, files: Files) -> None:
        with files.open("a.jpg") as stream:
            assert stream.seek(0, 2) == 10
            stream.seek(7)
            assert stream.read() == b"789"

    def test_a_missing_file_is_a_file_not_found_error(self, files: Files) -> None:
        for read in (files.read_file, files.open, lambda path: files.read_range(path, 0, 1)):
            with pytest.raises(FileNotFoundError):
                read("absent.jpg")

    def test_a_closed_place_opens_again(self, files: Files) -> None:
        assert files.read_range("a.jpg", 0, 2) == b"01"
        files.close()
        assert files.read_range("a.jpg", 4, 2) == b"45"
