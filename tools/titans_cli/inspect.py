"""`titans inspect`: what is inside a bundle.

Knows how to lay a manifest out, as tables for people or as JSON. Does not run any graph.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from msgspec.structs import asdict

from titans_cli.options import bundle_argument, json_option
from titans_cli.terminal import PlainTable, print_json, say, show, write_text

if TYPE_CHECKING:
    from titans_format.manifest import Manifest


@click.command(
    epilog="""\b
Example:
  titans inspect model.titans"""
)
@bundle_argument
@click.option("--card", "as_card", is_flag=True, help="Print a model card, the README.md of a model hub.")
@json_option
def inspect(bundle: Path, as_card: bool, as_json: bool) -> None:
    """Show what is inside a bundle.

    Model, parameters, bytes of state per stream, graphs, files with their hashes, and how it was verified. Every hash
    is checked before anything is shown.
    """
    from titans_runtime.bundle import open_bundle
    from titans_runtime.stream.memories import learned_names

    opened = open_bundle(bundle)
    manifest = opened.manifest
    if as_card:
        from titans_format.card import card

        write_text(card(manifest))
        return
    norms = {name: float(np.linalg.norm(opened.initial[name].astype(np.float64))) for name in learned_names(manifest)}
    sizes = {file.file: (bundle / file.file).stat().st_size for file in manifest.files()}
    if as_json:
        print_json({"bundle": str(bundle), **_document(manifest, sizes), "start_norms": norms})
    else:
        _show(manifest, sizes, norms)


def _document(manifest: Manifest, sizes: dict[str, int]) -> dict[str, object]:
    """The manifest and what follows from it, ready for JSON; `sizes` in bytes by file name."""
    return {
        **json.loads(manifest.to_json()),
        "state_bytes": {state.name: state.stream_bytes for state in manifest.states},
        "state_bytes_per_stream": manifest.stream_bytes,
        "file_bytes": sizes,
        "bundle_bytes": sum(sizes.values()),
    }


def _show(manifest: Manifest, sizes: dict[str, int], norms: dict[str, float]) -> None:
    """The same for people, on stdout; `norms` are those of the learned starts."""
    model = manifest.model
    say(f"{model.name}: {model.parameters:,} parameters, {manifest.dtype} weights, opset {manifest.opset}")
    takes = [f"{name} {value}" for name, value in asdict(manifest.inputs).items()]
    if manifest.tokenizer:
        takes.append(f"{manifest.tokenizer.kind} tokenizer")
    if ends := (*manifest.ends.eos, *manifest.ends.stop):
        takes.append(f"text ends at {' or '.join(map(str, ends))}")
    say(", ".join([*takes, f"chunk {manifest.chunk}"]))
    if (template := manifest.chat_template) is not None:
        tokens = [f"{name} {token}" for name, token in template.tokens.items()]
        say(", ".join([f"chat template of {sizes[template.file]:,} bytes", *tokens]))
    defaults = [f"{name} {value}" for name, value in asdict(manifest.generation).items() if value is not None]
    if defaults:
        say(f"generates with {', '.join(defaults)}")
    made = [f"{name} {value}" for name, value in manifest.provenance.items() if "." not in name]  # a.b: settings
    say(f"made with {', '.join(made)}")
    say(_verdict(manifest))
    memory = model.config.get("memory")
    if isinstance(memory, dict) and memory.get("forget"):
        # A configuration from before there was a choice does not name it.
        goal = "its learned start" if memory.get("forget_to") == "start" else "zero"
        say(f"memory of {memory.get('depth')} matrices a head, which forgets towards {goal}")
    if isinstance(memory, dict):
        say(_rule(memory))

    columns = ("tensor", "kind", "type", "shape", "starts as")
    table = PlainTable(*columns, title=f"State of one stream: {_bytes(manifest.stream_bytes)}")
    table.add_column("size", right=True)
    for state in manifest.states:
        shape = " × ".join(map(str, state.shape))
        start = f"learned, norm {norms[state.name]:.3g}" if state.name in norms else state.initial.kind
        table.add_row(state.name, state.kind, state.dtype, shape, start, _bytes(state.stream_bytes))
    show(table)

    uses = {graph.file: f"graph {graph.name}, {_span(graph.tokens)}" for graph in manifest.graphs}
    table = PlainTable("file", "what", "sha256", title=f"Files: {_bytes(sum(sizes.values()))}, all hashes match")
    table.add_column("size", right=True)
    for file in manifest.files():
        table.add_row(file.file, uses.get(file.file, "data"), file.sha256[:12], _bytes(sizes[file.file]))
    show(table)


def _rule(memory: dict[str, Any]) -> str:
    """Objective and retention of a memory; l2 in a configuration from before there was a choice."""
    objective, retention = memory.get("objective", "l2"), memory.get("retention", "l2")
    exponent = f" of p {memory.get('objective_p')}" if objective == "lp" else ""
    momentum = "with momentum" if memory.get("momentum") else "without momentum"
    link = ""
    if retention == "lq":
        link = f" of q {memory.get('retention_q')}, {memory.get('link')}"
    if retention != "l2":
        link += f", linked at every {memory.get('link_at')}"
    return f"learns {momentum}, objective {objective}{exponent}, retention {retention}{link}"


def _verdict(manifest: Manifest) -> str:
    report = manifest.verification
    if report is None:
        return "not verified; run titans verify with the checkpoint it was made from"
    verdict = "agrees with its checkpoint" if report.get("ok") is True else "DISAGREES with its checkpoint"
    tokens, error = report.get("tokens"), report.get("max_abs_error")
    if not isinstance(tokens, int) or not isinstance(error, (int, float)):
        return verdict
    return f"{verdict} over {tokens:,} tokens, largest error {error:.1e}"


def _span(tokens: int) -> str:
    return {0: "between tokens", 1: "1 token a call"}.get(tokens, f"{tokens} tokens a call")


def _bytes(size: int) -> str:
    """`size` for people: 512 B, 3.4 KiB, 12.0 MiB."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
