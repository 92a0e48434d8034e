"""The fields of a manifest, as structs that are read strictly.

Knows their ranges, their meaning and their JSON form. Does not know whether they fit together (`contract`), what graphs
and states are made of (`specs`), nor the document (`manifest`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from titans_format.document import ANY_FLOAT, TOKEN_NAME_PATTERN, Count, Digest, FilePath, Positive, Text
from titans_format.series import SeriesInfo
from titans_format.specs import DataFile, Dimension, Due, GraphKind, GraphSpec, StateSpec

Tokens = Annotated[tuple[Count, ...], Meta(max_length=256)]  # that end a text; models in use have one to five
Few = Annotated[int, Meta(ge=1, le=2**31 - 1)]
# Tokens that a chat template knows by name; models in use have up to ten, of up to 30 characters.
TokenName = Annotated[str, Meta(pattern=TOKEN_NAME_PATTERN)]
TokenText = Annotated[str, Meta(min_length=1, max_length=1000)]


class ModelInfo(Struct, frozen=True, kw_only=True):
    """Which model this is; `config` is the training definition's and opaque here."""

    name: Text
    variant: Text
    parameters: Count
    config: dict[str, Any] = field(default_factory=dict)


class TokenInputs(Struct, frozen=True, kw_only=True, tag_field="kind", tag="tokens"):
    """Token ids in 0..vocab_size-1 in, logits out."""

    vocab_size: Dimension

    @property
    def outputs(self) -> int:
        """Channels of the head."""
        return self.vocab_size


class ContinuousInputs(Struct, frozen=True, kw_only=True, tag_field="kind", tag="continuous"):
    """Vectors of `features` channels in, predictions of `targets` channels out."""

    features: Dimension
    targets: Dimension

    @property
    def outputs(self) -> int:
        """Channels of the head."""
        return self.targets


class TokenizerInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How text becomes ids: UTF-8 bytes, or a `tokenizer.json` of the tokenizers library with its size and hash."""

    kind: Literal["byte", "tokenizers"]
    file: FilePath | None = None
    sha256: Digest | None = None
    bytes: Count | None = None

    @property
    def data_file(self) -> DataFile | None:
        """The `tokenizer.json`; None for bytes."""
        if self.kind == "byte" or self.file is None or self.sha256 is None:
            return None
        return DataFile(file=self.file, sha256=self.sha256, bytes=self.bytes)


class Ends(Struct, frozen=True, kw_only=True):
    """Token ids that end a text: `eos` because the model says so, `stop` because an answer in its format ends there."""

    eos: Tokens = ()
    stop: Tokens = ()


class GenerationDefaults(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the model wants its text generated where the caller does not say; None leaves a setting to the runtime.

    temperature, top_k, top_p, min_p, repetition_penalty: see `titans_runtime.SamplingOptions`.
    max_new_tokens: tokens of one answer at most.
    """

    temperature: Annotated[float, Meta(ge=0.0, le=ANY_FLOAT)] | None = None
    top_k: Few | None = None
    top_p: Annotated[float, Meta(ge=1e-9, le=1.0)] | None = None
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=1e-3, le=ANY_FLOAT)] | None = None
    max_new_tokens: Few | None = None


class ChatTemplateInfo(DataFile, frozen=True, kw_only=True):
    """How a conversation is written for the model: a file with a Jinja template.

    tokens: what the template knows as `bos_token`, `eos_token` and the like, as they are written.
    """

    tokens: dict[TokenName, TokenText] = field(default_factory=dict)


class Fields(Struct, frozen=True, kw_only=True, dict=True):
    """Everything a runtime needs to know to drive a bundle: the fields of a manifest.

    providers: what can run it; None is everything.
    omitted: files that were left out for want of use to these providers (`titans slim`).
    series: how a forecaster's series was scaled; None for other models.
    generation: how text is generated where the caller does not say.
    chat_template: how a conversation is written; None for a model that was not trained on any.
    """

    model: ModelInfo
    dtype: Text
    opset: Positive
    inputs: TokenInputs | ContinuousInputs
    chunk: Positive
    tokenizer: TokenizerInfo | None = None
    states: tuple[StateSpec, ...]
    graphs: tuple[GraphSpec, ...]
    schedule: tuple[Due, ...]
    weights: DataFile
    initial_state: DataFile | None = None
    provenance: dict[str, str] = field(default_factory=dict)
    verification: dict[str, Any] | None = None
    providers: Annotated[tuple[Text, ...], Meta(min_length=1)] | None = None
    omitted: tuple[FilePath, ...] = ()
    ends: Ends = Ends()
    series: SeriesInfo | None = None
    generation: GenerationDefaults = GenerationDefaults()
    chat_template: ChatTemplateInfo | None = None

    def graph(self, kind: GraphKind) -> GraphSpec | None:
        """The graph of this kind (the first: a commit or step may have others, in the schedule), or None."""
        return next((graph for graph in self.graphs if isinstance(kind, str) and graph.kind == kind), None)

    @property
    def stream_bytes(self) -> int:
        """Bytes of state that one stream owns."""
        return sum(state.stream_bytes for state in self.states)
