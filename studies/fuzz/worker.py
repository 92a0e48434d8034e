"""One block of cases in a process of its own, so that a crash or a hang ends a block and not the run.

    python -m studies.fuzz.worker BUNDLE TARGET SEED EXAMPLES CURRENT

Before a case runs it is written to the file CURRENT, where whoever watches finds it if this process dies. Hypothesis
draws the cases from the seed and shrinks one that fails. The last line on stdout is the block's result as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from studies.fuzz import streams
from studies.fuzz.targets import CASES, Case, DefectError, check
from studies.fuzz.victim import Victim

MEMORY = 6 * 2**30  # bytes of address space; a file that asks for more than this is to be refused, not believed


def run_block(bundle: Path, target: str, number: int, examples: int, current: Path) -> dict[str, object]:
    """Run `examples` cases of a target."""
    verdicts: Counter[str] = Counter()
    failed: list[tuple[Case, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        victim = Victim(bundle, Path(folder))

        @seed(number)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(CASES[target])
        def block(case: Case) -> None:
            current.write_text(json.dumps(case), encoding="utf-8")
            try:
                verdicts[check(victim, target, case)] += 1
            except DefectError as error:
                failed.append((case, str(error)))
                raise

        try:
            block()
        except DefectError:
            case, error = failed[-1]  # the smallest that Hypothesis found
            return {"verdicts": verdicts, "failed": case, "error": error, "interrupts": streams.delivered}
    return {"verdicts": verdicts, "failed": None, "error": None, "interrupts": streams.delivered}


def main() -> None:
    """Run the block that the command line names."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    bundle, target, number, examples, current = sys.argv[1:]
    print(json.dumps(run_block(Path(bundle), target, int(number), int(examples), Path(current))))


if __name__ == "__main__":
    main()
