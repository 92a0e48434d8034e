"""`make bench`: how fast it is, beside everything one would use instead and beside what the machine can do at all.

    python -m studies.speed
    python -m studies.speed --only layer --only training
    python -m studies.speed --quick

Every part runs in a process of its own, one after the other, so that none finds the memory or the threads of another.
What a part compares takes turns, and medians count. The results go to `results.json` in `--out`, and from there into
the tables and plots of `index.md` beside it; parts that were not asked for stay as they are, and where they are of
another machine or of other versions, nothing is measured. The last line on stdout is one JSON document with what was
measured now. `--quick` runs toy sizes, to see that everything works, and writes nothing.

Knows the command line. Does not know what is measured (`suite`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from studies.speed.suite import PARTS, OtherMachineError, check_beside, here, run_parts, write

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, explain on stderr, print JSON on stdout."""
    parser = argparse.ArgumentParser(prog="python -m studies.speed", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", action="append", choices=list(PARTS), help="this part alone; repeatable")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that everything works; writes nothing")
    parser.add_argument("--out", type=Path, default=PAGE, help="where results go (default: docs/benchmarks)")
    options = parser.parse_args(arguments)
    names = [name for name in PARTS if options.only is None or name in options.only]
    if not options.quick:
        try:
            check_beside(names, here(quick=False), options.out)  # now, not after minutes of measuring
        except OtherMachineError as error:
            parser.error(str(error))
    results = run_parts(names, options.quick, lambda line: print(line, file=sys.stderr, flush=True))
    if not options.quick:
        write(results, options.out)
    print(json.dumps(results, ensure_ascii=False))


if __name__ == "__main__":
    main()
