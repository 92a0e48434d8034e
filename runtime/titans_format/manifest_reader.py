"""From untrusted JSON to a `Manifest`: types, ranges, names and paths, field by field.

Knows the JSON form of version 1. Leaves the question whether graphs, states and schedule fit together to
`contract`, and the files themselves to `bundle`. Fields it does not know are ignored.
"""

from __future__ import annotations

import math
import re
from typing import Literal, cast

from titans_format.contract import check_contract
from titans_format.errors import BundleError
from titans_format.jsonread import JsonObject, Node
from titans_format.manifest import (
    BATCH,
    DTYPES,
    FORMAT,
    FORMAT_VERSION,
    GRAPH_KINDS,
    MANIFEST_FILE,
    MOST_AXES,
    STATE_KINDS,
    ChatTemplateInfo,
    ContinuousInputs,
    Cost,
    DataFile,
    DType,
    Due,
    Ends,
    GenerationDefaults,
    GraphKind,
    GraphSpec,
    Initial,
    Manifest,
    ModelInfo,
    Shape,
    StateKind,
    StateSpec,
    TensorSpec,
    TokenInputs,
    TokenizerInfo,
)
from titans_format.names import INSIDE, PLAIN, is_plain, stays_inside
from titans_format.series import SeriesInfo, read_scaling

# A dimension beyond this is damage: one float32 row of it would be 4 GiB.
_MAX_DIMENSION = 2**30
# Ids that end a text; models in use have one to five.
_MAX_ENDS = 256
# Tokens that a chat template knows by name, and characters of one; models in use have up to ten, of up to 30.
_TOKEN_NAME = re.compile("[a-z_]{1,40}_token")
_MAX_TOKEN_CHARACTERS = 1000
_MAX_NEW_TOKENS = 2**31 - 1


def read_manifest(root: Node) -> Manifest:
    """Read a version-1 manifest.

    Raises:
        BundleError: not a bundle's manifest, a newer format, or a field that is missing or wrong.
    """
    _check_format(root)
    manifest = Manifest(
        model=_model(root.field("model")),
        dtype=root.field("dtype").text(),
        opset=root.field("opset").integer(1),
        inputs=_inputs(root.field("inputs")),
        chunk=root.field("chunk").integer(1),
        tokenizer=_tokenizer(_nullable(root, "tokenizer")),
        states=tuple(_state(node) for node in root.field("states").items()),
        graphs=tuple(_graph(node) for node in root.field("graphs").items()),
        schedule=tuple(_due(node) for node in root.field("schedule").items()),
        weights=_file(root.field("weights")),
        initial_state=_optional_file(_nullable(root, "initial_state")),
        provenance=_provenance(_nullable(root, "provenance")),
        verification=_object(_nullable(root, "verification")),
        engines=_engines(_nullable(root, "engines")),
        providers=_providers(_nullable(root, "providers")),
        omitted=_omitted(_nullable(root, "omitted")),
        ends=_ends(_nullable(root, "ends")),
        series=_series(_nullable(root, "series"), root.field("inputs")),
        generation=_generation(_nullable(root, "generation")),
        chat_template=_chat_template(_nullable(root, "chat_template")),
    )
    check_contract(manifest)
    return manifest


def _check_format(root: Node) -> None:
    if root.field("format").value != FORMAT:
        root.field("format").fail(f'"{FORMAT}"')
    version = root.field("format_version").integer(1)
    if version > FORMAT_VERSION:
        raise BundleError(
            f"format_version is {version}, this runtime reads up to {FORMAT_VERSION}",
            "install a newer titans-deploy, from where you had this one",
            where=MANIFEST_FILE,
        )


def _nullable(node: Node, key: str) -> Node | None:
    """The field, or None where it is absent or null."""
    found = node.optional(key)
    return None if found is None or found.value is None else found


def _object(node: Node | None) -> JsonObject | None:
    return None if node is None else node.fields()


