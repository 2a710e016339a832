"""The mutation tester itself: which mutants it makes, and which verdicts it gives."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mutation.operators import mutants

TESTS = Path(__file__).parent


def changes(source: str) -> list[tuple[str, str]]:
    """Operator and new line of each mutant."""
    return [(mutant.operator, mutant.after) for mutant in mutants(source, "tiny.py")]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a = b + c", [("arithmetic", "a = b - c")]),
        ("a = (b) // c", [("arithmetic", "a = (b) / c")]),
        ("a = b * c**d", [("arithmetic", "a = b / c**d"), ("arithmetic", "a = b * (c * d)")]),
        ("a -= b", [("statement", "pass"), ("arithmetic", "a += b")]),
        ("a = b < c", [("comparison", "a = b <= c")]),
        ("a = b <= c == d", [("comparison", "a = b < c == d"), ("comparison", "a = b <= c != d")]),
        ("a = b  not  in c", [("comparison", "a = b in c")]),
        ("a = b is None", [("comparison", "a = b is not None")]),
        ('a = b == "c"', [("comparison", 'a = b != "c"'), ("string", "a = b == 'c_'")]),
        ('a = b["c"]', []),
        ("a = b and c or d", [("boolean", "a = b or c or d"), ("boolean", "a = b and c and d")]),
        ("a = not b", [("negation", "a = (b)")]),
        ("a = -b", [("negation", "a = (b)")]),
        ("a = 0 if b else 0.5", [
            ("constant", "a = 1 if b else 0.5"), ("condition", "a = 0 if (not (b)) else 0.5"),
            ("constant", "a = 0 if b else 1.5"),
        ]),
        ("while a:\n    b()", [("condition", "while (not (a)):"), ("statement", "pass")]),
        ("a = [b for b in c if b > d]", [
            ("condition", "a = [b for b in c if (not (b > d))]"), ("comparison", "a = [b for b in c if b >= d]"),
        ]),
        ("a = b[c:d]", [("slice", "a = b[:d]"), ("slice", "a = b[c:]")]),
        ("a = b.min(dim=1)", [("call", "a = b.max(dim=1)"), ("dimension", "a = b.min(dim=0)")]),
        ("a = b.sum() + sum(b)", [("call", "a = b.mean() + sum(b)"), ("arithmetic", "a = b.sum() - sum(b)")]),
        ("a = b.clamp(min=c)", [("clipping", "a = b")]),
        ("a = np.clip(b, c, d)", [("clipping", "a = b")]),
        ('a = b(c, side="right", kind="stable")', [("keyword", 'a = b(c, kind="stable")')]),
        ("a = b(c, deep=True)", [("constant", "a = b(c, deep=False)")]),
        ("a.b = c", [("statement", "pass")]),
        ("def a(b=1) -> int | None:\n    return b", [
            ("constant", "def a(b=2) -> int | None:"), ("return", "return None"),
        ]),
    ],
)  # fmt: skip
def test_every_place_is_changed_once_in_each_way(source: str, expected: list[tuple[str, str]]) -> None:
    assert changes(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        '"""One + 1."""\ndef a():\n    """Two + 2."""',
        "a: Literal[1, 2]",
        "def a(b: Literal[1]) -> Literal[2]: ...",
        'raise ValueError(f"{a + 1} of {-b}", 1 + 2)',
        "assert a > 0",
        "logger.warning(a + 1)",
        '__all__ = ["a", "b"]',
        "@dataclass(frozen=True)\nclass A:\n    b: int",
        "@lru_cache(maxsize=8)\ndef a(): ...",
        'T = TypeVar("T", covariant=True)',
        'a = "b" + c',
        'a = f"{b + 1}"',
    ],
)
def test_what_is_not_the_method_is_left_alone(source: str) -> None:
    assert changes(source) == []


def test_a_mutant_is_valid_python_that_differs_in_one_line_and_has_an_id_of_its_own() -> None:
    source = (TESTS / "mutation" / "operators.py").read_text()
    found = mutants(source, "operators.py")
    assert len(found) > 100
    assert len({mutant.id for mutant in found}) == len(found)
    for mutant in found:
        ast.parse(mutant.source)
        assert mutant.source.count("\n") <= source.count("\n")
        differing = [
            number
            for number, (old, new) in enumerate(
                zip(source.splitlines(), mutant.source.splitlines(), strict=False), start=1
            )
            if old != new
        ]
        assert differing[0] == mutant.line
        assert mutant.line in mutant.lines


MODULE = """\
def clipped(value, most):
    if value > most:
        return most
    return value


