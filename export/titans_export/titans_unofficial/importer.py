"""`titans import titans-unofficial`: a state dict and its configuration in, a verified bundle out."""

from __future__ import annotations

import importlib
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from titans_core.pretrained import Texts
from titans_export.bundle.writer import staged, with_verification, write_bundle, write_manifest
from titans_export.titans_pytorch.arguments import ConfigError
from titans_export.titans_pytorch.importer import NOTES
from titans_export.titans_pytorch.json_config import read_json_config
from titans_export.titans_pytorch.parameters import read_state_dict
from titans_export.titans_unofficial.options import read_options
from titans_export.titans_unofficial.steppable import TitansUnofficialModel
from titans_export.verification.imported import Answers, compare_imported
from titans_format.manifest import Manifest
from titans_format.progress import ReportProgress
from titans_runtime.arrays import Array
from titans_tasks.tokens import load_tokenizer

SOURCE = "titans-unofficial"


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in a JSON file.

    Raises:
        ConfigError: it is no JSON, or no configuration.
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
    verify_tokens: int = 600,
    progress: ReportProgress | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write a bundle and prove that it computes what titans-unofficial computes.

    Args:
        checkpoint: a state dict, `.pt` or `.safetensors`; nothing but tensors is unpickled.
        config: JSON, `{"class": "TitansMAC", "args": {…}}`, with the prefix of the model's parameters and the names of
            the user's embedding and head where the checkpoint has them.
        out: the bundle directory to make; it appears only when complete and verified.
        tokenizer: a `tokenizer.json` to carry along; without one, a vocabulary of 256 is bytes.
        verify_tokens: length of the stream it is verified on; 0 skips verification.
        progress: called with (done, total).
        overwrite: replace a bundle that is there.

    Raises:
        ConfigError: the configuration is wrong, or the tokenizer is not this model's.
        DataError: the tokenizer cannot be read.
        CheckpointError: the checkpoint cannot be read, or a parameter does not fit.
        ExportError: the bundle cannot be written.
        VerificationError: the bundle disagrees; nothing is left at `out`.
    """
    settings = read_config(config)
    read = read_state_dict(checkpoint)
    model = TitansUnofficialModel(settings, read.tensors)
    texts = Texts(tokenizer_json=None if tokenizer is None else _read_tokenizer(tokenizer, model))
    with staged(out, overwrite) as stage:
        manifest = write_bundle(
            model,
            stage,
            dtype="fp32",
            texts=texts,
            provenance={"source": SOURCE, "checkpoint": checkpoint.name}
            | ({NOTES: "; ".join(read.notes)} if read.notes else {}),
            progress=None if verify_tokens else progress,
        )
        if verify_tokens:
            options = model.module.options
            if options.variant == "mac":  # with a window, what theirs computes for an open chunk depends on its length
                verify_tokens = -(-verify_tokens // options.chunk) * options.chunk
            report = compare_imported(
                stage, model, installed(settings, read.tensors), tokens=verify_tokens, progress=progress
            )
            manifest = with_verification(manifest, report)
            write_manifest(stage, manifest)
    return manifest


def _read_tokenizer(path: Path, model: TitansUnofficialModel) -> str | None:
    vocabulary = model.module.vocabulary
    if not vocabulary:
        raise ConfigError(f"the model reads vectors, not the text of the tokenizer {path}", "leave the tokenizer out")
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size > vocabulary:
        raise ConfigError(
            f"the tokenizer {path} has {tokenizer.vocab_size:,} tokens and the model's embedding {vocabulary:,}",
            "give the tokenizer that the model was trained with",
        )
    return tokenizer.json


# ---------------------------------------------------------------- the installed library


def installed(config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[str, Answers] | None:
    """Name and version of the installed titans-unofficial, and its answers; None where it is missing.

    Several packages are imported as `titans`, so the distribution is looked for by its name.
    """
    try:
        version = metadata.version(SOURCE)
        package = importlib.import_module("titans.models")
        theirs = getattr(package, config["class"])(**config.get("args", {}))
    except (ImportError, AttributeError):
        return None
    options = read_options(config)
    prefix = f"{options.prefix.rstrip('.')}." if options.prefix else ""
    own = dict(theirs.state_dict().items())
    theirs.load_state_dict({name: tensors[prefix + name] for name in own})
    theirs.eval().requires_grad_(False)

    def answers(inputs: Tensor) -> tuple[Array, Array]:
        theirs.float()
        want = _answer(theirs, options.embedding, options.head, tensors, inputs, torch.float32)
        theirs.double()
        return want, _answer(theirs, options.embedding, options.head, tensors, inputs, torch.float64)

    return f"{SOURCE} {version}", answers


@torch.no_grad()
def _answer(
    theirs: nn.Module, embedding: str, head: str, tensors: dict[str, Tensor], inputs: Tensor, dtype: torch.dtype
) -> Array:
    """The library's full forward between the user's embedding and head."""
    theirs.get_submodule("")._memory_states = None  # type: ignore[assignment]
    x = tensors[f"{embedding}.weight"].to(dtype)[inputs] if embedding else inputs.to(dtype)
    out = theirs(x)
    if head:
        bias = tensors.get(f"{head}.bias")
        out = nn.functional.linear(out, tensors[f"{head}.weight"].to(dtype), None if bias is None else bias.to(dtype))
    found: Array = out.numpy()
    return found
