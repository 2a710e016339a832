"""Publishing is atomic."""

import os
from pathlib import Path
from typing import Any

import pytest

from storage.errors import SettingsError
from storage.files.publish import publish


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with publish(path) as partial:
        partial.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(("umask", "permissions"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_file_has_the_permissions_of_the_umask_whatever_made_it(umask: int, permissions: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        for library, mode in (("strict", 0o600), ("careless", 0o666)):
            with publish(tmp_path / library) as partial:
                partial.write_text("x")
                partial.chmod(mode)
            assert (tmp_path / library).stat().st_mode & 0o777 == permissions
    finally:
        os.umask(before)


def test_a_failure_keeps_the_old_one_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), publish(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_what_cannot_be_removed_does_not_hide_why_the_writer_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(39, "Directory not empty", str(path))

    with pytest.raises(KeyboardInterrupt), publish(tmp_path / "a.zarr") as partial:
        partial.mkdir()
        monkeypatch.setattr("shutil.rmtree", refuse)
        raise KeyboardInterrupt
    monkeypatch.undo()
    with publish(tmp_path / "a.zarr") as partial:
        partial.mkdir()
    assert [file.name for file in tmp_path.iterdir()] == ["a.zarr"]


def test_a_folder_replaces_a_full_one_and_a_killed_writers_rest(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    (tmp_path / "folder.partial").mkdir()
    (tmp_path / "folder.partial" / "rest").touch()
    with publish(path) as partial:
        partial.mkdir()
        (partial / "new").touch()
    assert [file.name for file in path.iterdir()] == ["new"]
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_a_folder_is_never_half_deleted_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the process is killed, the name holds the complete old folder, the complete new one, or nothing."""
    path = tmp_path / "folder"
    path.mkdir()
    (path / "a").touch()
    (path / "b").touch()
    plain = os.unlink

    def watched(*arguments: Any, **options: Any) -> None:
        if path.exists():
            assert sorted(file.name for file in path.iterdir()) in (["a", "b"], ["new"])
        plain(*arguments, **options)

    monkeypatch.setattr(os, "unlink", watched)
    with publish(path) as partial:
        partial.mkdir()
        (partial / "new").touch()
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_a_name_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(SettingsError, match="is a folder"), publish(Path()):
        pass
