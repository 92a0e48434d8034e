"""What the loop trains of a pretrained decoder: its memory, adapters beside its weights, or all of it.

A memory beside the decoder is trained on features that are kept (`training.side`). All else goes through the decoder.
Knows decoders and their checkpoints. Does not know data, steps or optimizers.
"""

from __future__ import annotations

import copy
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from titans_core.decoder import Decoder
from titans_core.decoder.model import GRAFT, LORA
from titans_core.decoder.side_memory import SCALE, SideMemory
from titans_core.errors import CheckpointError, ConfigError
from titans_core.memory import AssociativeMemory
from titans_core.model import detach
from titans_core.state import State
from titans_core.training.backbone import FOLDER, NAME, SHA256, open_model
from titans_core.training.checkpoint import Checkpoint, load_checkpoint, newest_step, prepare_directory
from titans_core.training.objective import Trainable
from titans_core.training.side import SideObjective
from titans_core.training.write_cost import WriteMeter

SHUT = -1e9  # a gate's logit at which nothing is written
_MOST_RANK = 1024


@dataclass(frozen=True)
class Only:
    """What is trained; the rest stays as it is."""

    memory: bool = True
    lora: int = 0  # rank of the adapters, 0 for none
    everything: bool = False

    @classmethod
    def parse(cls, text: str) -> Only:
        """`memory`, `lora:8`, `memory,lora:8` or `all`.

        Raises:
            ConfigError: it is none of them.
        """
        if text == "all":
            return cls(everything=True)
        found = re.fullmatch(r"(?:(memory)|(memory,)?lora:([1-9]\d{0,3}))", text)
        rank = int(found[3] or 0) if found else 0
        if not found or rank > _MOST_RANK:
            raise ConfigError(f"{text!r} is not a part of a model", "use memory, memory,lora:8 or all")
        return cls(memory=bool(found[1] or found[2]), lora=rank)


class GraftLearner:
    """A decoder of which some is trained.

    Attributes:
        model: what is trained: the memory beside the decoder alone, or the decoder.
    """

    advice = ""

    def __init__(self, path: Path, only: Only, device: torch.device, *, seed: int = 0) -> None:
        """Args: `path` is the checkpoint to begin with.

        Raises:
            CheckpointError: it cannot be opened.
            ConfigError: it has nothing of what is to be trained.
        """
        torch.manual_seed(seed)  # of adapters, and of what a right token is told from
        loaded = open_model(path)
        decoder = loaded.model
        if not isinstance(decoder, Decoder):
            raise ConfigError("--only is for pretrained decoders", "leave it out: a Titans model is trained as a whole")
        if only.memory and not only.everything and decoder.graft is None:
            raise ConfigError(f"{path} has no memory to train", "graft one, or use --only lora:8 or all")
        _with_adapters(decoder, only)
        self.config, self.decoder, self._loaded = decoder.config, decoder.to(device), loaded
        side = decoder.graft if isinstance(decoder.graft, SideMemory) else None
        if side is not None and float(side.scale.detach()) == 0.0:  # as it was grafted: silent
            with torch.no_grad():
                side.scale.fill_(SCALE)
        self._alone = side if only == Only() else None
        _choose(decoder, only)
        self.model: nn.Module = self._alone or decoder
        self.objective = self._objective(decoder)
        self.num_parameters = decoder.num_parameters()

    def _objective(self, decoder: Decoder) -> Trainable:
        if self._alone is not None and isinstance(decoder.graft, SideMemory):
            return SideObjective(decoder.graft, decoder)
        return DecoderObjective(decoder)

    def writes_off(self) -> Trainable | None:
        """The same with every step size shut, or None without a memory."""
        if self.decoder.graft is None:
            return None
        memories = [module for module in self.decoder.modules() if isinstance(module, AssociativeMemory)]
        shared: dict[int, object] = {id(value): value for value in self.decoder.parameters()}
        for memory in memories:  # of all weights only these are changed
            shared.pop(id(memory.gate_bias["step_size"]), None)
        silent = copy.deepcopy(self.decoder, shared)
        for module in silent.modules():
            if isinstance(module, AssociativeMemory):
                with torch.no_grad():
                    module.gate_bias["step_size"].fill_(SHUT)
        return self._objective(silent)

    def checkpoint(self, weights: dict[str, Tensor], provenance: dict[str, str | int | float]) -> Checkpoint:
        """What the backbone does not hold, with the backbone's name and hash."""
        if self._alone is not None:
            weights = {GRAFT + name: value for name, value in weights.items()}
        weights = {name: value for name, value in weights.items() if self._is_stored(name)}
        known = self._loaded.checkpoint.provenance
        origin = {name: known[name] for name in (NAME, SHA256)}
        return Checkpoint(self.config, weights, self._loaded.checkpoint.tokenizer_json, {**provenance, **origin})

    def _is_stored(self, name: str) -> bool:
        trained = name.startswith((GRAFT, LORA))
        return trained or name in self._loaded.checkpoint.tensors or self.decoder.get_parameter(name).requires_grad

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over a checkpoint of the same configuration."""
        if checkpoint.config != self.config:
            raise ConfigError(
                "the checkpoint holds a model of another configuration", "give the same one, or a new --out"
            )
        self.decoder.load_state_dict(checkpoint.tensors, strict=False)


class DecoderObjective(Trainable):
    """A decoder with the cross-entropy of its predictions; called as `Objective`."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model
        self._meter = WriteMeter(model)

    def forward(
        self, inputs: Tensor, targets: Tensor, mask: Tensor, reset: Tensor | None, state: State | None
    ) -> tuple[Tensor, Tensor, State]:
        """One slice of B streams; arguments and results are those of `Objective.forward`."""
        fresh = self.model.initial_state(len(inputs))
        if state is None or reset is None:
            state = fresh
        else:
            known = state
            state = {
                name: torch.where(reset.reshape(-1, *[1] * (value.ndim - 1)), value, known[name])
                for name, value in fresh.items()
            }
        with self._meter.watching():
            logits, state = self.model(inputs, state)
        wanted, predictions = targets[mask], logits[mask]
        loss = F.cross_entropy(predictions, wanted, reduction="sum")
        if self.write_cost and torch.is_grad_enabled():
            loss = loss + self.write_cost * self._meter.mean * mask.sum()
        return loss, (predictions.argmax(-1) == wanted).sum(), detach(state)