def _provenance(node: Node | None) -> dict[str, str]:
    if node is None:
        return {}
    provenance: dict[str, str] = {}
    for key in node.fields():
        value = node.field(key)
        if not isinstance(value.value, str):
            value.fail("a string")
        provenance[key] = value.value
    return provenance


def _engines(node: Node | None) -> tuple[JsonObject, ...]:
    return () if node is None else tuple(item.fields() for item in node.items())


def _providers(node: Node | None) -> tuple[str, ...] | None:
    if node is None:
        return None
    return tuple(item.text() for item in node.items()) or node.fail("a list with a provider in it")


def _omitted(node: Node | None) -> tuple[str, ...]:
    return () if node is None else tuple(_path(item) for item in node.items())


def _ends(node: Node | None) -> Ends:
    if node is None:
        return Ends()
    eos, stop = (_nullable(node, name) for name in ("eos", "stop"))
    return Ends(eos=_ids(eos), stop=_ids(stop))


def _ids(node: Node | None) -> tuple[int, ...]:
    ids = () if node is None else tuple(item.integer(0) for item in node.items())
    if node is not None and len(ids) > _MAX_ENDS:
        node.fail(f"a list of at most {_MAX_ENDS} ids")
    return ids


def _generation(node: Node | None) -> GenerationDefaults:
    if node is None:
        return GenerationDefaults()
    return GenerationDefaults(
        temperature=_setting(node, "temperature", 0.0, math.inf),
        top_k=_count(node, "top_k"),
        top_p=_setting(node, "top_p", 1e-9, 1.0),
        min_p=_setting(node, "min_p", 0.0, 1.0),
        repetition_penalty=_setting(node, "repetition_penalty", 1e-3, math.inf),
        max_new_tokens=_count(node, "max_new_tokens"),
    )


def _setting(node: Node, name: str, least: float, most: float) -> float | None:
    found = _nullable(node, name)
    if found is None:
        return None
    if not least <= (value := found.number()) <= most:
        found.fail(f"a number from {least:g}" + ("" if math.isinf(most) else f" to {most:g}"))
    return value


def _count(node: Node, name: str) -> int | None:
    found = _nullable(node, name)
    if found is None:
        return None
    if (value := found.integer(1)) > _MAX_NEW_TOKENS:
        found.fail(f"a whole number of at most {_MAX_NEW_TOKENS}")
    return value


def _chat_template(node: Node | None) -> ChatTemplateInfo | None:
    if node is None:
        return None
    named = _nullable(node, "tokens")
    tokens = {} if named is None else {name: named.field(name) for name in named.fields()}
    for name, token in tokens.items():
        if not _TOKEN_NAME.fullmatch(name) or len(token.text()) > _MAX_TOKEN_CHARACTERS:
            token.fail(f"a token of at most {_MAX_TOKEN_CHARACTERS} characters with a name such as bos_token")
    return ChatTemplateInfo(file=_file(node), tokens={name: token.text() for name, token in tokens.items()})


def _series(node: Node | None, inputs: Node) -> SeriesInfo | None:
    if node is None:
        return None
    scaling, kind = read_scaling(node), _inputs(inputs)
    if not isinstance(kind, ContinuousInputs) or (kind.features, kind.targets) != (scaling.features, scaling.targets):
        inputs.fail(f"continuous, {scaling.features} features and {scaling.targets} targets, as the series makes them")
    return scaling


def _model(node: Node) -> ModelInfo:
    return ModelInfo(
        name=node.field("name").text(),
        variant=node.field("variant").text(),
        parameters=node.field("parameters").integer(0),
        config=_object(_nullable(node, "config")) or {},
    )


def _inputs(node: Node) -> TokenInputs | ContinuousInputs:
    if node.field("kind").choice(("tokens", "continuous")) == "tokens":
        return TokenInputs(vocab_size=_dimension(node.field("vocab_size")))
    return ContinuousInputs(features=_dimension(node.field("features")), targets=_dimension(node.field("targets")))


