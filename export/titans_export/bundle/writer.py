"""Writing a bundle: everything into a temporary directory beside the target, then one rename.

Knows the files of a bundle and their order. Does not know how graphs are made (`graph.model`) or verified.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from msgspec import structs
from msgspec.structs import replace
from torch import Tensor

from titans_core.pretrained import Texts
from titans_export.bundle.texts import (
    AS_FOUND,
    EndNames,
    check_template,
    find_ends,
    generation_defaults,
    tokenizer_of,
    with_closing,
)
from titans_export.bundle.weights import write_tensors
from titans_export.errors import ExportError
from titans_export.graph.builder import OPSET
from titans_export.graph.cost import cost
from titans_export.graph.model import (
    ExportedGraph,
    check,
    export_graph,
    fused_graph,
    refer_to_weights,
    state_table,
)
from titans_export.models.precision import precision, ready_blocks
from titans_export.models.protocol import SteppableModel
from titans_export.passes.float32_for_cpu import float32_for_cpu, is_half
from titans_export.passes.fold_into_products import fold_into_products
from titans_export.passes.quantise import quantise
from titans_export.passes.weights_on_left import weights_on_left
from titans_format.document import MANIFEST_FILE
from titans_format.fields import ChatTemplateInfo, ModelInfo, TokenizerInfo
from titans_format.folders import replace_folder
from titans_format.manifest import Manifest
from titans_format.progress import ReportProgress
from titans_format.series import SeriesInfo
from titans_format.specs import DataFile, GraphSpec
from titans_runtime.arguments import is_unicode
from titans_runtime.atomic import replace_file
from titans_tasks.tokens import Tokenizer

WEIGHTS_FILE = "weights.safetensors"
INITIAL_STATE_FILE = "initial_state.safetensors"
TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
NO_TEXTS = Texts()  # nothing is known of text


@contextmanager
def staged(out: Path, overwrite: bool) -> Iterator[Path]:
    """A directory that becomes `out` if the block succeeds, and is removed if it does not.

    Raises:
        ExportError: `out` exists and `overwrite` is off, or cannot be written, or the disk is full.
    """
    target = Path(os.path.realpath(out))  # of a symbolic link, what it leads to is replaced, and the link stays
    _check_place(out, target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise ExportError(f"cannot write {out} ({error.strerror})", "choose a directory you can write to") from error
    try:
        stage.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o755)  # mkdtemp's is private to the user
        yield stage
        _check_place(out, target, overwrite)  # somebody may have put something there in the meantime
        replace_folder(stage, target)
    except OSError as error:
        raise ExportError(f"could not write {out} ({error})", "free some space or check the permissions") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)  # what failed, or what was replaced


def _check_place(out: Path, target: Path, overwrite: bool) -> None:
    """Raise `ExportError` if something is there that is not to be replaced, or no bundle could be used there."""
    if not is_unicode(target):
        raise ExportError(f"{target} is not UTF-8, and no runtime could open a bundle there", "choose another --out")
    if not target.exists():
        return
    if not overwrite:
        raise ExportError(f"{out} exists", "choose another --out, or allow it to be replaced with --overwrite")
    if not (target / MANIFEST_FILE).is_file():
        raise ExportError(f"{out} is not a bundle and is left alone", "choose another --out")


def write_bundle(
    model: SteppableModel,
    directory: Path,
    *,
    dtype: str,
    provenance: dict[str, str],
    texts: Texts = NO_TEXTS,
    ends: EndNames = AS_FOUND,
    series: SeriesInfo | None = None,
    progress: ReportProgress | None = None,
) -> Manifest:
    """Write every file of a bundle into an empty directory.

    Args:
        model: what to export, at its precision already.
        directory: exists and is empty.
        dtype: name of that precision; integers are made of the weights here.
        provenance: where the model came from.
        texts: its tokenizer, chat template and generation settings.
        ends: which tokens end a text.
        series: how a forecaster's series was scaled, or None.
        progress: called with (steps done, steps in all).

    Returns:
        The manifest, as written.

    Raises:
        TraceError, ExportError: the model cannot be exported.
        ExportError: the chat template or the generation settings cannot be used.
        DataError: the tokenizer cannot be read, or lacks a token that is to end a text.
    """
    wanted = precision(dtype)
    tokenizer = tokenizer_of(model.inputs, texts.tokenizer_json, provenance)
    closing = check_template(texts, tokenizer)
    found = with_closing(find_ends(tokenizer, ends, provenance, texts.eos), closing, tokenizer)
    defaults = generation_defaults(texts.generation)
    graphs = model.graphs()
    total = len(graphs) + 2
    exported: list[ExportedGraph] = []
    fusible: dict[str, ExportedGraph] = {}
    for done, graph in enumerate(graphs):
        exported.append(export_graph(model, graph))
        twin = None if is_half(exported[-1].model) else fused_graph(model, exported[-1])
        if twin is not None:
            fusible[graph.name] = twin
        if progress is not None:
            progress(done + 1, total)
    own = dict(model.module.named_parameters())
    every = [*exported, *fusible.values()]
    used: dict[str, Tensor] = {name: own[name] for graph in every for name in graph.parameters}
    portable, singles = ([graph.model for graph in group] for group in (exported, fusible.values()))
    if wanted.bits is not None:
        used = quantise(portable, used, wanted.bits, fused=singles, ready=ready_blocks(model.module, wanted))
        fold_into_products(singles)
    elif not any(is_half(model) for model in portable):
        used = weights_on_left(portable, used, fused=singles)
    places = write_tensors(directory / WEIGHTS_FILE, used)
    specs = [_write_graph(graph, fusible.get(graph.source.name), directory, places) for graph in exported]
    learned = {
        spec.name: model.initial_tensor(spec).detach() for spec in model.state_specs() if isinstance(spec.initial, str)
    }
    if learned:
        write_tensors(directory / INITIAL_STATE_FILE, learned)
    manifest = Manifest(
        model=ModelInfo(
            name=model.name,
            variant=model.variant,
            parameters=sum(parameter.numel() for parameter in model.module.parameters()),
            config=model.config,
        ),
        dtype=wanted.name,
        opset=OPSET,
        inputs=model.inputs,
        chunk=model.chunk,
        tokenizer=_tokenizer(tokenizer, directory),
        ends=found,
        generation=defaults,
        chat_template=_chat_template(texts, directory),
        states=state_table(model),
        graphs=tuple(specs),
        schedule=tuple(model.schedule),
        weights=data_file(directory / WEIGHTS_FILE),
        initial_state=data_file(directory / INITIAL_STATE_FILE) if learned else None,
        provenance=provenance | versions(),
        providers=wanted.providers,
        series=series,
    )
    write_manifest(directory, manifest)
    if progress is not None:
        progress(total, total)
    return manifest


def _write_graph(
    graph: ExportedGraph, fused: ExportedGraph | None, directory: Path, places: dict[str, tuple[int, int]]
) -> GraphSpec:
    """Write a graph, beside a half-precision one its twin for CPUs, and its fused form if it has one."""
    refer_to_weights(graph.model, WEIGHTS_FILE, places)
    portable = ir.to_proto(graph.model)
    path = _save(portable, directory / f"{graph.source.name}.onnx")
    twin = None
    if is_half(graph.model):
        twin = data_file(
            _save(ir.to_proto(float32_for_cpu(graph.model, set(places))), directory / f"{graph.source.name}.cpu.onnx")
        )
    single = None
    if fused is not None:
        refer_to_weights(fused.model, WEIGHTS_FILE, places)
        single = data_file(_save(ir.to_proto(fused.model), directory / f"{graph.source.name}.fused.onnx"))
    needs = cost(portable, {name: length for name, (_, length) in places.items()})
    return replace(graph.spec(path.name, sha256(path)), cpu=twin, fused=single, cost=needs)


def _save(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save_model(model, str(path))
    check(str(path))
    return path


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write (or replace) the manifest of a bundle, atomically.

    Raises:
        BundleError: no runtime would read this manifest.
    """
    text = manifest.to_json()
    Manifest.from_json(text)
    replace_file(directory / MANIFEST_FILE, text.encode())