def adopt_backbone(source: Path, out: Path) -> None:
    """Give the checkpoint directory `out` the backbone of `source`, as files of its own.

    Raises:
        CheckpointError: it cannot be written.
    """
    prepare_directory(out)
    if (out / FOLDER).exists():
        return
    partial = out / f".{FOLDER}.tmp"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(newest_step(source).parent / FOLDER, partial)
        partial.rename(out / FOLDER)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"could not write {out / FOLDER} ({error})", "free some space") from error


def begun_with(path: Path) -> tuple[str, dict[str, str | int | float]]:
    """The hash of the weights that a run begins with, and where they come from, for its provenance."""
    checkpoint = load_checkpoint(path)
    known = {f"from.{name}": value for name, value in checkpoint.provenance.items() if name in ("step", "tokens")}
    return checkpoint.weights_sha256, {"from.name": path.name, **known}


def _with_adapters(decoder: Decoder, only: Only) -> None:
    """Add adapters of the wanted rank; the graft keeps its weights."""
    rank = decoder.config.lora
    if not only.lora or rank == only.lora:
        return
    if rank:
        raise ConfigError(f"the checkpoint has adapters of rank {rank}", f"use --only memory,lora:{rank}")
    kept = {name: value for name, value in decoder.state_dict().items() if name.startswith(GRAFT)}
    decoder.attach(decoder.config.graft, only.lora)
    decoder.load_state_dict(kept, strict=False)


def _choose(decoder: Decoder, only: Only) -> None:
    """Let gradients reach what is to be trained, and nothing else."""
    fixed = {f"{GRAFT}{name}" for name in ("whiten", "to_value", "tap_weight", "rotations")}
    for name, parameter in decoder.named_parameters():
        part = (only.memory and name.startswith(GRAFT)) or (bool(only.lora) and name.startswith(LORA))
        parameter.requires_grad_((only.everything or part) and name not in fixed)
