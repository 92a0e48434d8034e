"""`python -m bench.gpu`: the comparisons on a GPU (`studies.speed.gpu`) under the short name in the documents."""

from __future__ import annotations

from studies.speed.gpu import main

if __name__ == "__main__":
    main()
