"""`titans import titans-pytorch`: a state dict and its configuration in, a verified bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from titans_core.pretrained import Texts
from titans_export.bundle.writer import staged, with_verification, write_bundle, write_manifest
from titans_export.titans_pytorch.arguments import ConfigError
from titans_export.titans_pytorch.json_config import read_json_config
from titans_export.titans_pytorch.options import TransformerOptions, read_options
from titans_export.titans_pytorch.parameters import read_state_dict
from titans_export.titans_pytorch.parity import compare
from titans_export.titans_pytorch.steppable import TitansPytorchModel
from titans_format.manifest import Manifest
from titans_format.progress import ReportProgress
from titans_tasks.tokens import load_tokenizer

VERIFY_TOKENS = 600
NOTES = "checkpoint.read"  # the entry of the provenance that says what was unusual about the checkpoint


def read_config(path: Path) -> dict[str, Any]:
    """The constructor call in a JSON file.

    Raises:
        ConfigError: it is no JSON, or no configuration that can be carried over.
    """
    config = read_json_config(path)
    read_options(config)
    return config


def import_checkpoint(
    checkpoint: Path,
    config: Path,
    out: Path,
    *,
    tokenizer: Path | None = None,
    verify_tokens: int = VERIFY_TOKENS,
    progress: ReportProgress | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write a bundle and prove that it computes what titans-pytorch computes.

    Args:
        checkpoint: a state dict, `.pt` or `.safetensors`; nothing but tensors is unpickled.
        config: JSON, `{"class": "MemoryAsContextTransformer" or "NeuralMemory", "args": {…}}`.
        out: the bundle directory to make; it appears only when complete and verified.
        tokenizer: a `tokenizer.json` to carry along; without one, a vocabulary of 256 is bytes.
        verify_tokens: length of the stream it is verified on; 0 skips verification.
        progress: called with (done, total).
        overwrite: replace a bundle that is there.

    Raises:
        ConfigError: the configuration is wrong, or asks for what cannot be carried over; nothing else is looked at.
            Or the tokenizer is not this model's; the checkpoint is not looked at.
        DataError: the tokenizer cannot be read.
        CheckpointError: the checkpoint cannot be read, or a parameter does not fit.
        ExportError: the bundle cannot be written.
        VerificationError: the bundle disagrees; nothing is left at `out`.
    """
    settings = read_config(config)
    tokenizer_json = None if tokenizer is None else _read_tokenizer(tokenizer, settings)
    read = read_state_dict(checkpoint)
    tensors = read.tensors
    model = TitansPytorchModel(settings, tensors)
    with staged(out, overwrite) as stage:
        manifest = write_bundle(
            model,
            stage,
            dtype="fp32",
            texts=Texts(tokenizer_json=tokenizer_json),
            provenance={"source": "titans-pytorch", "checkpoint": checkpoint.name}
            | ({NOTES: "; ".join(read.notes)} if read.notes else {}),
            progress=None if verify_tokens else progress,
        )
        if verify_tokens:
            report = compare(stage, model, tensors, tokens=verify_tokens, progress=progress)
            manifest = with_verification(manifest, report)
            write_manifest(stage, manifest)
    return manifest


def _read_tokenizer(path: Path, settings: dict[str, Any]) -> str | None:
    """The text of a `tokenizer.json` that can be this model's."""
    options = read_options(settings)
    if not isinstance(options, TransformerOptions):
        raise ConfigError(
            f"a NeuralMemory reads vectors, not the text of the tokenizer {path}", "leave the tokenizer out"
        )
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size > options.num_tokens:
        raise ConfigError(
            f"the tokenizer {path} has {tokenizer.vocab_size:,} tokens and the model num_tokens {options.num_tokens:,}",
            "give the tokenizer that the model was trained with",
        )
    return tokenizer.json
