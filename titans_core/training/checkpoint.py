"""Checkpoints: a directory that survives being killed at any moment.

    CKPT/titans-checkpoint.json      says what the directory is
    CKPT/step-00000300/              complete as soon as it has this name; the newest one counts, the last two are kept
        config.json                  the model's configuration
        weights.safetensors          the model's state_dict
        training.safetensors         optimizer moments, carried memory of every row, random state
        tokenizer.json               only if the model has one
        series.json                  only of a forecaster: how its series was scaled
        checkpoint.json              step, settings, provenance, and size and hash of the files above

    CKPT/backbone/                   of a pretrained decoder: the files that it was made from, untouched. A step then
                                     holds only the weights that are new or changed (`titans_core.training.backbone`)

A step directory is written under a temporary name, flushed to disk and renamed. Nothing is ever unpickled.

Knows files. Does not know the loop, nor what the training tensors mean.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from titans_core.config import TitansConfig
from titans_core.decoder import DecoderConfig
from titans_core.decoder.config import DOCUMENT
from titans_core.errors import CheckpointError, ConfigError
from titans_core.model import TitansModel
from titans_format.files import MIB, check_regular, read_regular
from titans_format.folders import replace_folder
from titans_format.install import upgrade
from titans_tasks.task import Scalar

MARKER = "titans-checkpoint.json"
FORMAT = {"format": "titans-checkpoint", "format_version": 1}
KEPT = 2
_CONFIG, _WEIGHTS, _TRAINING = "config.json", "weights.safetensors", "training.safetensors"
_TOKENIZER, _SERIES, _MANIFEST = "tokenizer.json", "series.json", "checkpoint.json"
_FILES = {_CONFIG, _WEIGHTS, _TRAINING, _TOKENIZER, _SERIES}
MOST_TEXT = 128 * MIB  # of a JSON file; the largest tokenizers in use have 40 MiB
MOST_BESIDES = 2**30  # bytes of rotations and masks; the largest preset has 4 MiB


@dataclass(frozen=True)
class Checkpoint:
    """A trained model as stored: all that export needs."""

    config: TitansConfig | DecoderConfig
    tensors: dict[str, Tensor]  # the model's state_dict, on the CPU; of a decoder, what its backbone does not hold
    tokenizer_json: str | None
    provenance: dict[str, str | int | float]
    series_json: str | None = None  # `Forecasting.document` as JSON
    weights_sha256: str = ""  # of the stored file; "" before it is stored

    @property
    def titans(self) -> TitansConfig:
        """The configuration of a model that is ours from the start.

        Raises:
            CheckpointError: it is a pretrained decoder's.
        """
        if isinstance(self.config, DecoderConfig):
            raise CheckpointError(
                "this is a checkpoint of a pretrained decoder, which has no variant or preset",
                "use one that titans train has made without --from",
            )
        return self.config


@dataclass(frozen=True)
class TrainingProgress:
    """The rest of a run: all that resuming needs."""

    step: int  # steps done; also the data position, which is a function of the step
    tensors: dict[str, Tensor]
    settings: dict[str, Scalar] = field(default_factory=dict)  # what must not change for a resume to be exact


@dataclass(frozen=True)
class _Manifest:
    step: int
    settings: dict[str, Scalar]
    provenance: dict[str, str | int | float]
    files: dict[str, str]  # name -> sha256


def prepare_directory(path: Path) -> None:
    """Make `path` a checkpoint directory without harm to anything else.

    Raises:
        CheckpointError: `path` is a file, an unrelated directory with something in it, or cannot be written.
    """
    _check_name(path)
    new, probe = not path.exists(), path / f".{MARKER}.{os.getpid()}"
    try:
        if path.exists() and not path.is_dir():
            raise CheckpointError(f"{path} is a file", "choose a directory for the checkpoint")
        if path.is_dir() and any(path.iterdir()) and not (path / MARKER).exists():
            raise CheckpointError(
                f"{path} holds files that are not a checkpoint",
                "choose a new or an empty directory, nothing was touched",
            )
        path.mkdir(parents=True, exist_ok=True)
        _write_text(probe, json.dumps(FORMAT) + "\n")
        probe.replace(path / MARKER)
    except OSError as error:
        with contextlib.suppress(OSError):  # as it was before, so that the next try finds nothing in its way
            probe.unlink(missing_ok=True)
            if new:
                path.rmdir()
        raise CheckpointError(
            f"cannot write {path} ({error.strerror})", "choose a directory you can write to"
        ) from error


def has_checkpoint(path: Path) -> bool:
    """Whether `path` is a checkpoint directory with at least one complete step."""
    return (path / MARKER).is_file() and bool(_steps(path))


def save_checkpoint(path: Path, checkpoint: Checkpoint, progress: TrainingProgress) -> None:
    """Add a step to the prepared directory `path`, atomically, and drop all but the newest two.

    Raises:
        CheckpointError: it cannot be written (for example a full disk); the earlier steps are as they were.
    """
    final = path / f"step-{progress.step:08d}"
    temporary = path / f".{final.name}.tmp"
    try:
        for stale in path.glob(".step-*.tmp"):  # what a killed process left
            shutil.rmtree(stale)
        temporary.mkdir()
        _write_step(temporary, checkpoint, progress)
        replace_folder(temporary, final)
        _sync(path)
        shutil.rmtree(temporary, ignore_errors=True)  # what was replaced, if anything was
        for old in _steps(path)[:-KEPT]:
            shutil.rmtree(old)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"could not write {final} ({error})", "free some space or check the permissions, then resume"
        ) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """The newest model in `path`, a checkpoint directory or one of its step directories.

    Raises:
        CheckpointError: it is missing, damaged, or not a checkpoint.
    """
    step = newest_step(path)
    manifest = _verified_manifest(step)
    try:
        config = _config(_text(step / _CONFIG))
    except RecursionError as error:
        raise _damaged(step, f"{_CONFIG} is nested too deeply") from error
    except ConfigError as error:
        raise CheckpointError(error.finding, error.remedy, where=step / _CONFIG) from error
    tokenizer, series = (_text(step / name) if name in manifest.files else None for name in (_TOKENIZER, _SERIES))
    weights = _tensors(step / _WEIGHTS)
    return Checkpoint(config, weights, tokenizer, manifest.provenance, series, manifest.files[_WEIGHTS])


def _config(text: str) -> TitansConfig | DecoderConfig:
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if isinstance(values, dict) and DOCUMENT in values:
        return DecoderConfig.from_dict(values[DOCUMENT])
    return TitansConfig.from_stored_json(text)


def load_model(path: Path) -> tuple[TitansModel, Checkpoint]:
    """The newest model in `path`, built and filled, on the CPU in fp32.

    Raises:
        CheckpointError: it cannot be loaded, or is a pretrained decoder.
    """
    checkpoint = load_checkpoint(path)
    config = checkpoint.titans
    _check_model(path, config, checkpoint.tensors)
    model = TitansModel(config)
    try:
        model.load_state_dict(checkpoint.tensors, assign=True)  # no second copy of a large model
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights in {path} do not fit its configuration ({error})", "train it again, or restore the files"
        ) from error
    return model, checkpoint


def _check_model(path: Path, config: TitansConfig, stored: Mapping[str, Tensor]) -> None:
    """Whether the tensors are those of the configured model, before memory is taken for it.

    Raises:
        CheckpointError: they are not, or the rest of the model (rotations, masks) asks for more memory than they do.
    """
    remedy = "train it again, or restore the files"
    if max(config.layers, config.memory.depth) > len(stored):
        raise CheckpointError(f"the weights in {path} do not fit its configuration, which has more layers", remedy)
    try:
        with torch.device("meta"):  # shapes without memory
            model = TitansModel(config)
    except (RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"the configuration in {path} cannot be built ({_first_line(error)})", remedy) from error
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in sorted(set(wanted) | set(stored)):
        found = tuple(stored[name].shape) if name in stored else None
        if found != wanted.get(name):
            raise CheckpointError(
                f"the weights in {path} do not fit its configuration: {name} is {_shown(found)}, not"
                f" {_shown(wanted.get(name))}",
                remedy,
            )
    besides = sum(buffer.nbytes for buffer in model.buffers())
    if besides > MOST_BESIDES:
        raise CheckpointError(
            f"the configuration in {path} asks for {besides:,} bytes besides its weights, which no model of ours needs",
            remedy,
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _shown(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))


def load_progress(path: Path) -> TrainingProgress:
    """Where the run stored in `path` stands. Raises `CheckpointError` as `load_checkpoint` does."""
    step = newest_step(path)
    manifest = _verified_manifest(step)
    return TrainingProgress(manifest.step, _tensors(step / _TRAINING), manifest.settings)


def _steps(path: Path) -> list[Path]:
    """Complete step directories, oldest first."""
    return sorted(step for step in path.glob("step-*") if step.is_dir())


def _check_name(path: Path) -> None:
    """Raise `CheckpointError` for a path that safetensors, which opens files by itself, cannot be told."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise CheckpointError(f"{path} has a name that is not UTF-8", "rename it, or choose another place") from None


