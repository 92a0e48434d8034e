"""Checkpoints of pretrained decoders: the files that one came in beside what is new, and the model made of both.

    CKPT/backbone/                   config.json and safetensors, or a .gguf, byte for byte
    CKPT/step-00000000/              a step as of any model; its weights are those that are not in the backbone

The provenance of every step says what the backbone was called and has the hash of its files, which is compared whenever
it is read. Knows both halves. Does not know how anything is trained.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from titans_core.decoder import Decoder, DecoderConfig
from titans_core.decoder.model import GRAFT, LORA
from titans_core.errors import CheckpointError, ConfigError
from titans_core.model import TitansModel
from titans_core.pretrained import Pretrained, Texts, decoder_of
from titans_core.pretrained.folder import open_folder
from titans_core.pretrained.gguf_model import open_gguf
from titans_core.training.checkpoint import (
    Checkpoint,
    TrainingProgress,
    load_checkpoint,
    load_model,
    newest_step,
    prepare_directory,
    save_checkpoint,
)
from titans_format.files import check_regular

FOLDER = "backbone"
NAME, SHA256 = "backbone.name", "backbone.sha256"  # entries of a step's provenance
_BLOCK = 2**22  # bytes copied at a time

Counter = Callable[[int, int], None]  # (bytes done, bytes in all)


@dataclass(frozen=True)
class Loaded:
    """A checkpoint's model, in fp32 on the CPU, and what else there is."""

    model: TitansModel | Decoder
    checkpoint: Checkpoint
    texts: Texts


def new_tensors(decoder: Decoder) -> dict[str, Tensor]:
    """What a decoder did not come with: its graft and its adapters, by name."""
    return {name: value for name, value in decoder.state_dict().items() if name.startswith((GRAFT, LORA))}


def begin_checkpoint(
    path: Path, pretrained: Pretrained, decoder: Decoder, *, name: str, progress: Counter | None = None
) -> None:
    """Make a checkpoint of a decoder and its fresh graft, as step 0.

    It appears under its name only when it is complete.

    Args:
        path: a directory that is not there, or an empty one.
        pretrained: what the decoder was made from.
        decoder: with its graft attached.
        name: what the backbone was called.
        progress: called with (bytes copied, bytes in all).

    Raises:
        CheckpointError: `path` is taken or cannot be written; it is as it was.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise CheckpointError(f"{path} exists", "choose another --out")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise CheckpointError(f"cannot write {path} ({error.strerror})", "choose another --out") from error
    try:
        prepare_directory(stage)
        digest = _copy(pretrained.files, stage / FOLDER, progress)
        provenance: dict[str, str | int | float] = {NAME: name, SHA256: digest, "tokens": 0, "step": 0}
        config, texts = decoder.config, pretrained.texts
        save_checkpoint(
            stage,
            Checkpoint(config, new_tensors(decoder), texts.tokenizer_json, provenance),
            TrainingProgress(0, {"random/cpu": torch.get_rng_state()}),
        )
        stage.chmod(0o755)  # mkdtemp's is private to the user
        if path.exists():
            path.rmdir()
        stage.rename(path)
    except OSError as error:
        raise CheckpointError(
            f"could not write {path} ({error})", "free some space or check the permissions"
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def open_model(path: Path) -> Loaded:
    """The newest model in `path`, whatever it is.

    Raises:
        CheckpointError: the checkpoint or its backbone is missing, damaged, or they do not fit each other.
    """
    checkpoint = load_checkpoint(path)
    if not isinstance(checkpoint.config, DecoderConfig):
        model, checkpoint = load_model(path)
        return Loaded(model, checkpoint, Texts(tokenizer_json=checkpoint.tokenizer_json))
    pretrained = open_backbone(path, checkpoint)
    decoder = _filled(path, pretrained, checkpoint)
    return Loaded(decoder, checkpoint, pretrained.texts)


def open_backbone(path: Path, checkpoint: Checkpoint) -> Pretrained:
    """The pretrained model that a checkpoint of a decoder stands on, with the checkpoint's window, sinks and chunk.

    Raises:
        CheckpointError: it is missing or not what it was.
    """
    if not isinstance(checkpoint.config, DecoderConfig):
        raise CheckpointError(f"{path} has no backbone", "give the --out of a titans graft")
    folder = newest_step(path).parent / FOLDER
    if not folder.is_dir():
        raise CheckpointError(f"{path} has no {FOLDER} directory", "restore it, or graft the model again")
    files = sorted(folder.glob("*.gguf"))
    own = checkpoint.tokenizer_json
    opened = open_gguf(files[0], tokenizer=own is None) if files else open_folder(folder)
    digest = _digest(opened.files)
    if digest != checkpoint.provenance.get(SHA256):
        raise CheckpointError(
            f"{folder} is not what it was (sha256 differs)", "restore its files, or graft the model again"
        )
    plain = replace(checkpoint.config, graft=None, lora=0)
    texts = opened.texts if own is None else replace(opened.texts, tokenizer_json=own)
    return replace(opened, config=plain, texts=texts)


def _filled(path: Path, pretrained: Pretrained, checkpoint: Checkpoint) -> Decoder:
    """The decoder of a checkpoint: the backbone's weights, and over them the checkpoint's."""
    config, remedy = checkpoint.config, "graft and train it again, or restore the files"
    if not isinstance(config, DecoderConfig):
        raise TypeError("a decoder's checkpoint has a decoder's configuration")
    try:
        with torch.device("meta"):
            shapes = {name: value.shape for name, value in Decoder(config).state_dict().items()}
    except (ConfigError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"the configuration in {path} cannot be built ({error})", remedy) from error
    stored = checkpoint.tensors
    for name in sorted({name for name in shapes if name.startswith((GRAFT, LORA))} | set(stored)):
        if name not in shapes or name not in stored or shapes[name] != stored[name].shape:
            found = list(stored[name].shape) if name in stored else "missing"
            wanted = list(shapes[name]) if name in shapes else "no part of it"
            raise CheckpointError(
                f"the weights in {path} do not fit its configuration: {name} is {found}, not {wanted}", remedy
            )
    decoder = decoder_of(pretrained)
    decoder.attach(config.graft, config.lora)
    decoder.load_state_dict(stored, strict=False, assign=True)
    return decoder.eval()


def _copy(files: Sequence[Path], folder: Path, progress: Counter | None) -> str:
    """Copy the files of a backbone; returns their hash."""
    folder.mkdir()
    total, done = sum(file.stat().st_size for file in files), 0
    for file in files:
        check_regular(file)
        with file.open("rb") as source, (folder / file.name).open("wb") as target:
            while block := source.read(_BLOCK):
                target.write(block)
                done += len(block)
                if progress is not None:
                    progress(done, total)
    return _digest([folder / file.name for file in files])


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 over the names and hashes of a backbone's files."""
    whole = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        with file.open("rb") as opened:
            whole.update(f"{file.name} {hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()
