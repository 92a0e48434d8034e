"""Writes the sizes of docs/edge.md: bundles of a model with random weights, and the memory they take here.

    python scripts/docs/edge_sizes.py            # some minutes, 6 GiB of memory and 2 GiB of disk
    python scripts/docs/edge_sizes.py --preset tiny --show

The table stands between two comments of the page, which this replaces.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import click
import torch

from titans_core.model import TitansModel
from titans_core.presets import preset
from titans_export.export import export_model
from titans_measure.speed.budget import Budget, budget

PAGE = Path(__file__).resolve().parents[2] / "docs" / "edge.md"
DTYPES = ("fp32", "fp16", "int8")
MEMORIES = (1, 2, 4, 8)  # GiB
_BETWEEN = re.compile(r"(<!-- sizes: begin -->\n).*(<!-- sizes: end -->)", re.DOTALL)


def mebibytes(size: int) -> str:
    """A size for the table."""
    return f"{size / 2**20:,.0f} MiB" if size else ""


def table(found: dict[str, tuple[int, Budget]]) -> str:
    """The table: bytes of bundles and budgets by dtype."""
    rows = {
        "bundle with graphs": [mebibytes(size) for size, _ in found.values()],
        "weights": [mebibytes(each.weights) for _, each in found.values()],
        "float32 copies of half-precision weights": [mebibytes(each.float32_copies) for _, each in found.values()],
        "runtime (Python, NumPy, ONNX Runtime)": [mebibytes(each.runtime) for _, each in found.values()],
        "working memory": [mebibytes(each.working) for _, each in found.values()],
        "state of one stream": [mebibytes(each.state_per_stream) for _, each in found.values()],
        "one more stream, measured": [mebibytes(each.measured_per_stream) for _, each in found.values()],
    }
    for memory in MEMORIES:
        rows[f"streams in {memory} GiB"] = [f"{each.streams(memory * 2**30):,}" for _, each in found.values()]
    lines = ["| | " + " | ".join(found) + " |", "|---" * (1 + len(found)) + "|"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()), ""])


@click.command()
@click.option("--preset", "name", default="170m", show_default=True)
@click.option("--show", is_flag=True, help="Print the table, and leave the page.")
def main(name: str, show: bool) -> None:
    """Export, measure, and write the page's table."""
    found = {}
    for dtype in DTYPES:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder) / "model.titans"
            export_model(TitansModel(preset(name, variant="mac")), bundle, dtype=dtype, verify_tokens=0)
            size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
            found[dtype] = (size, budget(bundle))
        click.echo(f"{dtype}: {found[dtype][1]}", err=True)
    made = table(found)
    if show:
        click.echo(made)
        return
    page, times = _BETWEEN.subn(lambda match: match[1] + made + match[2], PAGE.read_text(encoding="utf-8"))
    if times != 1:
        raise click.ClickException(f"{PAGE} has no place for the sizes")
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
