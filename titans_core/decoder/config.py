"""What a pretrained decoder is: the shape that its weights fix, and how a stream of tokens goes through it.

One plain dataclass that round-trips through JSON. Knows the limits of every option. Does not know any file format
(`titans_core.pretrained`) nor how anything is computed (`attention`, `model`).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from titans_core.config import is_finite, memory_from_stored, shown
from titans_core.decoder.side_memory import SideConfig
from titans_core.decoder.stream_memory import StreamConfig
from titans_core.errors import ConfigError

DOCUMENT = "decoder"  # the key of a JSON document under which the configuration stands
_BEFORE_THE_CHOICE: dict[str, object] = {"power": 1}  # options of a side memory that older weights do not name
_FORMS: dict[str, type[SideConfig] | type[StreamConfig]] = {"side": SideConfig, "stream": StreamConfig}
WINDOW, SINKS, CHUNK, PREFILL = 256, 4, 32, 256  # unless somebody says otherwise
# More than any model in use has. They bound what a stranger's file can make us allocate.
_MOST = {
    "vocab_size": 2**22,
    "dim": 2**17,
    "layers": 2**10,
    "heads": 2**12,
    "kv_heads": 2**12,
    "head_width": 2**13,
    "ffn_hidden": 2**20,
    "window": 2**20,
    "sinks": 2**12,
    "chunk": 2**14,
    "prefill": 2**16,
    "lora": 2**12,
}
_MOST_ANGLES = 2**24  # numbers in a table of rotations, of which there are four in fp64


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder: RMS norms, grouped-query attention with rotary positions, gated feed-forward."""

    architecture: str  # as its files call it, such as "llama"; says where the weights came from and nothing else
    vocab_size: int
    dim: int
    layers: int
    heads: int  # of queries
    kv_heads: int  # of keys and values; each serves heads / kv_heads heads of queries
    head_width: int
    ffn_hidden: int
    norm_eps: float
    rotary_frequencies: tuple[float, ...]  # radians per token of every channel pair, head_width / 2 of them
    rotary_magnitude: float = 1.0  # queries and keys are multiplied by it (YaRN's attention factor)
    unrotated_layers: tuple[int, ...] = ()  # layers without positions
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False  # RMS norms over every head of queries and keys
    tie_embeddings: bool = False
    trained_window: int | None = None  # the sliding window that it was trained with; the window is at most that

    window: int = WINDOW  # tokens that attention sees, the query's own included
    sinks: int = SINKS  # first tokens of the stream that stay visible behind the window
    chunk: int = CHUNK  # tokens between two commits
    prefill: int = PREFILL  # tokens of a prefill call, whole chunks

    graft: SideConfig | StreamConfig | None = None  # a memory beside it, or memories in its stream
    lora: int = 0  # rank of adapters beside every projection; 0 is none

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            least = 0 if name in ("sinks", "lora") else 1
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ConfigError(f"{name} is {shown(value)}", f"it must be a whole number from {least} to {most:,}")
        if self.heads % self.kv_heads:
            raise ConfigError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}", "change one of them")
        if self.head_width % 2:
            raise ConfigError(f"head_width is {self.head_width}", "rotary positions need an even one")
        frequencies = self.rotary_frequencies
        if len(frequencies) != self.head_width // 2 or not all(map(is_finite, frequencies)):
            raise ConfigError(
                f"rotary_frequencies has {len(frequencies)} entries",
                f"give head_width / 2 = {self.head_width // 2} finite numbers",
            )
        for name in ("norm_eps", "rotary_magnitude"):
            if not (is_finite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name} is {shown(getattr(self, name))}", "it must be a finite number above 0")
        if any(type(layer) is not int or not 0 <= layer < self.layers for layer in self.unrotated_layers):
            raise ConfigError(f"unrotated_layers is {list(self.unrotated_layers)}", f"name layers below {self.layers}")
        self._check_stream()
        named = self.graft.read if isinstance(self.graft, SideConfig) else self.graft.layers if self.graft else ()
        if named and named[-1] >= self.layers:
            raise ConfigError(f"the memory asks for layer {named[-1]}", f"name layers below {self.layers}")

    def _check_stream(self) -> None:
        if self.window < 2:
            raise ConfigError(f"window is {self.window}", "it must be at least 2, the token itself and one before it")
        if self.trained_window is not None and self.window > self.trained_window:
            raise ConfigError(
                f"window is {self.window}, and the model was trained with a sliding window of {self.trained_window}",
                f"use at most {self.trained_window}",
            )
        if self.chunk > self.window:
            raise ConfigError(
                f"chunk {self.chunk} is longer than the window {self.window}", "lower chunk, or raise the window"
            )
        if self.sinks > self.chunk:
            raise ConfigError(
                f"sinks {self.sinks} do not fit into the first chunk of {self.chunk} tokens", "use fewer of them"
            )
        if (self.window + 2 * self.chunk + self.prefill) * self.head_width > _MOST_ANGLES:
            raise ConfigError(f"window {self.window} and prefill {self.prefill} are too large", "lower them")
        if self.prefill % self.chunk:
            raise ConfigError(f"prefill {self.prefill} is not a multiple of chunk {self.chunk}", "change one of them")

    @property
    def group(self) -> int:
        """Heads of queries that share one head of keys and values."""
        return self.heads // self.kv_heads

    @property
    def past_chunks(self) -> int:
        """Whole chunks before the current one that the window reaches into."""
        return -(-(self.window - 1) // self.chunk)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        if self.graft is not None:
            values["graft"]["form"] = "side" if isinstance(self.graft, SideConfig) else "stream"
        return values

    def to_json(self) -> str:
        """The configuration as an indented JSON document that says whose it is."""
        return json.dumps({DOCUMENT: self.to_dict()}, indent=2)

    @classmethod
    def from_dict(cls, values: object) -> DecoderConfig:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: an unknown option, a wrong type or an impossible combination.
        """
        if not isinstance(values, dict):
            raise ConfigError(
                f"the decoder's configuration is {type(values).__name__}, not an object", "restore the file"
            )
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - set(fields)):
            raise ConfigError(f"unknown decoder option {shown(unknown[0])}", f"use some of {', '.join(sorted(fields))}")
        needed = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
        if missing := [name for name in needed if name not in values]:
            raise ConfigError(f"the decoder's configuration has no {missing[0]}", "restore the file that it came from")
        plain = {name: value for name, value in values.items() if name != "graft"}
        own = {name: _typed(name, str(fields[name].type), value) for name, value in plain.items()}
        return cls(**own, graft=_graft(values.get("graft")))


def _graft(values: object) -> SideConfig | StreamConfig | None:
    """The graft in a configuration, by its form."""
    if values is None:
        return None
    named = values.get("form") if isinstance(values, dict) else None
    if not isinstance(values, dict) or not isinstance(named, str) or named not in _FORMS:
        raise ConfigError("the graft has no form that is known", f"use one of {', '.join(_FORMS)}, or null")
    form = _FORMS[named]
    fields = {field.name: str(field.type) for field in dataclasses.fields(form)}
    own = (_BEFORE_THE_CHOICE if form is SideConfig else {}) | values
    del own["form"]
    if sorted(own) != sorted(fields):
        raise ConfigError(f"the graft has the options {', '.join(sorted(own))}", f"use {', '.join(sorted(fields))}")
    memory = memory_from_stored(own.pop("memory"))
    return form(**{name: _typed(name, fields[name], value) for name, value in own.items()}, memory=memory)


def _typed(name: str, kind: str, value: object) -> Any:
    """`value`, if it is of the type of that field; lists of numbers become tuples."""
    if kind.startswith("tuple"):
        if not isinstance(value, (list, tuple)) or any(type(item) not in (int, float) for item in value):
            raise ConfigError(f"decoder option {name} must be a list of numbers, found {shown(value)}", "change it")
        if "int" in kind and any(type(item) is not int for item in value):
            raise ConfigError(
                f"decoder option {name} must be whole numbers in a list, found {shown(value)}", "change it"
            )
        return tuple(value)
    kinds: dict[str, tuple[type, ...]] = {
        "str": (str,),
        "Place": (str,),
        "bool": (bool,),
        "int": (int,),
        "float": (int, float),
        "int | None": (int, type(None)),
    }
    if type(value) not in kinds[kind]:
        raise ConfigError(f"decoder option {name} must be {kind}, found {shown(value)}", "change it")
    return value
