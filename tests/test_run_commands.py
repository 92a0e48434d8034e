"""What is run of a printed page: every command, whole, and none that could not end here."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[1] / "scripts/docs/run_commands.py"))

PAGE = """\
Prose with `titans run` in it.

```sh
# a comment, then a command over two lines
titans train --steps 3 \\
  --out here

for seed in 0 1; do
  titans train --seed $seed
done
```

```python
no = "shell"
```

- a list

  ```sh
  titans doctor
  ```
"""


def test_commands_of_a_page_are_found_whole_and_in_order() -> None:
    found = [command for block in SCRIPT["blocks"](PAGE) for command in SCRIPT["commands"](block)]
    assert found == [
        "titans train --steps 3 \\\n  --out here",
        "for seed in 0 1; do\n  titans train --seed $seed\ndone",
        "titans doctor",
    ]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("venv/bin/pip install '.[cpu]'", "installs"),
        ("titans serve model.titans", "talks to somebody"),
        ("titans build model.titans --backend tensorrt-rtx", "needs a device"),
        ("python -m studies.quality.recall", "a study"),
        ("titans run model.titans --prompt 'def main():'", None),
    ],
)
def test_what_cannot_end_here_is_left_out_with_its_reason(command: str, why: str | None) -> None:
    assert SCRIPT["reason"](command) == why


def test_a_command_fails_with_its_status_and_its_words(tmp_path: Path) -> None:
    status, _, said = SCRIPT["run"]("echo before; false; echo after", tmp_path)
    assert (status, said) == (1, "before\n")


def test_a_rehearsal_changes_how_long_a_training_is_and_nothing_else() -> None:
    printed = "titans train --task text --steps 500 --warmup 50 --save-every 100 --lr 4e-3 --out recall"
    rehearsed = "titans train --task text --steps 3 --warmup 1 --save-every 1 --lr 4e-3 --out recall"
    assert SCRIPT["shortened"](printed) == rehearsed
    assert SCRIPT["shortened"]("titans eval x --gap 1000") == "titans eval x --gap 1000"