def endless(count):
    while count > 0:
        count -= 1
    return count


def unseen():
    return 7
"""
TEST = """\
from room import tiny


def test_values_above_the_most_are_clipped():
    assert (tiny.clipped(5, 3), tiny.clipped(2, 3)) == (3, 2)


def test_it_ends():
    assert tiny.endless(3) == 0
"""
TABLE = """\
preload = []
[tests]
"room/tiny.py" = ["test_tiny.py"]
"""
EQUIVALENT = """\
[[equivalent]]
file = "room/tiny.py"
before = "if value > most:"
after = "if value >= most:"
reason = "where they are equal it does not matter which is returned"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "room").mkdir(parents=True)
    for name, text in {
        "room/__init__.py": "",
        "room/tiny.py": MODULE,
        "test_tiny.py": TEST,
        "table.toml": TABLE,
        "equivalent.toml": EQUIVALENT,
        "pytest.ini": "[pytest]\nmarkers = slow\naddopts = --import-mode=importlib\n",
    }.items():
        (folder / name).write_text(text)
    return folder


def mutate(project: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mutation", "--table", "table.toml", "--equivalent", "equivalent.toml", *options]
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_mutant_that_a_test_notices_is_killed_and_an_equivalent_one_survives(project: Path) -> None:
    before = contents(project)
    ended = mutate(project, "--json", "../verdicts.json", "--at-least", "70", "--timeout", "1")
    assert ended.returncode == 0, ended.stderr
    verdicts: list[dict[str, Any]] = json.loads((project.parent / "verdicts.json").read_text())
    found = {verdict["after"]: verdict for verdict in verdicts}
    assert {after: verdict["status"] for after, verdict in found.items()} == {
        "if value >= most:": "survived",
        "if (not (value > most)):": "killed",
        "while (not (count > 0)):": "killed",
        "while count >= 0:": "killed",
        "while count > 1:": "killed",
        "count += 1": "timeout",
        "pass": "timeout",
        "count -= 2": "killed",
        "return 8": "survived",
    }
    assert found["if (not (value > most)):"]["killed_by"] == "test_tiny.py::test_values_above_the_most_are_clipped"
    assert found["if value >= most:"]["reason"] == "where they are equal it does not matter which is returned"
    assert found["return 8"]["reason"] is None
    assert (found["if value >= most:"]["covered"], found["return 8"]["covered"]) == (True, False)
    assert "equivalent room/tiny.py:2:14:comparison: where they are equal" in ended.stdout
    assert "survived room/tiny.py:14:12:constant (no test executes it)\n    return 7\n    return 8" in ended.stdout
    assert ended.stdout.splitlines()[-2].split() == ["all", "9", "7", "1", "77.8", "87.5"]
    assert contents(project) == before


def test_too_few_killed_is_an_error_and_a_sample_is_the_same_again(project: Path) -> None:
    options = ("--sample", "2", "--seed", "1", "--list")
    assert mutate(project, *options).stdout == mutate(project, *options).stdout
    assert mutate(project, *options).stdout.count("room/tiny.py:") == 2
    (project / "test_tiny.py").write_text("from room import tiny\ndef test_nothing():\n    pass\n")
    assert mutate(project, "--sample", "1").returncode == 1


def test_a_run_that_is_interrupted_reports_what_it_tried(project: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mutation",
        "--table",
        "table.toml",
        "--equivalent",
        "equivalent.toml",
        "--jobs",
        "1",
    ]
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    with subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("survived room/tiny.py:2:14:comparison")
        running.terminate()
        rest = running.stdout.read()
    assert running.returncode == 2
    assert "mutants  killed" in rest


def test_tests_that_fail_or_do_not_import_the_file_are_refused(project: Path) -> None:
    (project / "test_tiny.py").write_text("def test_nothing():\n    pass\n")
    unseen = mutate(project)
    assert (unseen.returncode, "never import it" in unseen.stderr) == (2, True)
    (project / "test_tiny.py").write_text(TEST.replace("(3, 2)", "(3, 3)"))
    failing = mutate(project)
    assert (failing.returncode, "the tests fail without any mutant" in failing.stderr) == (2, True)
    assert mutate(project, "--files", "other/*").returncode == 2
