"""`titans state`: saved sessions, looked into and compared, without the model they belong to.

Knows how a state file is laid out for people and as JSON. Runs no graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from titans_cli.options import json_option
from titans_cli.state_adopt import adopt, replay
from titans_cli.terminal import PlainTable, print_json, say, show

if TYPE_CHECKING:
    from titans_runtime.arrays import Array
    from titans_runtime.stream.memories import MemoryDistance
    from titans_runtime.stream.state_file import Header


@click.group(
    epilog="""\b
Examples:
  titans state inspect me.state
  titans state diff yesterday.state today.state
  titans state adopt me.state --bundle model-int8.titans --out me-int8.state"""
)
def state() -> None:
    """Look into saved sessions, compare two, or move one to another model.

    The exit code of diff is 1 if they differ.
    """


state.add_command(adopt)
state.add_command(replay)


@state.command(
    epilog="""\b
Example:
  titans state inspect me.state --json
  titans state inspect me.state --bundle model.titans"""
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="Its model; adds how far memories are from their start.",
)
@json_option
def inspect(file: Path, bundle: Path | None, as_json: bool) -> None:
    """Show what is in a saved session: position, surprise, and the size and norm of every tensor.

    The norm is the distance from zero. With --bundle the distance of every memory from its learned start stands beside
    it, and memories that have faded to nothing are named. The checksum of the file is checked first.
    """
    header, tensors = _read(file)
    memories, dead = ({}, []) if bundle is None else _memories(file, header, tensors, bundle)
    document = {
        "file": str(file),
        "file_bytes": file.stat().st_size,
        **_facts(header),
        "tensors": {
            name: {
                "dtype": str(array.dtype),
                "shape": list(array.shape),
                "bytes": array.nbytes,
                "norm": _norm(array),
                **({"distance_from_start": memories[name].from_start} if name in memories else {}),
            }
            for name, array in tensors.items()
        },
        **({} if bundle is None else {"dead_memories": dead}),
    }
    if as_json:
        print_json(document)
        return
    say(f"{file}: {header.position:,} tokens of {header.model}, {header.commits:,} commits")
    totals = header.totals
    say(f"surprise {totals.mean:.4g} ± {totals.deviation:.4g} per token, {totals.highest:.4g} at most")
    packed = ", compressed" if header.compressed else ""
    say(f"{file.stat().st_size:,} bytes{packed}, checksum matches, model identity {header.identity[:12]}")
    table = PlainTable("tensor", "type", "shape")
    table.add_column("norm", right=True)
    if bundle is not None:
        table.add_column("from its start", right=True)
    for name, array in tensors.items():
        row = [name, str(array.dtype), " × ".join(map(str, array.shape)), f"{_norm(array):.4g}"]
        far = [f"{memories[name].from_start:.4g}" if name in memories else "–"]
        table.add_row(*row, *(far if bundle is not None else []))
    show(table)
    if dead:
        from titans_runtime.stream.memories import dead_warning

        say(f"warning: {dead_warning(dead)}", err=True)


@state.command(
    epilog="""\b
Example:
  titans state diff yesterday.state today.state --json"""
)
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@json_option
def diff(first: Path, second: Path, as_json: bool) -> None:
    """Compare two saved sessions of one model, tensor by tensor.

    Exit code 0 if they are the same, 1 if they differ. Rows that only one of them has yet count as different.
    """
    from titans_runtime import StateError

    (header, ours), (other, theirs) = _read(first), _read(second)
    if header.identity != other.identity:
        raise StateError(f"{first} and {second} belong to different models", "compare two states of one model")
    names = sorted(set(ours) | set(theirs))
    changes = {name: _change(ours.get(name), theirs.get(name)) for name in names}
    same = header.position == other.position and all(change["same"] for change in changes.values())
    if as_json:
        print_json({"same": same, "first": _facts(header), "second": _facts(other), "tensors": changes})
    else:
        say(f"{header.position:,} tokens in {first}, {other.position:,} in {second}")
        table = PlainTable("tensor")
        for column in ("largest difference", "relative to the norm"):
            table.add_column(column, right=True)
        for name, change in changes.items():
            if not change["same"]:
                table.add_row(name, _number(change["max_abs_difference"]), _number(change["relative_difference"]))
        if same:
            say("the same, bit for bit")
        else:
            show(table)
    if not same:
        raise SystemExit(1)


def _read(file: Path) -> tuple[Header, dict[str, Array]]:
    from titans_runtime.stream.state_file import read_file, read_header, read_tensors

    data = read_file(file)
    header = read_header(data, str(file))
    return header, read_tensors(data, header, str(file))


def _memories(
    file: Path, header: Header, tensors: dict[str, Array], bundle: Path
) -> tuple[dict[str, MemoryDistance], list[str]]:
    """How far the memories of a state are from where they started in `bundle`, and which are dead."""
    from titans_runtime import StateError
    from titans_runtime.bundle import open_bundle
    from titans_runtime.stream.memories import dead_memories, learned_names, memory_distances

    opened = open_bundle(bundle)
    if opened.manifest.state_identity != header.identity:
        raise StateError(f"{file} belongs to another model than {bundle}", "give the bundle that it was saved with")
    start = {name: opened.initial[name] for name in learned_names(opened.manifest)}
    return memory_distances(start, tensors), dead_memories(start, tensors)


def _facts(header: Header) -> dict[str, object]:
    return {
        "model": header.model,
        "identity": header.identity,
        "position": header.position,
        "commits": header.commits,
        "compressed": header.compressed,
        "surprise_mean": header.totals.mean,
        "surprise_deviation": header.totals.deviation,
        "surprise_highest": header.totals.highest,
    }


def _change(first: Array | None, second: Array | None) -> dict[str, object]:
    """What differs between two tensors; None for figures that shapes do not allow."""
    if first is None or second is None or first.shape != second.shape:
        return {"same": False, "max_abs_difference": None, "relative_difference": None}
    same = first.tobytes() == second.tobytes()
    if first.size == 0:
        return {"same": same, "max_abs_difference": 0.0, "relative_difference": 0.0}
    gap = second.astype(np.float64) - first.astype(np.float64)
    norm = _norm(first)
    return {
        "same": same,
        "max_abs_difference": float(np.abs(gap).max()),
        "relative_difference": float(np.linalg.norm(gap)) / norm if norm else None,
    }


def _norm(array: Array) -> float:
    return float(np.linalg.norm(array.astype(np.float64)))


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "–"