def newest_step(path: Path) -> Path:
    """The newest step directory of `path`, or `path` itself if it is one. Raises `CheckpointError`."""
    _check_name(path)
    if (path / _MANIFEST).is_file():
        return path
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint at {path}", "check the path, or make one with titans train")
    if not (path / MARKER).is_file():
        raise CheckpointError(f"{path} is not a checkpoint (it has no {MARKER})", "give the --out of a titans train")
    steps = _steps(path)
    if not steps:
        raise CheckpointError(f"{path} has no finished step yet", "train further, or save more often with --save-every")
    return steps[-1]


def _write_step(directory: Path, checkpoint: Checkpoint, progress: TrainingProgress) -> None:
    _write_text(directory / _CONFIG, checkpoint.config.to_json() + "\n")
    for name, text in ((_TOKENIZER, checkpoint.tokenizer_json), (_SERIES, checkpoint.series_json)):
        if text is not None:
            _write_text(directory / name, text)
    for name, tensors in ((_WEIGHTS, checkpoint.tensors), (_TRAINING, progress.tensors)):
        save_file({key: value.contiguous() for key, value in tensors.items()}, directory / name)
        _sync(directory / name)
    files = {file.name: _sha256(file) for file in sorted(directory.iterdir())}
    manifest = _Manifest(progress.step, progress.settings, checkpoint.provenance, files)
    _write_text(directory / _MANIFEST, json.dumps({**FORMAT, **asdict(manifest)}, indent=2) + "\n")
    _sync(directory)


