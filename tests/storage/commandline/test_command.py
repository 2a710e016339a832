"""From a settings dataclass to a command."""

import dataclasses
import logging
import signal
import subprocess
import sys
import types
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import pytest
from conftest import Call

from storage.commandline.command import Command, run_one_of, show_logs
from storage.commandline.declaration import Checked
from storage.commandline.given import settings_in_params
from storage.commandline.progress import shown
from storage.commandline.values import DATA, METHOD, Arguments, Budget, Count, Local, NamedFiles, Names, Size
from storage.errors import SettingsError, StoreError, Terminated
from storage.progress import Step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    store: Annotated[str, "Where", DATA]
    count: Annotated[Count, "How many", METHOD] = 3
    kind: Annotated[Literal["a", "b"], "Which"] = "a"
    quiet: Annotated[bool, "Whether"] = False
    size: Annotated[Size, "How large"] = (4, 5)
    most: Annotated[Budget | None, "At most"] = None
    files: Annotated[NamedFiles, "Which files"] = dataclasses.field(default_factory=lambda: {"x": "x"})
    more: Annotated[Arguments, "What else"] = dataclasses.field(default_factory=dict)
    names: Annotated[Names, "Which names"] = ("a",)
    rate: Annotated[float, "How fast"] = 0.5
    where: Annotated[Local | None, "Which file"] = None


def command(seen: list[Settings]) -> Command[Settings]:
    def run(settings: Settings) -> None:
        if settings.store == "broken":
            raise StoreError("no scores in broken;\n run dfss-score")
        if settings.store == "large":
            raise MemoryError
        if settings.store == "larger":
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:115] err == 0. DefaultCPUAllocator: can't allocate memory"
            )
        if settings.store == "full":
            raise OSError(28, "No space left on device")
        if settings.store == "file":
            raise FileExistsError(17, "File exists", "z.zip")
        if settings.store == "folder":
            raise IsADirectoryError(21, "Is a directory", "again.zarr")
        seen.append(settings)

        if settings.store == "impatient":
            raise KeyboardInterrupt
        if settings.store == "evicted":
            raise Terminated

    def hesitate() -> None:
        raise KeyboardInterrupt

    return Command(
        name="tool",
        settings=Settings,
        section="tool",
        run=run,
        help="Does it.",
        example="tool --store x",
        flags={"hesitate": (hesitate, "Press Ctrl-C while the command line is read")},
        methods={"ours": {}, "paper": {"count": 7, "kind": "b"}},
    )


def test_options_become_settings(call: Call) -> None:
    seen: list[Settings] = []
    assert call(command(seen), "--store", "x", "--kind", "b", "--quiet") == 0
    assert seen == [Settings(store="x", kind="b", quiet=True)]


def test_an_option_of_one_value_is_taken_once_and_never_silently_the_last(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Settings] = []
    assert call(command(seen), "--store", "x", "--store", "y") == 2
    assert capsys.readouterr().err == "tool: error: --store is given twice, but takes one value; see tool --help\n"
    assert call(command(seen), "--store=x", "--count", 1, "--count=1") == 2
    assert call(command(seen), "--store", "x", "--quiet", "--files", "a=1", "--files", "b=2") == 0
    assert [(settings.store, settings.files) for settings in seen] == [("x", {"a": "1", "b": "2"})]


