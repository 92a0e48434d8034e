"""What a Titans model is, completely: one plain dataclass that round-trips through JSON.

Knows the meaning and the limits of every option. Does not know how anything is computed
(`memory`, `attention`, `blocks`) nor which shapes are good ones (`presets`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from titans_core.errors import ConfigError

Variant = Literal["lmm", "mal", "mag", "mac"]
Activation = Literal["gelu", "silu"]
StepSize = Literal["token", "constant", "off"]
GateScope = Literal["token", "chunk"]
FeedForward = Literal["swiglu", "gelu"]
ForgetTo = Literal["start", "zero"]
Objective = Literal["l2", "l1", "lp", "huber", "huber-switch"]
Retention = Literal["l2", "lq", "kl"]
Link = Literal["printed", "mirror"]
LinkAt = Literal["commit", "read"]

VARIANTS: tuple[Variant, ...] = get_args(Variant)
MOST_EXPONENT = 8  # beyond, powers of what is not near 1 leave fp32
MOST_THRESHOLD = 80.0  # its logarithm is taken after an exponential
_SHORT = 80  # characters of a value that an error shows
BEFORE_THE_CHOICE: dict[str, object] = {"forget_to": "zero"}  # memory options that older weights do not name


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """The neural memory of one layer (arXiv 2501.00663 §3, §4.4)."""

    heads: int = 4  # independent memories; each sees dim / heads channels
    depth: int = 2  # matrices in the memory network; 1 is a linear memory
    expansion: float = 2.0  # hidden width of the memory network, in units of the head width
    activation: Activation = "gelu"
    residual_norm: bool = False  # M(x) = x + gain * LayerNorm(mlp(x)); the gain is learned at test time too
    momentum: bool = True  # eta, past surprise; off means eta = 0
    forget: bool = True  # alpha, forgetting; off means alpha = 0
    # What forgetting leaves: the learned start (only what was written fades), or zero (the paper's letter). From zero a
    # memory of two matrices or more does not come back: the gradient of each contains the others.
    forget_to: ForgetTo = "start"
    step_size: StepSize = "token"  # theta per token, one learned value per head, or no writes at all
    gate_scope: GateScope = "token"  # "chunk": the gates of a chunk's first token hold for the whole chunk
    max_step_size: float = 1.0  # theta = max_step_size * sigmoid(.)
    # Where the sigmoid is below the floor theta is exactly 0, and a stream of any length leaves nothing; above it theta
    # rises from 0 as before. No gradient comes from below: for gates that are taught directly (`training.hindsight`).
    step_floor: float = 0.0
    # Gates before training. All gradients of a chunk are taken at its start, so the steps of tokens with similar keys
    # add up, and an untrained model's keys are all similar: beyond 2 * chunk * theta = 2 they overshoot, and rounding
    # errors grow from token to token until training has told the tokens apart. 0.01 leaves room up to chunk 64.
    initial_step_size: float = 0.01  # theta
    initial_forget: float = 0.005  # alpha: writes last for about two hundred tokens, longer where training wants it
    initial_momentum: float = 0.12  # eta
    initial_gain: float = 0.02  # of the residual norm, in every channel: so small a fresh memory answers almost nothing
    surprise_bound: float | None = 1.0  # norm bound on every error row; None is the paper's plain form
    conv_kernel: int = 4  # taps of the depthwise causal convolution on q, k and v; 1 switches it off
    objective: Objective = "l2"  # what a write makes smaller (`objectives`)
    objective_p: float = 3.0  # exponent of lp
    initial_threshold: float = 0.3  # of huber and huber-switch, before training; a gate of every token
    retention: Retention = "l2"  # from what was accumulated to weights (`retentions`)
    retention_q: float = 4.0  # exponent of lq
    link: Link = "printed"  # of lq: the paper's normaliser, or the map that its derivation gives
    link_at: LinkAt = "commit"  # the link once a chunk, or for every token that reads

    def __post_init__(self) -> None:
        _finite(self, "memory.")
        for name, choices in (
            ("activation", Activation),
            ("forget_to", ForgetTo),
            ("objective", Objective),
            ("retention", Retention),
            ("link", Link),
            ("link_at", LinkAt),
        ):
            _choice(f"memory.{name}", getattr(self, name), get_args(choices))
        _choice("memory.step_size", self.step_size, get_args(StepSize))
        _choice("memory.gate_scope", self.gate_scope, get_args(GateScope))
        _at_least("memory.heads", self.heads, 1)
        _at_least("memory.depth", self.depth, 1)
        _at_least("memory.conv_kernel", self.conv_kernel, 1)
        if not self.expansion > 0:
            raise ConfigError(f"memory.expansion is {self.expansion}", "use a factor above 0, such as 2.0")
        if not self.max_step_size > 0:
            raise ConfigError(
                f"memory.max_step_size is {self.max_step_size}",
                'use a value above 0, or step_size="off" to switch writes off',
            )
        if not 0 <= self.step_floor < 1:
            raise ConfigError(f"memory.step_floor is {self.step_floor}", "use 0, or a share below 1 such as 0.3")
        for name, limit in (
            ("initial_step_size", self.max_step_size),
            ("initial_forget", 1.0),
            ("initial_momentum", 1.0),
        ):
            if not 0 < getattr(self, name) < limit:
                raise ConfigError(f"memory.{name} is {getattr(self, name)}", f"use a value between 0 and {limit:g}")
        if self.surprise_bound is not None and not self.surprise_bound > 0:
            raise ConfigError(
                f"memory.surprise_bound is {self.surprise_bound}", "use a norm above 0, or null for no bound"
            )
        self._check_owners()
        self._check_objective()
        self._check_retention()

    def _check_objective(self) -> None:
        if not 1 <= self.objective_p <= MOST_EXPONENT:
            raise ConfigError(
                f"memory.objective_p is {self.objective_p}", f"use an exponent from 1 to {MOST_EXPONENT}, such as 3"
            )
        if not 0 < self.initial_threshold <= MOST_THRESHOLD:
            raise ConfigError(
                f"memory.initial_threshold is {self.initial_threshold}",
                f"use a norm above 0 and up to {MOST_THRESHOLD}, such as 0.3",
            )
        if self.objective == "huber" and 2 * self.initial_threshold >= (self.surprise_bound or math.inf):
            raise ConfigError(
                f"memory.initial_threshold is {self.initial_threshold}, and memory.surprise_bound {self.surprise_bound}"
                " cuts every gradient before a threshold of half of it could, so it would never act nor be learned",
                "use less than half of the bound, or memory.surprise_bound=null",
            )

    def _check_retention(self) -> None:
        if not 2 <= self.retention_q <= MOST_EXPONENT:
            raise ConfigError(
                f"memory.retention_q is {self.retention_q}", f"use an exponent from 2 to {MOST_EXPONENT}, such as 4"
            )
        if self.residual_norm or self.retention == "l2" or (self.retention == "lq" and self.link == "mirror"):
            return
        if self.retention == "kl":
            why = "its weights are positive and have one sum, so that answers lack the values' size and sign"
            other = ""
        else:
            why = "its normaliser takes the size of the weights away, and with it that of the answers"
            other = ', or memory.link="mirror", which keeps it'
        raise ConfigError(
            f'memory.retention="{self.retention}" without memory.residual_norm: {why}',
            f"set memory.residual_norm=true{other}",
        )

    def _check_owners(self) -> None:
        """Refuse an option that was changed and that nothing would look at."""
        for name, owner in unused_options(dataclasses.asdict(self)).items():
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != default:
                raise ConfigError(
                    f"memory.{name} is {value!r}, and nothing looks at it",
                    f"it belongs to {owner}: set that, or leave it out",
                )


def unused_options(memory: Mapping[str, object]) -> dict[str, str]:
    """The options that the others make meaningless, and what they belong to; `memory` may leave any out."""
    objective, retention = memory.get("objective", "l2"), memory.get("retention", "l2")
    owners = (
        ("initial_gain", memory.get("residual_norm") is True, "memory.residual_norm=true"),
        ("objective_p", objective == "lp", 'memory.objective="lp"'),
        (
            "initial_threshold",
            objective in ("huber", "huber-switch"),
            'memory.objective="huber" or "huber-switch"',
        ),
        ("retention_q", retention == "lq", 'memory.retention="lq"'),
        ("link", retention == "lq", 'memory.retention="lq"'),
        ("link_at", retention != "l2", 'memory.retention="lq" or "kl"; of l2 the link is nothing'),
    )
    return {name: owner for name, used, owner in owners if not used}


@dataclass(frozen=True, kw_only=True)
class TitansConfig:
    """A whole model. Token models set `vocab_size`; continuous models set `features`."""

    variant: Variant = "mac"
    dim: int = 128
    layers: int = 2
    heads: int = 4  # attention heads; unused by lmm
    ffn: FeedForward = "swiglu"
    ffn_hidden: int = 352
    chunk: int = 64  # tokens per memory chunk; in mac also the attention segment
    window: int = 64  # sliding attention window in tokens, the query's own included; unused by lmm and mac
    persistent_tokens: int = 4  # learned tokens in front of every attention window; 0 in lmm
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    memory_layers: tuple[int, ...] | None = None  # layers that have a memory; None is all of them
    vocab_size: int | None = 256
    features: int | None = None  # continuous input channels, instead of a vocabulary
    targets: int | None = None  # continuous output channels; None means `features`
    tie_embeddings: bool = False
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        _finite(self)
        _choice("variant", self.variant, VARIANTS)
        _choice("ffn", self.ffn, get_args(FeedForward))
        for name in ("dim", "layers", "heads", "ffn_hidden", "chunk", "window"):
            _at_least(name, getattr(self, name), 1)
        _at_least("persistent_tokens", self.persistent_tokens, 0)
        if self.dim % self.memory.heads:
            raise ConfigError(
                f"dim {self.dim} is not a multiple of memory.heads {self.memory.heads}", "change one of them"
            )
        if self.has_attention and self.dim % (2 * self.heads):
            raise ConfigError(
                f"dim {self.dim} is not a multiple of 2 * heads = {2 * self.heads}",
                "rotary positions need an even head width: change one of them",
            )
        if self.variant == "lmm" and self.persistent_tokens:
            raise ConfigError(
                "lmm has no attention to prepend persistent tokens to, its learned initial memory plays that part",
                f"set persistent_tokens to 0 (it is {self.persistent_tokens})",
            )
        if (self.vocab_size is None) == (self.features is None):
            raise ConfigError(
                f"vocab_size is {self.vocab_size} and features is {self.features}",
                "set exactly one of vocab_size (token model) and features (continuous model)",
            )
        for name in ("vocab_size", "features", "targets"):
            value = getattr(self, name)
            if value is not None:
                _at_least(name, value, 1)
        if self.features is None and self.targets is not None:
            raise ConfigError("targets belongs to continuous models", "set features, or leave targets null")
        if self.features is not None and self.tie_embeddings:
            raise ConfigError("tie_embeddings needs a vocabulary", "set it to false for a continuous model")
        if not self.rope_base > 0:
            raise ConfigError(f"rope_base is {self.rope_base}", "use a base above 0, such as 10000")
        self._check_memory_layers()

    def _check_memory_layers(self) -> None:
        if self.memory_layers is None:
            return
        # Not what its type says where it comes from JSON.
        layers: object = self.memory_layers
        if not isinstance(layers, (tuple, list)) or any(type(layer) is not int for layer in layers):
            raise ConfigError(
                f"memory_layers is {layers!r}", "give a list of layer numbers, such as [0], or null for all layers"
            )
        object.__setattr__(self, "memory_layers", tuple(sorted(self.memory_layers)))
        wrong = [i for i in self.memory_layers if not 0 <= i < self.layers]
        if wrong or len(set(self.memory_layers)) != len(self.memory_layers):
            raise ConfigError(
                f"memory_layers {list(self.memory_layers)} must be distinct layer numbers from 0 to {self.layers - 1}",
                "name each layer once, or set it to null for all of them",
            )
        if self.variant == "lmm" and len(self.memory_layers) != self.layers:
            raise ConfigError(
                "every layer of an lmm has a memory", "set memory_layers to null or choose mal, mag or mac"
            )

    @property
    def has_attention(self) -> bool:
        """Whether the variant has attention (all but lmm)."""
        return self.variant != "lmm"

    @property
    def memory_dim(self) -> int:
        """Width of one memory head, in channels."""
        return self.dim // self.memory.heads

    @property
    def memory_widths(self) -> tuple[int, ...]:
        """Widths along the memory network, input and output included: `depth + 1` numbers."""
        hidden = max(1, round(self.memory_dim * self.memory.expansion))
        return (self.memory_dim, *[hidden] * (self.memory.depth - 1), self.memory_dim)

    @property
    def outputs(self) -> int:
        """Channels of the head: the vocabulary, or the regression targets."""
        return cast(int, self.vocab_size or self.targets or self.features)

    def has_memory(self, layer: int) -> bool:
        """Whether layer `layer` has a memory."""
        return self.memory_layers is None or layer in self.memory_layers

    def to_json(self) -> str:
        """The configuration as an indented JSON document."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values."""
        return cast("dict[str, Any]", json.loads(self.to_json()))

    @classmethod
    def from_dict(cls, values: object) -> TitansConfig:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: an unknown option, a wrong type or an impossible combination.
        """
        values = _fields(cls, values, "configuration")
        if "memory" in values:
            values["memory"] = memory_from_dict(values["memory"])
        if isinstance(values.get("memory_layers"), list):
            values["memory_layers"] = tuple(values["memory_layers"])
        return cls(**values)

    @classmethod
    def from_stored(cls, values: object) -> TitansConfig:
        """As `from_dict`, of a configuration that stands beside weights, in a checkpoint or a bundle.

        An option that it does not name is younger than the weights. It means what models did before there was a choice.
        """
        if isinstance(values, dict) and isinstance(values.get("memory"), dict):
            values = values | {"memory": BEFORE_THE_CHOICE | _looked_at(values["memory"])}
        return cls.from_dict(values)

    @classmethod
    def from_json(cls, text: str) -> TitansConfig:
        """The inverse of `to_json`; raises `ConfigError` as `from_dict` does."""
        return cls.from_dict(_parsed(text))

    @classmethod
    def from_stored_json(cls, text: str) -> TitansConfig:
        """As `from_json`, of a configuration that stands beside weights."""
        return cls.from_stored(_parsed(text))


def memory_from_dict(values: object) -> MemoryConfig:
    """A memory's options out of plain JSON values. Raises `ConfigError`."""
    return MemoryConfig(**_fields(MemoryConfig, values, "memory"))


