"""`titans state adopt` and `titans state replay`: memories that go on with another model.

Knows the options and what is printed. What fits is the runtime's knowledge, what it is worth `titans_measure`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from titans_cli.options import json_option
from titans_cli.terminal import PlainTable, print_json, prompt_progress, say, show
from titans_format.files import read_given, read_piped, read_regular, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from titans_measure.quality.adoption import Reading
    from titans_runtime import Model

_PATH = click.Path(path_type=Path)
_LONGEST_JOURNAL = 1 << 30  # bytes


@click.command(
    epilog="""\b
Examples:
  titans state adopt me.state --bundle model-int8.titans --out me-int8.state
  titans state adopt me.state --bundle tuned.titans --from model.titans --data notes.txt --out me-tuned.state"""
)
@click.argument("file", type=_PATH)
@click.option("--bundle", type=_PATH, required=True, help="The model that is to go on from the state.")
@click.option("--out", type=_PATH, required=True, help="Save the adopted session here.")
@click.option("--from", "before", type=_PATH, help="The model that the state was saved with; measures the drift.")
@click.option("--data", type=_PATH, help="Text to measure on; - is stdin. [default: random tokens]")
@click.option("--tokens", type=click.IntRange(2), default=512, show_default=True, help="Tokens to measure on at most.")
@click.option("--journal", type=_PATH, help="The journal of the memory; measures a replay too.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@json_option
def adopt(
    file: Path,
    bundle: Path,
    out: Path,
    before: Path | None,
    data: Path | None,
    tokens: int,
    journal: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Move a saved session to another model of the same shape.

    That is another precision of the checkpoint, or a successor that was trained further. The numbers of the memory stay
    as they are. A state that does not fit is refused, and so are numbers that the new precision cannot hold.

    With --from or --data both models read on, and the report says how far they drift apart: nats per token, the KL
    divergence from the old model, and how often both find the same token the likeliest. A fresh memory of the new model
    stands beside it, and with --journal one that has read everything again.
    """
    from titans_runtime import StateError
    from titans_runtime.atomic import check_writable, write_atomically
    from titans_runtime.bundle import open_bundle
    from titans_runtime.stream.state_adopt import adopted
    from titans_runtime.stream.state_file import read_file, read_header

    if out.exists() and not force:
        raise StateError(f"{out} exists", "choose another --out, or replace it with --force")
    check_writable(out)
    manifest = open_bundle(bundle).manifest
    old = read_file(file)
    new = adopted(manifest, old, str(file))
    header = read_header(new, str(file))
    readings: dict[str, Reading] = {}
    same = None
    if before is not None or data is not None or journal is not None:
        readings, same = _measured(old, new, bundle, before, data, tokens, journal)
    write_atomically(out, new)
    if as_json:
        print_json(
            {
                "file": str(out), "model": header.model, "position": header.position, "same_checkpoint": same,
                "tokens": tokens if readings else 0,
                "readings": {name: reading.as_json() for name, reading in readings.items()},
            }
        )  # fmt: skip
        return
    say(f"{out}: {header.position:,} tokens, adopted by {header.model}")
    if same is not None:
        say("both are of one checkpoint" if same else "the new model was trained further, or is another one")
    if readings:
        table = PlainTable("memory")
        for column in ("nats per token", "KL from the first", "same likeliest token"):
            table.add_column(column, right=True)
        for name, reading in readings.items():
            table.add_row(name, f"{reading.nats:.4f}", f"{reading.kl:.3g}", f"{reading.top1:.1%}")
        show(table)


@click.command(
    epilog="""\b
Example:
  titans state replay journal.json --bundle tuned.titans --out me-tuned.state"""
)
@click.argument("journal", type=_PATH)
@click.option("--bundle", type=_PATH, required=True, help="The model that is to read it.")
@click.option("--out", type=_PATH, required=True, help="Save the session here.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@json_option
def replay(journal: Path, bundle: Path, out: Path, force: bool, as_json: bool) -> None:
    """Let a model read a journal again, for a memory that it cannot adopt.

    A journal holds the token ids of everything that a memory has read and written. `titans serve --journal` keeps one
    for each memory, and GET /v1/memories/{id}/journal gives it. It needs the same tokenizer.
    """
    import titans_runtime
    from titans_runtime.atomic import check_writable

    ids = _read_journal(journal)
    check_writable(out)
    model = titans_runtime.load(bundle)
    session = model.session()
    session.check_save(out, force=force)
    _feed(session, ids)
    session.save(out, force=force)
    if as_json:
        print_json({"file": str(out), "model": model.manifest.model.name, "position": session.position})
    else:
        say(f"{out}: {session.position:,} tokens, read again by {model.manifest.model.name}")


def _measured(
    old: bytes, new: bytes, bundle: Path, before: Path | None, data: Path | None, tokens: int, journal: Path | None
) -> tuple[dict[str, Reading], bool | None]:
    """How the streams read on, and whether both models are of one checkpoint, as far as bundles say."""
    import titans_runtime
    from titans_measure.quality.adoption import compare_readings

    model = titans_runtime.load(bundle)
    streams, same = {}, None
    if before is not None:
        predecessor = titans_runtime.load(before)
        streams["old model"] = predecessor.restore_bytes(old)
        sources = [each.manifest.provenance.get("checkpoint.weights") for each in (predecessor, model)]
        same = sources[0] == sources[1] if all(sources) else None
    streams["adopted"] = model.restore_bytes(new)
    if journal is not None:
        streams["replayed"] = model.session()
        _feed(streams["replayed"], _read_journal(journal))
    streams["fresh"] = model.session()
    return compare_readings(streams, _ids(model, data, tokens)), same


def _ids(model: Model, data: Path | None, tokens: int) -> list[int]:
    import sys

    import numpy as np

    if data is not None:
        content = read_piped(sys.stdin.buffer) if data == Path("-") else read_given(data)
        return model.encode(content)[:tokens]
    if model.vocab_size is None:
        raise click.UsageError("a continuous model has no tokens to compare; leave out --from, --data and --journal")
    return [int(token) for token in np.random.default_rng(0).integers(0, model.vocab_size, tokens)]


def _feed(session: object, ids: Sequence[int]) -> None:
    """In pieces, with a progress bar."""
    from titans_runtime import Session
    from titans_runtime.stream.session import PIECE

    assert isinstance(session, Session)
    with prompt_progress() as progress:
        for start in range(0, len(ids), PIECE):
            session.feed(list(ids[start : start + PIECE]))
            progress(min(start + PIECE, len(ids)), len(ids))


def _read_journal(path: Path) -> list[int]:
    from titans_runtime import StateError
    from titans_runtime.stream.journal import read_journal

    try:
        return read_journal(read_regular(path, _LONGEST_JOURNAL), str(path))
    except FileNotFoundError:
        raise StateError(f"{path} is missing", "check the path") from None
    except OSError as error:
        raise StateError(shown(path, error), "give a journal") from error
