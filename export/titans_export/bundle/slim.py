"""What one target needs of a bundle, as a bundle of its own: for machines where every megabyte counts.

A CPU runs a half-precision bundle's twin graphs and never its others; a GPU the other way round; native TensorRT runs
engines, which hold their own copies of the weights, and no graph at all. The manifest stays what it was, so saved
states go from one to the other, and says what was left out and for whom. Knows files. Knows no TensorRT.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from titans_export.bundle.writer import staged, write_manifest
from titans_export.errors import ExportError
from titans_export.tensorrt.engines import ENGINES
from titans_export.tensorrt.options import MODULES
from titans_format.files import MIB, read_regular
from titans_format.manifest import Manifest
from titans_runtime.bundle import open_bundle
from titans_runtime.devices.select import PROVIDERS


@dataclass(frozen=True)
class Slimmed:
    """What became of a bundle: sizes in bytes, engines counted in both."""

    target: str
    bytes_before: int
    bytes_after: int
    omitted: tuple[str, ...]
    engines: str | None  # the folder that was kept


def slim(bundle: Path, out: Path, *, target: str, engines: str | None = None, overwrite: bool = False) -> Slimmed:
    """Write the part of a bundle that a provider needs.

    Args:
        bundle: the bundle directory; its hashes are checked first.
        out: the directory to make.
        target: the provider that will run it.
        engines: with native TensorRT, the folder below `engines/` to keep; None is the only one there is.
        overwrite: replace a bundle that is there.

    Raises:
        BundleError: the bundle is damaged.
        ExportError: the bundle is not for this target, has no engines for it or several, or `out` cannot be written.
    """
    opened = open_bundle(bundle)
    manifest = opened.manifest
    if target not in PROVIDERS:
        raise ExportError(f"unknown target {target!r}", f"use one of {', '.join(PROVIDERS)}")
    if manifest.providers is not None and target not in manifest.providers:
        raise ExportError(
            f"{bundle} is for {', '.join(manifest.providers)} only, not for {target}", "name another target"
        )
    if engines is not None and target not in MODULES:
        raise ExportError(f"{target} runs no engines of a bundle", "leave --engines out, or choose another --target")
    folder = _engines(bundle, target, engines) if target in MODULES else None
    whole = folder is not None and not any(_sidecar(path).get("strip_weights") for path in folder.glob("*.json"))
    omitted = tuple(sorted({*manifest.omitted, *_not_needed(manifest, target, whole_engines=whole)}))
    smaller = replace(manifest, providers=(target,), omitted=omitted)
    with staged(out, overwrite) as stage:
        for file in smaller.files():  # the bytes that were hashed, whatever is under that name by now
            content = opened.contents.get(file.file)
            (stage / file.file).parent.mkdir(parents=True, exist_ok=True)
            (stage / file.file).write_bytes(opened.weight_file.data.data if content is None else content)
        if folder is not None:
            shutil.copytree(folder, stage / ENGINES / folder.name, symlinks=True)
        write_manifest(stage, smaller)
        after = size(stage)
    return Slimmed(target, size(bundle), after, omitted, None if folder is None else folder.name)


def _not_needed(manifest: Manifest, target: str, *, whole_engines: bool) -> list[str]:
    """Files that a provider never reads. Engines without weights are refitted from the graphs."""
    graphs = [graph.file for graph in manifest.graphs]
    twins = [twin.file for graph in manifest.graphs for twin in (graph.cpu, graph.fused) if twin is not None]
    if whole_engines:
        return [*graphs, *twins, manifest.weights.file]
    if target == "cpu":
        return [graph.file for graph in manifest.graphs if graph.cpu is not None]
    return twins


def _engines(bundle: Path, target: str, wanted: str | None) -> Path:
    """The folder of a target's engines."""
    found = {
        path.parent.name: path.parent
        for path in (bundle / ENGINES).glob("*/*.json")
        if _sidecar(path).get("backend") == target
    }
    if wanted is not None and wanted in found:
        return found[wanted]
    if not found:
        raise ExportError(f"{bundle} has no engines for {target}", f"run: titans build {bundle} --backend {target}")
    if wanted is None and len(found) == 1:
        return next(iter(found.values()))
    what = "has several sets of engines" if wanted is None else f"has no engines {wanted!r}"
    raise ExportError(f"{bundle} {what} for {target}", f"choose with --engines: {', '.join(sorted(found))}")


def _sidecar(path: Path) -> dict[str, object]:
    """What a sidecar says. Raises `ExportError` if it is not one."""
    try:
        found = json.loads(read_regular(path, MIB))
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path} is not an engine's sidecar ({error})", "build the engines again") from error
    return found if isinstance(found, dict) else {}


def size(directory: Path) -> int:
    """Bytes of everything below a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
