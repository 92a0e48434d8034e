"""The export: a checkpoint in, a verified bundle out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from titans_core.pretrained import Texts
from titans_export.bundle.texts import AS_FOUND, EndNames
from titans_export.bundle.writer import NO_TEXTS, staged, with_verification, write_bundle, write_manifest
from titans_export.errors import ExportError, VerificationError
from titans_export.models.precision import at_precision, check_range, precision
from titans_export.models.source_model import CONTROL, WRITES_OFF, load_source
from titans_export.models.titans import OurModel
from titans_export.verification.agreement import compare
from titans_format.card import CARD_FILE, LICENSE, card
from titans_format.document import parse
from titans_format.errors import BundleError
from titans_format.manifest import Manifest
from titans_format.progress import ReportProgress
from titans_format.series import SeriesInfo, read_scaling

WEIGHTS = "checkpoint.weights"  # the entry of the provenance with the hash of the weights, the same at any precision


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    dtype: str = "fp32",
    verify_tokens: int = 2048,
    progress: ReportProgress | None = None,
    overwrite: bool = False,
    writes_off: bool = False,
    ends: EndNames = AS_FOUND,
    chat_template: str | None = None,
    license: str | None = None,
) -> Manifest:
    """Export a checkpoint directory; see `export_model`. Raises `CheckpointError` too.

    `license` is an SPDX identifier for the model card. `chat_template` takes the place of the checkpoint's own; ""
    is none.

    With `writes_off` the bundle is the control whose memory is never written (`titans_core.controls`), and its
    provenance says so.
    """
    loaded = load_source(checkpoint, writes_off=writes_off)
    provenance = {key: str(value) for key, value in loaded.checkpoint.provenance.items()}
    if loaded.checkpoint.weights_sha256:
        provenance[WEIGHTS] = loaded.checkpoint.weights_sha256
    if license:
        provenance[LICENSE] = license
    if writes_off:
        provenance[CONTROL] = WRITES_OFF
    return export_model(
        loaded.model,
        out,
        dtype=dtype,
        texts=loaded.texts if chat_template is None else replace(loaded.texts, chat_template=chat_template or None),
        series=_scaling(checkpoint, loaded.checkpoint.series_json),
        provenance=provenance,
        verify_tokens=verify_tokens,
        progress=progress,
        overwrite=overwrite,
        ends=ends,
    )


def _scaling(checkpoint: Path, document: str | None) -> SeriesInfo | None:
    """The scaling that a checkpoint carries. Raises `ExportError`."""
    if document is None:
        return None
    try:
        return read_scaling(parse(document, f"{checkpoint} series.json"), f"{checkpoint} series.json")
    except BundleError as error:
        raise ExportError(f"{checkpoint} is damaged ({error})", "train it again") from error


def export_model(
    model: OurModel,
    out: Path,
    *,
    dtype: str = "fp32",
    texts: Texts = NO_TEXTS,
    series: SeriesInfo | None = None,
    provenance: dict[str, str] | None = None,
    verify_tokens: int = 2048,
    progress: ReportProgress | None = None,
    overwrite: bool = False,
    ends: EndNames = AS_FOUND,
) -> Manifest:
    """Write a bundle and prove that it computes what the model computes.

    Args:
        model: the trained model, in fp32; put into evaluation mode, its parameters no longer require gradients.
        out: the bundle directory to make; it appears only when complete and verified.
        dtype: fp32, fp16, bf16 or int8; see `precision`.
        texts: tokenizer, chat template and generation settings to carry along.
        series: how a forecaster's series was scaled.
        provenance: where the model came from.
        verify_tokens: length of the stream it is verified on; 0 skips verification.
        progress: called with (done, total).
        overwrite: replace a bundle that is there.
        ends: which tokens end a text; those that the tokenizer or the training names where none are given.

    Returns:
        The manifest, verification report included.

    Raises:
        ExportError: unknown dtype, a weight that it cannot hold, a tokenizer that does not fit, a chat template that
            cannot be used, or the bundle cannot be written.
        DataError: the tokenizer cannot be read, or lacks a token that is to end a text.
        TraceError: the model computes something that has no ONNX form.
        VerificationError: the bundle disagrees with the model; nothing is left at `out`.
    """
    wanted = precision(dtype)
    model.eval().requires_grad_(False)
    check_range(model, wanted)
    with staged(out, overwrite) as stage:
        manifest = write_bundle(
            at_precision(model, wanted),
            stage,
            dtype=dtype,
            texts=texts,
            series=series,
            provenance=provenance or {},
            ends=ends,
            progress=None if verify_tokens else progress,
        )
        if verify_tokens:
            report = compare(stage, model, tokens=verify_tokens, progress=progress)
            if not report.ok:
                raise VerificationError(*report.disagreement())
            manifest = with_verification(manifest, report.to_json_dict())
            write_manifest(stage, manifest)
        (stage / CARD_FILE).write_text(card(manifest), encoding="utf-8")
    return manifest