def _verified_manifest(step: Path) -> _Manifest:
    """The manifest of a step directory whose files all match it."""
    path = step / _MANIFEST
    try:
        values = cast("dict[str, Any]", json.loads(_text(path)))
        version = values.pop("format_version")
        if values.pop("format") != FORMAT["format"]:
            raise CheckpointError(f"{path} is not a checkpoint's", "give the --out of a titans train")
        if version != FORMAT["format_version"]:
            raise CheckpointError(f"{path} has format version {version}, newer than this program", upgrade())
        manifest = _Manifest(**values)
        if wrong := _misshapen(manifest):
            raise _damaged(step, f"{wrong} in {_MANIFEST} is not as it is written")
        for name, expected in manifest.files.items():
            if _sha256(step / name) != expected:
                raise _damaged(step, f"{name} is not what was written (sha256 differs)")
        missing = {_CONFIG, _WEIGHTS, _TRAINING} - set(manifest.files)
        if missing:
            raise _damaged(step, f"{', '.join(sorted(missing))} is not listed in {_MANIFEST}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(step, str(error)) from error
    return manifest


def _misshapen(manifest: _Manifest) -> str | None:
    """The first field of a manifest that is not of its type, or names a file that no step has."""
    step: object = manifest.step
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 2**53:
        return "step"
    for name in ("settings", "provenance"):
        values: object = getattr(manifest, name)
        if not isinstance(values, dict) or not all(isinstance(v, str | int | float | None) for v in values.values()):
            return name
    files: object = manifest.files
    if not isinstance(files, dict) or not set(files) <= _FILES or not all(isinstance(v, str) for v in files.values()):
        return "files"
    return None


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        check_regular(path)
        return load_file(path)
    except (OSError, RuntimeError, MemoryError, SafetensorError) as error:  # RuntimeError: it cannot be mapped
        raise _damaged(path.parent, f"{path.name}: {error}") from error


def _damaged(step: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{step} is damaged: {what}", "delete this step directory to fall back to the one before it")


def _text(path: Path) -> str:
    return read_regular(path, MOST_TEXT).decode("utf-8")


def _sha256(path: Path) -> str:
    check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Flush a file or a directory entry to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