def memory_from_stored(values: object) -> MemoryConfig:
    """As `memory_from_dict`, of options that stand beside weights. Raises `ConfigError`."""
    return memory_from_dict(_looked_at(values) if isinstance(values, dict) else values)


def _looked_at(values: dict[str, Any]) -> dict[str, Any]:
    """Stored options without those that nothing looks at: they are the defaults of the version that stored them."""
    unused = unused_options(values)
    return {name: value for name, value in values.items() if name not in unused}


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the configuration is not JSON ({error})", "export it again from the model") from error


_PLAIN_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "bool": (bool,),
}


def _fields(cls: type, values: object, what: str) -> dict[str, Any]:
    """`values` as keyword arguments of dataclass `cls`: known names, right types."""
    if not isinstance(values, dict):
        raise ConfigError(f"the {what} must be a JSON object, found {type(values).__name__}", "write an object")
    known = {f.name: str(f.type) for f in dataclasses.fields(cls)}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"unknown {what} option {shown(name)}", f"known options are {', '.join(sorted(known))}")
        types = _PLAIN_TYPES.get(known[name])
        if types and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
            raise ConfigError(f"{what} option {name} must be {known[name]}, found {shown(value)}", "change it")
    return dict(values)


def _choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {shown(value)}", f"choose one of {', '.join(choices)}")


def _finite(config: MemoryConfig | TitansConfig, prefix: str = "") -> None:
    """Raise `ConfigError` for an infinity, NaN or a whole number that no float holds; JSON has all of them."""
    for field_ in dataclasses.fields(config):
        value = getattr(config, field_.name)
        if str(field_.type).startswith("float") and value is not None and not is_finite(value):
            raise ConfigError(f"{prefix}{field_.name} is {shown(value)}", "use a finite number")


def is_finite(value: float) -> bool:
    """Whether a number of JSON is one that a float holds; such a whole number may be far larger."""
    return abs(value) <= sys.float_info.max


def shown(value: object) -> str:
    """A value of a stranger's configuration as an error shows it, not all of a long one."""
    text = repr(value)
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}…"


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} is {value}", f"it must be at least {least}")
