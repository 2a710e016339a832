"""Run a command once for every seed, all at the same time: ``python repeat.py --seeds 3 -- COMMAND ... {seed} ...``.

``{seed}`` in the command's words becomes 0, 1, ... The processors are divided among the runs. On two cores that takes
less time than one run after another on both. The command fails if a run fails, after all have ended.

``--trust MODULE,...`` lets the command build networks with modules of the working folder, as the variables PYTHONPATH
and DFSS_TRUSTED_BUILDERS would.
"""

import argparse
import os
import subprocess
from pathlib import Path


def main() -> None:
    """Start the runs, wait for them and report failures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, required=True)
    parser.add_argument("--trust", help="modules of the working folder whose factories may build networks")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    threads = max(1, (os.cpu_count() or 1) // options.seeds)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    if options.trust:
        folders = [str(Path.cwd()), *filter(None, [environment.get("PYTHONPATH")])]
        environment |= {"PYTHONPATH": os.pathsep.join(folders), "DFSS_TRUSTED_BUILDERS": options.trust}
    runs = [
        subprocess.Popen([word.replace("{seed}", str(seed)) for word in options.command], env=environment)
        for seed in range(options.seeds)
    ]
    failed = [seed for seed, run in enumerate(runs) if run.wait()]
    if failed:
        raise SystemExit(f"{options.command[0]} failed with seed {', '.join(map(str, failed))}")


if __name__ == "__main__":
    main()
