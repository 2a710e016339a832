"""From a settings dataclass to a command."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import pytest
from conftest import Call

from storage.commandline.command import Command
from storage.commandline.progress import track
from storage.errors import SettingsError, StoreError
from storage.progress import Step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    store: Annotated[str, "Where"]
    count: Annotated[int, "How many"] = 3
    kind: Annotated[Literal["a", "b"], "Which"] = "a"
    quiet: Annotated[bool, "Whether"] = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise SettingsError(f"count is {self.count}; give at least 1")


def command(seen: list[Settings]) -> Command[Settings]:
    def run(settings: Settings) -> None:
        if settings.store == "broken":
            raise StoreError("no scores in broken;\n run dfss-score")
        if settings.store == "full":
            raise OSError(28, "No space left on device")
        seen.append(settings)

        if settings.store == "impatient":
            raise KeyboardInterrupt

    methods = {"ours": {}, "paper": {"count": 7, "kind": "b"}}
    example = "tool --store x"
    return Command(
        name="tool", settings=Settings, section="tool", run=run, help="Does it.", example=example, methods=methods
    )


def test_options_become_settings(call: Call) -> None:
    seen: list[Settings] = []
    assert call(command(seen), "--store", "x", "--kind", "b", "--quiet") == 0
    assert seen == [Settings(store="x", kind="b", quiet=True)]


def test_params_yaml_stands_in_for_defaults_and_the_command_line_wins(call: Call, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(
        "dfss:\n  tool:\n    store: y\n    count: 7\n    quiet: true\n  other: {}\ntool:\n  nonsense: 1\n"
    )
    seen: list[Settings] = []
    assert call(command(seen), "--count", "8") == 0
    assert seen == [Settings(store="y", count=8, quiet=True)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dfss:\n  tool:\n    cuont: 7\n", "dfss.tool.cuont is no setting of tool"),
        ("dfss:\n  tool: [1]\n", "must map settings to values"),
        ("tool: {", "not valid YAML"),
    ],
)
def test_a_wrong_params_file_is_one_line(
    text: str, message: str, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "params.yaml").write_text(text)
    assert call(command([]), "--store", "x") == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--store", "x", "--count", "0"], 2, "count is 0; give at least 1"),
        (["--store", "broken"], 1, "no scores in broken; run dfss-score"),
        (["--store", "full"], 1, "No space left on device"),
        (["--store", "impatient"], 130, "interrupted"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    arguments: list[str], code: int, message: str, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(command([]), *arguments) == code
    printed = capsys.readouterr().err
    assert printed.startswith("tool: error: ")
    assert message in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--store", "x", "--count", "many"], ["--store", "x", "--kind", "c"]])
def test_wrong_usage_exits_with_2(arguments: list[str], call: Call) -> None:
    assert call(command([]), *arguments) == 2


def test_help_shows_every_option_and_the_example(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command([]), "--help") == 0
    printed = capsys.readouterr().out
    for text in ("--store", "--count", "--kind", "--quiet", "How many", "tool --store x"):
        assert text in printed


def test_progress_without_a_terminal_is_plain_lines_and_passes_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [Step(done=5, total=20), Step(done=10, total=20), Step(done=20, total=20, note="loss 1.0")]
    assert list(track(steps, title="scoring", unit="images", every=1e9)) == steps
    printed = capsys.readouterr().err
    assert printed.startswith("scoring 20/20 images")
    assert "loss 1.0" in printed


@pytest.mark.parametrize(
    ("arguments", "params", "expected"),
    [
        ("", "", (3, "a")),
        ("--method ours", "", (3, "a")),
        ("--method paper", "", (7, "b")),
        ("--method paper --count 5", "", (5, "b")),
        ("--count 5 --method paper", "", (5, "b")),
        ("--method paper", "{kind: a}", (7, "b")),
        ("--method paper --kind a", "{kind: b}", (7, "a")),
        ("", "{method: paper, kind: a}", (7, "a")),
        ("", "{method: paper}", (7, "b")),
        ("--method ours", "{method: paper}", (3, "a")),
    ],
)
def test_a_method_stands_for_several_settings_and_what_is_given_besides_wins(
    arguments: str, params: str, expected: tuple[int, str], call: Call
) -> None:
    Path("params.yaml").write_text(f"dfss:\n  tool: {params}\n" if params else "")
    seen: list[Settings] = []
    assert call(command(seen), "--store", "x", *arguments.split()) == 0
    assert (seen[0].count, seen[0].kind) == expected


def test_an_unknown_method_is_refused(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command([]), "--store", "x", "--method", "theirs") == 2
    assert "'theirs' is not one of ours, paper" in " ".join(capsys.readouterr().err.split())
