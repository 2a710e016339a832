"""Change the method's code at one place at a time and ask whether its tests fail: `make mutants`.

    PYTHONPATH=tests python -m mutation --files "distill/*" --sample 50

A survivor is a change that no test notices. The exit status is 1 where fewer are killed than ``--at-least`` says.
"""

import argparse
import collections
import contextlib
import dataclasses
import fnmatch
import json
import os
import random
import signal
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mutation.operators import Mutant, mutants
from mutation.running import Verdict, measure_baseline, preload, try_all

HERE = Path(__file__).parent
ENVIRONMENT = {
    # Nothing that is imported before a fork may start a thread.
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"),
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow's allocator
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # plugins of libraries would be imported for every mutant
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    options = _parser().parse_args(arguments)
    table = tomllib.loads(options.table.read_text())
    reasons = _reasons(options.equivalent)
    root = Path.cwd()
    patterns = options.files or ["*"]
    tests = {file: list(by) for file, by in table["tests"].items() if any(fnmatch.fnmatch(file, p) for p in patterns)}
    found = [mutant for file in tests for mutant in mutants((root / file).read_text(), file)]
    if options.sample is not None and options.sample < len(found):
        chosen = random.Random(options.seed).sample(range(len(found)), options.sample)
        found = [found[index] for index in sorted(chosen)]
    if not found:
        _say(f"no mutants: {options.table} names no file like {' '.join(patterns)}, or nothing in it can be changed")
        return 2
    if options.list:
        for mutant in found:
            print(f"{mutant.id}\n    {mutant.before}\n    {mutant.after}")
        return 0
    files = {mutant.file for mutant in found}
    tests = {file: by for file, by in tests.items() if file in files}
    try:
        verdicts = _try(found, tests, table["preload"], root, options.jobs, options.timeout)
    except RuntimeError as error:
        _say(str(error))
        return 2
    if not verdicts:
        return 2
    _report(verdicts, reasons)
    if options.json:
        options.json.write_text(json.dumps([_record(verdict, reasons) for verdict in verdicts], indent=1) + "\n")
    share = 100 * sum(verdict.killed for verdict in verdicts) / len(verdicts)
    return int(share < options.at_least) if len(verdicts) == len(found) else 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mutation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", nargs="+", metavar="GLOB", help="only these files of the table")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default: 2)")
    parser.add_argument("--sample", type=int, metavar="N", help="a random sample of N mutants")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample (default: 0)")
    parser.add_argument("--list", action="store_true", help="list the mutants and try none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every verdict to a file")
    parser.add_argument("--at-least", type=float, default=95.0, metavar="PERCENT", help="to be killed (default: 95)")
    parser.add_argument(
        "--timeout", type=float, default=20.0, metavar="SECONDS", help="the least that a mutant is given (default: 20)"
    )
    parser.add_argument("--table", type=Path, default=HERE / "targets.toml", help="files to change and their tests")
    parser.add_argument(
        "--equivalent", type=Path, default=HERE / "equivalent.toml", help="mutants that no test can kill, with reasons"
    )
    return parser


def _try(
    found: list[Mutant], tests: dict[str, list[str]], libraries: list[str], root: Path, jobs: int, least: float
) -> list[Verdict]:
    os.environ |= ENVIRONMENT
    verdicts: list[Verdict] = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does, with no child left
    with (
        contextlib.suppress(KeyboardInterrupt),
        tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as scratch,
    ):
        sys.path.insert(0, str(root))
        before = set(sys.modules)
        preload(libraries)
        packages = {file.split("/")[0] for file in tests}
        if early := [name for name in set(sys.modules) - before if name.split(".")[0] in packages]:
            raise RuntimeError(f"the table's preload imports what is to be changed: {', '.join(sorted(early))}")
        sys.pycache_prefix, sys.dont_write_bytecode = str(Path(scratch, "pycache")), False
        _say("running the tests without any mutant")
        baseline = measure_baseline(root, tests, Path(scratch))
        _say(
            f"{len(baseline.seconds)} tests pass in {sum(baseline.seconds.values()):.0f} s; trying {len(found)} mutants"
        )
        for verdict in try_all(found, tests, baseline, root, Path(scratch), jobs, least):
            verdicts.append(verdict)
            if not verdict.killed:
                unseen = "" if verdict.covered else " (no test executes it)"
                print(f"{verdict.status} {verdict.mutant.id}{unseen}")
                print(f"    {verdict.mutant.before}\n    {verdict.mutant.after}")
                sys.stdout.flush()
            if len(verdicts) % 50 == 0:
                _say(f"{len(verdicts)} of {len(found)} tried")
    if len(verdicts) < len(found):
        _say(f"interrupted: {len(verdicts)} of {len(found)} tried")
    places = {mutant.id: place for place, mutant in enumerate(found)}
    return sorted(verdicts, key=lambda verdict: places[verdict.mutant.id])


Reasons = dict[tuple[str, str, str], str]


def _reasons(path: Path) -> Reasons:
    """Why a mutant is equivalent, by file, line before and line after."""
    entries = tomllib.loads(path.read_text()).get("equivalent", []) if path.exists() else []
    return {(entry["file"], entry["before"], entry["after"]): entry["reason"] for entry in entries}


def _key(mutant: Mutant) -> tuple[str, str, str]:
    return mutant.file, mutant.before, mutant.after


def _report(verdicts: list[Verdict], reasons: Reasons) -> None:
    survivors = [verdict.mutant for verdict in verdicts if not verdict.killed]
    excused = [mutant for mutant in survivors if _key(mutant) in reasons]
    for mutant in excused:
        print(f"equivalent {mutant.id}: {reasons[_key(mutant)]}")
    for verdict in verdicts:
        if verdict.killed and _key(verdict.mutant) in reasons:
            print(f"not equivalent after all {verdict.mutant.id}: killed by {verdict.killed_by}")
    made = collections.Counter(verdict.mutant.file for verdict in verdicts)
    alive = collections.Counter(mutant.file for mutant in survivors)
    excused_by_file = collections.Counter(mutant.file for mutant in excused)
    rows = [(file, count, alive[file], excused_by_file[file]) for file, count in made.items()]
    rows.append(("all", len(verdicts), len(survivors), len(excused)))
    width = max(len(file) for file, *_ in rows)
    print(f"\n{'file':{width}}  mutants  killed  equivalent       %  % of the others")
    for file, count, surviving, equivalent in rows:
        killed = count - surviving
        others = 100 * killed / (count - equivalent) if count > equivalent else 100.0
        print(f"{file:{width}}  {count:7}  {killed:6}  {equivalent:10}  {100 * killed / count:6.1f}  {others:15.1f}")
    late = sum(verdict.status == "timeout" for verdict in verdicts)
    print(
        f"{sum(verdict.seconds for verdict in verdicts) / len(verdicts):.1f} s a mutant; {late} ended by their timeout"
    )


def _record(verdict: Verdict, reasons: Reasons) -> dict[str, Any]:
    mutant = dataclasses.asdict(verdict.mutant)
    kept = {name: mutant[name] for name in ("file", "line", "column", "operator", "before", "after")}
    outcome = {name: getattr(verdict, name) for name in ("status", "killed_by", "covered", "seconds")}
    return {"id": verdict.mutant.id, **kept, **outcome, "reason": reasons.get(_key(verdict.mutant))}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