def test_params_yaml_stands_in_for_defaults_and_the_command_line_wins(call: Call, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(
        "dfss:\n  tool:\n    store: y\n    count: 7\n    quiet: true\n  other: {}\ntool:\n  nonsense: 1\n"
    )
    seen: list[Settings] = []
    assert call(command(seen), "--count", "8") == 0
    assert seen == [Settings(store="y", count=8, quiet=True)]


def test_what_params_yaml_decides_is_said_and_nothing_else_is(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "params.yaml").write_text("dfss: {tool: {store: y, count: 7, size: [6, 7]}}\n")
    assert call(command([]), "--count", "8") == 0
    assert capsys.readouterr().err == "from params.yaml: store y, size 6x7\n"
    assert call(command([]), "--store", "x", "--count", "8", "--size", "1") == 0
    assert capsys.readouterr().err == ""


def test_a_value_that_params_yaml_supplies_is_no_longer_required(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(command([]), "--help") == 0
    assert "[required]" in capsys.readouterr().out
    (tmp_path / "params.yaml").write_text("dfss: {tool: {store: y, rate: 0.25}}\n")
    assert call(command([]), "--help") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "[required]" not in printed
    assert "y from params.yaml" in printed
    assert "0.25 from params.yaml" in printed


def test_another_commands_section_gives_its_settings(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("dfss: {tool: {store: y, count: 7, size: [6, 7], most: 0.5, quiet: true}}\n")
    found = settings_in_params(Settings, section="tool", command="tool", store="x", rate=2.0)
    assert found == Settings(store="x", count=7, size=(6, 7), most=0.5, quiet=True, rate=2.0)
    (tmp_path / "params.yaml").write_text("dfss: {tool: {store: y, count: 0}}\n")
    with pytest.raises(SettingsError, match=r"count is 0; .* \(from dfss.tool.count of params.yaml\)"):
        settings_in_params(Settings, section="tool", command="tool")


@pytest.mark.parametrize(
    ("store", "count"), [((), 7), (("--store", "y"), 7), (("--store", "z"), 3), (("--store", "z", "--count", "5"), 5)]
)
def test_a_setting_for_another_one_of_params_yaml_is_not_for_that_of_the_command_line(
    store: tuple[str, ...], count: int, call: Call, tmp_path: Path
) -> None:
    (tmp_path / "params.yaml").write_text("dfss:\n  tool:\n    store: y\n    count: 7\n")
    seen: list[Settings] = []
    assert call(dataclasses.replace(command(seen), belongs={"count": "store"}), *store) == 0
    assert seen[0].count == count


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dfss: {tool: {count: 0}}", "--count is 0; give 1 or more (from dfss.tool.count of params.yaml)"),
        ("dfss: {tool: {kind: c}}", "--kind 'c' is not one of a, b (from dfss.tool.kind of params.yaml)"),
        ("dfss: {tool: {size: [1]}}", "(from dfss.tool.size of params.yaml)"),
        ("dfss:\n  tool:\n    cuont: 7\n", "dfss.tool.cuont is not a setting of tool"),
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
        (["--store", "x", "--count", "0"], 2, "--count is 0; give 1 or more"),
        (["--store", "broken"], 1, "no scores in broken; run dfss-score"),
        (["--store", "full"], 1, "No space left on device; free some space, and run the same command again"),
        (["--store", "file"], 1, "'z.zip'; a file is where a folder should be; give another path"),
        (["--store", "folder"], 1, "'again.zarr'; a folder is where a file should be; give the name of a file"),
        (["--store", "large"], 1, "the memory does not suffice"),
        (["--store", "larger"], 1, "the memory does not suffice"),
        (["--store", "impatient"], 130, "interrupted; what was finished is kept"),
        (["--store", "evicted"], 143, "terminated; what was finished is kept"),
        (["--hesitate"], 130, "interrupted; nothing was done"),
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


@pytest.mark.parametrize("arguments", [[], ["--store", "x", "--nonsense"], ["--store", "x", "--store", "y"]])
def test_wrong_usage_is_one_line_and_exits_with_2(
    arguments: list[str], call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(command([]), *arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("tool: error: ")
    assert printed.endswith("; see tool --help\n")
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "text", "params", "field", "value"),
    [
        ("--size", "6x7", "[6, 7]", "size", (6, 7)),
        ("--size", "8", "8x8", "size", (8, 8)),
        ("--most", "20", "20", "most", 20),
        ("--most", "10%", "0.1", "most", 0.1),
        ("--files", "a=b.txt", "{a: b.txt}", "files", {"a": "b.txt"}),
        ("--files", "a=b.txt", "a=b.txt", "files", {"a": "b.txt"}),
        ("--files", "b.txt", "b.txt", "files", {"b.txt": "b.txt"}),
        ("--rate", "1e-3", "1e-3", "rate", 0.001),
        ("--rate", "2", "2", "rate", 2.0),
        ("--more", '{"depth": [1, 2]}', "{depth: [1, 2]}", "more", {"depth": [1, 2]}),
    ],
)
def test_values_are_the_same_from_a_command_line_from_yaml_and_from_python(
    option: str, text: str, params: str, field: str, value: object, call: Call
) -> None:
    seen: list[Settings] = []
    assert call(command(seen), "--store", "x", option, text) == 0
    Path("params.yaml").write_text(f"dfss:\n  tool: {{{field}: {params}}}\n")
    assert call(command(seen), "--store", "x") == 0
    assert seen[0] == seen[1] == Settings(store="x", **{field: value})  # type: ignore[arg-type]
    assert getattr(seen[0], field) == value


def test_a_list_in_yaml_is_never_taken_apart_as_text(call: Call) -> None:
    Path("params.yaml").write_text('dfss:\n  tool: {names: ["a, b", c]}\n')
    seen: list[Settings] = []
    assert call(command(seen), "--store", "x") == 0
    assert seen[0].names == ("a, b", "c")
    assert call(command(seen), "--store", "x", "--names", "d,e") == 0
    assert seen[1].names == ("d", "e")
    assert Settings(store="x", names="d, e").names == ("d", "e")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="names .* must be a list of names"):
        Settings(store="x", names={"d", "e"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--size", "big", "--size 'big' is not HEIGHTxWIDTH in pixels, such as 360x480"),
        ("--size", "0x4", "--size '0x4' is not HEIGHTxWIDTH in pixels"),
        ("--size", "4x65537", "--size '4x65537' is more than 65536 pixels a side"),
        ("--count", "9" * 30, "; give 2147483647 or less"),
        ("--most", "lots", "--most 'lots' is neither a count (20000) nor a fraction (0.1 or 10%)"),
        ("--most", "0", "--most '0' must be a count of at least 1, or a fraction above 0 and at most 1"),
        ("--most", "nan", "--most 'nan' must be a count"),
        ("--more", "[1]", "--more '[1]' must be a mapping"),
        ("--more", "{", "--more '{' is not JSON"),
        ("--count", "many", "--count 'many' must be a whole number"),
        ("--count", "2.5", "--count '2.5' must be a whole number"),
        ("--rate", "fast", "--rate 'fast' must be a number"),
        ("--rate", "nan", "--rate nan must be a finite number"),
        ("--kind", "B", "--kind 'B' is not one of a, b; did you mean 'b'?"),
        (
            "--where",
            "s3://bucket/x",
            "--where is s3://bucket/x; only --corpus and --root can be URLs yet: give a local",
        ),
        ("--where", "-", "--where is -; give the name of a file"),
        ("--files", "x=gs://bucket/x", "--files 'x=gs://bucket/x' must be local"),
    ],
)
def test_a_malformed_value_is_named_with_what_was_expected(
    option: str, text: str, message: str, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(command([]), "--store", "x", option, text) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "c"}, r"kind 'c' is not one of a, b"),
        ({"count": 0}, r"count is 0; give 1 or more"),
        ({"count": 2.5}, r"count 2.5 must be a whole number"),
        ({"count": True}, r"count True must be a whole number"),
        ({"quiet": "yes"}, r"quiet 'yes' must be true or false"),
        ({"store": 3}, r"store 3 must be text"),
        ({"size": "6x7"}, r"size '6x7'"),
        ({"most": "10%"}, r"most '10%' is neither a count"),
        ({"most": 1.5}, r"most 1.5 must be a count of at least 1, or a fraction"),
    ],
)
def test_settings_check_themselves_in_python_too(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        Settings(**{"store": "x", **values})  # type: ignore[arg-type]
    assert caught.value.field == next(iter(values))


def test_help_shows_every_option_in_its_panel_whole_at_80_columns(
    call: Call, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for option in ("--help", "-h"):
        assert call(command([]), option) == 0
        printed = capsys.readouterr().out
        for text in ("--store", "--count", "--kind <a|b>", "--quiet", "How many", "tool --store x", "[default: 4x5]"):
            assert text in printed
        assert [line for line in printed.splitlines() if line in ("Data:", "Method:", "Run:")] == [
            "Data:",
            "Method:",
            "Run:",
        ]
        assert "…" not in printed


def test_progress_without_a_terminal_is_plain_lines_and_says_nothing_that_is_not_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with shown("scoring", "images", every=1e9) as progress:
        progress(Step(done=5, total=5))
        progress(Step(done=10, total=20))
        progress(Step(done=20, total=20, note="loss 1.0"))
    first, last = capsys.readouterr().err.splitlines()
    assert first == "scoring 5/5 images"
    assert last.startswith("scoring 20/20 images, ")
    assert last.endswith(" s left, loss 1.0")
    assert "nan" not in first + last


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


def test_a_terminal_shows_at_once_that_something_happens_and_a_file_does_not(
    call: Call, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(command([]), "--store", "x") == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert call(command([]), "--store", "x") == 0
    assert capsys.readouterr().err == "starting\r"


@pytest.mark.parametrize("module", ["typer", "yaml", "rich.console", "pipeline.settings"])
def test_ctrl_c_during_the_imports_of_a_command_is_one_line(module: str) -> None:
    script = f"""
import sys
class Impatient:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Impatient())
sys.argv = ["/somewhere/dfss-score"]
import pipeline.cli
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert ended.returncode == -signal.SIGINT
    assert ended.stderr == "dfss-score: error: interrupted; nothing was done\n"


def test_every_command_tells_its_version(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command([]), "--version") == 0
    assert capsys.readouterr().out == f"tool {version('dfss')}\n"


def test_an_unknown_method_is_refused(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command([]), "--store", "x", "--method", "theirs") == 2
    assert "'theirs' is not one of ours, paper" in " ".join(capsys.readouterr().err.split())


COMMANDS = {"one": "test_group:one", "two": "test_group:two"}


@pytest.mark.parametrize(
    ("words", "code", "printed"),
    [
        ([], 0, "tools COMMAND --help"),
        (["--help"], 0, "Usage: tools COMMAND"),
        (["--version"], 0, "tools 7"),
        (["one", "--store", "x"], 0, ""),
        (["on"], 2, "command 'on' is not one of one, two; did you mean 'one'?"),
        (["one", "--nonsense"], 2, "No such option"),
    ],
)
def test_several_commands_are_one(
    words: list[str], code: int, printed: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Settings] = []
    module = types.ModuleType("test_group")
    module.one = module.two = command(seen)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "test_group", module)
    with pytest.raises(SystemExit) as ended:
        run_one_of(COMMANDS, name="tools", version="7", argv=words)
    assert ended.value.code == code
    captured = capsys.readouterr()
    assert printed in captured.out + captured.err
    assert len(seen) == (words[:2] == ["one", "--store"])


def test_our_own_information_is_a_plain_line_and_everybodys_warnings_are_shown_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_logs()
    show_logs()
    logging.getLogger("distill.somewhere").info("the student inherits %d modules", 3)
    logging.getLogger("pipeline.elsewhere").warning("%s is cut off", "a.tar")
    logging.getLogger("foreign").info("chatter")
    assert capsys.readouterr().err == "the student inherits 3 modules\nWARNING: a.tar is cut off\n"
