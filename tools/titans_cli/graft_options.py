"""Which memory `titans graft` grafts, and how the decoder reads its stream: the options, as configurations.

Imports PyTorch only when they are built.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from titans_core.decoder import DecoderConfig, SideConfig, StreamConfig

_STREAMING = ("chunk", "prefill")


def layer_list(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """A click callback: `0,4` as layer numbers, each once and in order."""
    if value is None:
        return None
    words = [word.strip() for word in value.split(",")]
    if not all(word.isdecimal() and len(word) < 6 for word in words):
        raise click.BadParameter(f"{value!r} is not a list of layer numbers; write them as 0,4", context, parameter)
    return tuple(sorted({int(word) for word in words}))


@dataclass(frozen=True)
class GraftOptions:
    """The options of the command line, as given."""

    window: int | None
    sinks: int
    read: tuple[int, ...] | None
    memory_layers: tuple[int, ...] | None
    no_memory: bool
    overrides: tuple[str, ...]

    def build(self, config: DecoderConfig) -> tuple[dict[str, int], SideConfig | StreamConfig | None]:
        """The window, sinks, chunk and prefill, and the graft, for a decoder.

        Raises:
            UsageError: options that exclude one another, or one that there is not.
            ConfigError: a value that cannot be.
        """
        named = [
            name
            for name, given in (
                ("--read", self.read),
                ("--memory-layers", self.memory_layers),
                ("--no-memory", self.no_memory or None),
            )
            if given is not None
        ]
        if len(named) > 1:
            raise click.UsageError(f"{' and '.join(named)} exclude one another; give one of them")
        settings = [self._setting(override) for override in self.overrides]
        streaming = {name: value for name, value in settings if name in _STREAMING}
        others = {name: value for name, value in settings if name not in _STREAMING}
        return self._streaming(config, streaming), self._graft(config, others)

    def _setting(self, override: str) -> tuple[str, Any]:
        name, equals, text = override.partition("=")
        if not equals:
            raise click.UsageError(f"--set {override}: use NAME=VALUE, such as memory.heads=2")
        try:
            return name, json.loads(text)
        except (ValueError, RecursionError):
            return name, text

    def _streaming(self, config: DecoderConfig, given: dict[str, Any]) -> dict[str, int]:
        from titans_core.decoder.config import CHUNK, PREFILL

        window = config.window if self.window is None else self.window
        chunk = given.get("chunk", min(CHUNK, window))
        prefill = given.get("prefill")
        for name, value in (("chunk", chunk), ("prefill", 1 if prefill is None else prefill)):
            if type(value) is not int or value < 1:
                raise click.UsageError(f"--set {name}={value}: use a whole number above 0")
        if prefill is None:
            prefill = max(PREFILL // chunk, 1) * chunk
        return {"window": window, "sinks": self.sinks, "chunk": chunk, "prefill": prefill}

    def _graft(self, config: DecoderConfig, given: dict[str, Any]) -> SideConfig | StreamConfig | None:
        from titans_core.config import MemoryConfig, memory_from_dict
        from titans_core.decoder import SideConfig, StreamConfig

        if self.no_memory:
            if given:
                raise click.UsageError(f"--set {next(iter(given))} is about a memory; leave it or --no-memory out")
            return None
        place = {"place": given.pop("place")} if "place" in given and self.memory_layers else {}
        dim = given.pop("memory.dim", config.dim)
        power = {"power": given.pop("memory.power")} if "memory.power" in given and not self.memory_layers else {}
        known = [f"memory.{field.name}" for field in fields(MemoryConfig)]
        for name in given:
            if name not in known:
                own = "place" if self.memory_layers else "memory.power"
                options = ", ".join(("memory.dim", own, *known, *_STREAMING))
                raise click.UsageError(f"--set {name}: there is no such option; use one of {options}")
        if type(power.get("power", 1)) is not int:
            raise click.UsageError(f"--set memory.power={power['power']}: use a whole number from 1 to 4")
        if type(dim) is not int:
            raise click.UsageError(f"--set memory.dim={dim}: use a whole number above 0")
        changed = {name.removeprefix("memory."): value for name, value in given.items()}
        if self.memory_layers is not None:
            memory = memory_from_dict({"heads": config.kv_heads} | changed)
            return StreamConfig(layers=self.memory_layers, dim=dim, memory=memory, **place)
        read = (0, min(4, config.layers - 1)) if self.read is None else self.read
        start = SideConfig().memory
        memory = memory_from_dict({field.name: getattr(start, field.name) for field in fields(start)} | changed)
        return SideConfig(read=tuple(sorted(set(read))), dim=dim, memory=memory, **power)