def _tokenizer(tokenizer: Tokenizer | None, directory: Path) -> TokenizerInfo | None:
    if tokenizer is None:
        return None
    if tokenizer.json is None:
        return TokenizerInfo(kind="byte")
    path = directory / TOKENIZER_FILE
    path.write_text(tokenizer.json, encoding="utf-8")
    return TokenizerInfo(kind="tokenizers", **structs.asdict(data_file(path)))


def _chat_template(texts: Texts, directory: Path) -> ChatTemplateInfo | None:
    if texts.chat_template is None:
        return None
    path = directory / TEMPLATE_FILE
    path.write_text(texts.chat_template, encoding="utf-8", newline="")
    return ChatTemplateInfo(**structs.asdict(data_file(path)), tokens=dict(texts.special))


def data_file(path: Path) -> DataFile:
    """A file's manifest entry."""
    return DataFile(file=path.name, sha256=sha256(path), bytes=path.stat().st_size)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """What made the bundle."""
    return {
        "titans_deploy": metadata.version("titans-deploy"),
        "torch": str(torch.__version__),  # a subclass of str
        "onnx": onnx.__version__,
    }


def with_verification(manifest: Manifest, report: dict[str, object]) -> Manifest:
    """The manifest with a verification report in it."""
    return replace(manifest, verification=report)
