"""What a params.yaml from elsewhere can do: give values, and nothing else."""

from pathlib import Path

import pytest

from storage.commandline.params import read_section
from storage.errors import SettingsError

BOMB = (
    "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)) + "dfss: {s: {v: *a39}}"
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "dfss: &d {s: {v: *d}}",
        "dfss: {s: {v: !!python/object/apply:os.system ['touch PWNED']}}",
        "[" * 5000,
        "dfss: {s: {v: " + "9" * 5000 + "}}",
        "x" * 2**21,
    ],
    ids=["a bomb of aliases", "a value in itself", "code", "deep", "a huge number", "a huge file"],
)
def test_a_file_that_is_no_list_of_settings_is_one_line(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(text)
    with pytest.raises(SettingsError, match=r"^params\.yaml"):
        read_section(Path("params.yaml"), "s")
    assert not Path("PWNED").exists()


def test_aliases_of_everyday_use_are_read(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("base: &b [1, 2]\ndfss: {s: {v: *b, w: *b}}\n")
    assert read_section(tmp_path / "p.yaml", "s") == {"v": [1, 2], "w": [1, 2]}
