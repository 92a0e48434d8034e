"""The model that a bundle is made from: a checkpoint's, or the control that the checkpoint's becomes without writes.

Knows what `--control` does to a checkpoint, for the export and for whoever compares a bundle with its checkpoint later.
Does not know bundles beyond their provenance.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from titans_core import controls
from titans_core.config import TitansConfig
from titans_core.decoder import Decoder
from titans_core.errors import ConfigError
from titans_core.model import TitansModel
from titans_core.training.backbone import Loaded, open_model
from titans_export.errors import ExportError
from titans_export.models.titans import OurModel
from titans_format.manifest import Manifest

CONTROL = "control"  # the entry of a manifest's provenance
WRITES_OFF = "writes-off"


def load_source(checkpoint: Path, *, writes_off: bool) -> Loaded:
    """A checkpoint's model, in fp32, and what else the checkpoint holds; a decoder's adapters are folded away.

    Args:
        checkpoint: the checkpoint directory.
        writes_off: the same weights with the memory's writes switched off (`titans_core.controls`).

    Raises:
        CheckpointError: it cannot be loaded.
        ConfigError: there are no writes to switch off.
    """
    loaded = open_model(checkpoint)
    if isinstance(loaded.model, Decoder):
        decoder = loaded.model.folded()
        return replace(loaded, model=controls.decoder_writes_off(decoder) if writes_off else decoder)
    if not writes_off:
        return loaded
    config, tensors = controls.writes_off(loaded.model.config, loaded.checkpoint.tensors)
    model = TitansModel(config)
    model.load_state_dict(tensors, assign=True)
    return replace(loaded, model=model)


def made_from(manifest: Manifest, model: OurModel) -> bool:
    """Whether a bundle's model is configured as this one, as far as it says."""
    if isinstance(model, Decoder):
        return manifest.model.config == model.config.to_dict()
    try:
        return TitansConfig.from_stored(manifest.model.config) == model.config
    except ConfigError:
        return False


def source_of(bundle: Path, manifest: Manifest, checkpoint: Path) -> OurModel:
    """The model that a bundle was made from, out of its checkpoint; a control is the control again.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ExportError: the bundle was made from another model.
    """
    writes_off = manifest.provenance.get(CONTROL) == WRITES_OFF
    with contextlib.suppress(ConfigError):  # nothing to switch off, so this checkpoint is not the one
        model = load_source(checkpoint, writes_off=writes_off).model
        if made_from(manifest, model):
            return model
    raise ExportError(
        f"{bundle} was not made from {checkpoint}: their configurations differ",
        "name the checkpoint it was exported from",
    )