def _path(node: Node) -> str:
    """A file name that stays inside the bundle, with `/` between folders."""
    name = node.text()
    if not stays_inside(name):
        node.fail(INSIDE)
    return name


def _name(node: Node) -> str:
    """A graph's name: its engines and profiles are files of that name."""
    name = node.text()
    if not is_plain(name):
        node.fail(PLAIN)
    return name


def _file(node: Node) -> DataFile:
    size = _nullable(node, "bytes")
    return DataFile(
        file=_path(node.field("file")),
        sha256=node.field("sha256").sha256(),
        bytes=None if size is None else size.integer(0),
    )


def _optional_file(node: Node | None) -> DataFile | None:
    return None if node is None else _file(node)


def _tokenizer(node: Node | None) -> TokenizerInfo | None:
    if node is None:
        return None
    if node.field("kind").choice(("byte", "tokenizers")) == "byte":
        return TokenizerInfo(kind="byte")
    return TokenizerInfo(kind="tokenizers", file=_file(node))


def _dimension(node: Node) -> int:
    if (size := node.integer(1)) > _MAX_DIMENSION:
        node.fail(f"a whole number of at most {_MAX_DIMENSION}")
    return size


def _shape(node: Node) -> Shape:
    sizes = node.items()
    if len(sizes) > MOST_AXES:
        node.fail(f"a shape of at most {MOST_AXES} dimensions")
    return tuple(BATCH if item.value == BATCH else _dimension(item) for item in sizes)


def _dtype(node: Node) -> DType:
    return cast(DType, node.choice(DTYPES))


def _initial(node: Node) -> Initial:
    kind = cast(Literal["zeros", "constant", "learned"], node.field("kind").choice(("zeros", "constant", "learned")))
    return Initial(
        kind=kind,
        value=node.field("value").number() if kind == "constant" else 0.0,
        tensor=node.field("tensor").text() if kind == "learned" else None,
    )


def _state(node: Node) -> StateSpec:
    state = StateSpec(
        name=node.field("name").text(),
        kind=cast(StateKind, node.field("kind").choice(STATE_KINDS)),
        dtype=_dtype(node.field("dtype")),
        shape=_shape(node.field("shape")),
        initial=_initial(node.field("initial")),
        input=node.field("input").text(),
        output=node.field("output").text(),
    )
    if [axis for axis, size in enumerate(state.shape) if size == BATCH] != [state.batch_axis]:
        node.field("shape").fail(f'dimensions with "{BATCH}" at axis {state.batch_axis}, as {state.kind} state has it')
    return state


def _tensor(node: Node) -> TensorSpec:
    return TensorSpec(
        name=node.field("name").text(), dtype=_dtype(node.field("dtype")), shape=_shape(node.field("shape"))
    )


def _graph(node: Node) -> GraphSpec:
    return GraphSpec(
        name=_name(node.field("name")),
        kind=cast(GraphKind, node.field("kind").choice(GRAPH_KINDS)),
        file=_path(node.field("file")),
        sha256=node.field("sha256").sha256(),
        tokens=node.field("tokens").integer(0),
        inputs=tuple(_tensor(item) for item in node.field("inputs").items()),
        outputs=tuple(_tensor(item) for item in node.field("outputs").items()),
        cpu=_optional_file(_nullable(node, "cpu")),
        fused=_optional_file(_nullable(node, "fused")),
        cost=_cost(_nullable(node, "cost")),
    )


def _cost(node: Node | None) -> Cost | None:
    if node is None:
        return None
    flops, weights, read, written = (
        node.field(name).integer(0) for name in ("flops", "weight_bytes", "read_bytes", "written_bytes")
    )
    return Cost(flops=flops, weight_bytes=weights, read_bytes=read, written_bytes=written)


def _due(node: Node) -> Due:
    phase = node.optional("phase")
    return Due(
        graph=node.field("graph").text(),
        period=node.field("period").integer(1),
        phase=0 if phase is None else phase.integer(0),
    )
