"""A graph that is not what the manifest and the weights say never reaches ONNX Runtime, whoever signed it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.runtime.forge import (
    STORED,
    VOCABULARY,
    WEIGHTS,
    constant,
    model,
    reference,
    safetensors,
    sound,
    start,
    table,
    write,
)
from titans_format.specs import BATCH, TensorSpec
from titans_runtime import BundleError, load, native
from titans_runtime.bundle import open_bundle
from titans_runtime.devices import host
from titans_runtime.graphs.check import Interface, check_graph

SMALL = 2  # rows and columns of the weight in what is never run
TYPES = sorted(TensorProto.DataType.values())


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if ONNX Runtime is asked for a session."""

    def refused(*args: object, **choices: object) -> None:
        raise AssertionError("a session was made of a graph that had to be refused")

    monkeypatch.setattr(host, "create_session", refused)


def refuse(folder: Path, message: str = "") -> None:
    """Loading or the first step has to refuse a bundle, with a remedy."""
    with pytest.raises(BundleError, match=message) as caught:
        load(folder, provider="cpu", threads=1).session().feed([1])
    assert "; " in str(caught.value)


def test_the_forged_bundle_works_as_long_as_nothing_is_forged(tmp_path: Path) -> None:
    folder = write(tmp_path / "b")
    np.testing.assert_array_equal(load(folder, provider="cpu").session().feed([7]), np.eye(VOCABULARY)[7])


# Types: what the graph says, what the file says, and where the tensor stands in the graph.

PLACES = ("a reference", "data of its own under the name of a weight", "an input of a twin for CPUs")


def _interface(weights: bytes, folder: Path, *, widened: bool = False) -> Interface:
    bundle = open_bundle(write(folder, weights=weights))
    ids = TensorSpec(name="input_ids", dtype="int64", shape=(BATCH, 1))
    logits = TensorSpec(name="logits", dtype="float32", shape=(BATCH, 1, VOCABULARY))
    return Interface("step.onnx", [ids], [logits], bundle.weights, WEIGHTS, widened)


def _placed(place: str, kind: int, stored: str, weights: bytes) -> bytes:
    """A graph with the weight at a place, its output of the right type whatever the weight's is."""
    cast = helper.make_node("Cast", ["picked"], ["logits"], to=TensorProto.FLOAT)
    nodes = [helper.make_node("Gather", ["w", "input_ids"], ["picked"]), cast]
    size = len(weights) - start(weights)
    if place == PLACES[0]:
        return bytes(
            model(
                [reference(kind, (SMALL, SMALL), location=WEIGHTS, offset=start(weights), length=size)], nodes
            ).SerializeToString()
        )
    if place == PLACES[1]:
        own = TensorProto(name="w", data_type=kind, dims=[SMALL, SMALL], raw_data=bytes(size))
        return bytes(model([own], nodes).SerializeToString())
    value = helper.make_tensor_value_info("w", kind, [SMALL, SMALL])
    return bytes(model([], nodes, inputs=[value]).SerializeToString())


def _right(place: str, kind: int, stored: str) -> bool:
    if place == PLACES[0]:
        return STORED[stored] == kind
    return place == PLACES[2] and kind == TensorProto.FLOAT and stored in ("F16", "BF16")


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("place", PLACES)
def test_no_pairing_of_types_is_taken_but_the_right_one(tmp_path: Path, place: str, stored: str) -> None:
    weights = table(stored, SMALL, SMALL)
    wanted = _interface(weights, tmp_path / "b", widened=place == PLACES[2])
    for kind in TYPES:
        content = _placed(place, kind, stored, weights)
        if _right(place, kind, stored):
            check_graph(content, wanted)
        else:
            with pytest.raises(BundleError, match="'w'"):
                check_graph(content, wanted)


@pytest.mark.parametrize(("kind", "stored"), [(TensorProto.FLOAT, "I64"), (TensorProto.STRING, "U8")])
def test_a_pairing_that_corrupts_memory_does_not_reach_onnxruntime(
    tmp_path: Path, no_session: None, kind: int, stored: str
) -> None:
    weights = table(stored, SMALL, SMALL)
    refuse(write(tmp_path / "b", _placed(PLACES[0], kind, stored, weights), weights), "'w'")


# Where a weight is.


@pytest.mark.parametrize(
    "change",
    [
        {"location": "../secret"},
        {"location": "/etc/passwd"},
        {"location": "*/_ORT_MEM_ADDR_/*"},
        {"location": "./weights.safetensors"},
        {"location": "manifest.json"},
        {"location": ""},
        {"offset": "0"},
        {"offset": "-1"},
        {"offset": str(2**64)},
        {"offset": "0x40"},
        {"length": "4"},
        {"length": str(2**63)},
        {"checksum": "0"},
        {"basepath": "/"},
        {"location": None},
        {"offset": None},
        {"length": None},
    ],
)
@pytest.mark.parametrize("form", ["file", "fused"])
def test_a_weight_lies_where_the_weight_file_has_it(
    tmp_path: Path, no_session: None, change: dict[str, str | None], form: str
) -> None:
    weights = table()
    places = {"location": WEIGHTS, "offset": str(start(weights)), "length": str(VOCABULARY * VOCABULARY * 4)}
    external = {key: value for key, value in {**places, **change}.items() if value is not None}
    folder = write(tmp_path / "b", model([reference(**external)]).SerializeToString(), weights, form)
    bundle = open_bundle(folder)
    with pytest.raises(BundleError, match="'w'"):
        bundle.graph(bundle.manifest.graphs[0], "fused" if form == "fused" else "file")


def test_links_and_files_that_nobody_lists_are_not_read(tmp_path: Path, no_session: None) -> None:
    (tmp_path / "secret").write_bytes(bytes(4096))
    for name, put in (("link", Path.symlink_to), ("hard", Path.hardlink_to), ("own", None)):
        content = model(
            [reference(TensorProto.UINT8, (VOCABULARY,), "s", location=name, offset=0, length=VOCABULARY)],
            [helper.make_node("Cast", ["s"], ["logits"], to=TensorProto.FLOAT)],
        ).SerializeToString()
        folder = write(tmp_path / "b", content)
        if put is None:
            (folder / name).write_bytes(bytes(4096))
        else:
            put(folder / name, tmp_path / "secret")
        refuse(folder, f"takes the data of 's' from '{name}'")


@pytest.mark.parametrize("dims", [(VOCABULARY,), (VOCABULARY, VOCABULARY, 1), (2, VOCABULARY), (0, 0), (2**62, 4)])
def test_a_weight_has_the_shape_that_the_weight_file_says(
    tmp_path: Path, no_session: None, dims: tuple[int, ...]
) -> None:
    weights = table()
    tensor = sound(weights)
    del tensor.dims[:]
    tensor.dims.extend(dims)
    refuse(write(tmp_path / "b", model([tensor]).SerializeToString(), weights), "'w'")


# What a graph takes and returns.


@pytest.mark.parametrize(
    ("side", "change", "message"),
    [
        ("input", {"name": "ids"}, "input 'ids' that the manifest does not list"),
        ("input", {"elem_type": TensorProto.INT32}, "input 'input_ids' as int32"),
        ("input", {"shape": ["batch", 2]}, "input 'input_ids'"),
        ("input", {"shape": ["batch"]}, "input 'input_ids'"),
        ("input", {"shape": [1, 1]}, "input 'input_ids'"),
        ("input", {"shape": None}, "of unknown shape"),
        ("output", {"name": "other"}, "output 'other'"),
        ("output", {"elem_type": TensorProto.DOUBLE}, "output 'logits' as float64"),
        ("output", {"elem_type": TensorProto.STRING}, "output 'logits' as type 8"),
        ("output", {"shape": ["batch", 1, 8]}, "output 'logits'"),
    ],
)
def test_inputs_and_outputs_are_the_manifests(
    tmp_path: Path, no_session: None, side: str, change: dict[str, object], message: str
) -> None:
    weights = table()
    forged = model([sound(weights)])
    values = forged.graph.input if side == "input" else forged.graph.output
    facts = {"name": values[0].name, "elem_type": values[0].type.tensor_type.elem_type}
    facts["shape"] = ["batch", 1] if side == "input" else ["batch", 1, VOCABULARY]
    facts |= change
    values[0].CopyFrom(helper.make_tensor_value_info(facts["name"], facts["elem_type"], facts["shape"]))
    if side == "output":
        forged.graph.node[0].output[0] = str(facts["name"])
    else:
        forged.graph.node[0].input[1] = str(facts["name"])
    refuse(write(tmp_path / "b", forged.SerializeToString(), weights), message)


def test_a_weight_cannot_take_the_place_of_an_input(tmp_path: Path, no_session: None) -> None:
    weights = safetensors(
        {"w": ("F32", (VOCABULARY, VOCABULARY), bytes(4 * VOCABULARY**2)), "input_ids": ("F16", (1, 1), bytes(2))}
    )
    refuse(write(tmp_path / "b", model([sound(weights)]).SerializeToString(), weights), "'input_ids'")


# What a graph computes with.


def _function() -> onnx.ModelProto:
    body = [helper.make_node("Neg", ["x"], ["y"])]
    opsets = [helper.make_opsetid("", 20)]
    called = helper.make_node("F", ["g"], ["logits"], domain="evil")
    made = helper.make_function("evil", "F", ["x"], ["y"], body, opsets)
    return model(
        [sound(table())],
        [helper.make_node("Gather", ["w", "input_ids"], ["g"]), called],
        opsets=[helper.make_opsetid("evil", 1)],
        functions=[made],
    )


def _loop() -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}2"]) for name in ("c", "x")],
        "body",
        [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("x", TensorProto.FLOAT, None)],
        [value("c2", TensorProto.BOOL, []), value("x2", TensorProto.FLOAT, None)],
    )
    gather = helper.make_node("Gather", ["w", "input_ids"], ["g"])
    loop = helper.make_node("Loop", ["trips", "yes", "g"], ["logits"], body=body)
    return model([sound(table()), constant("trips", 2**62), constant("yes", True)], [gather, loop])


def _sparse() -> onnx.ModelProto:
    made = model([sound(table())])
    made.graph.sparse_initializer.add().values.name = "w2"
    return made


def _training() -> onnx.ModelProto:
    made = model([sound(table())])
    made.training_info.add()
    return made


def _annotated() -> onnx.ModelProto:
    made = model([sound(table())])
    made.graph.quantization_annotation.add(tensor_name="w")
    return made


def _twice(where: str) -> onnx.ModelProto:
    made = model([sound(table())])
    if where == "initializer":
        made.graph.initializer.append(made.graph.initializer[0])
    elif where == "input":
        made.graph.input.append(made.graph.input[0])
    elif where == "output":
        made.graph.output.append(made.graph.output[0])
    else:
        made.graph.node.append(made.graph.node[0])
    return made


def _node(operator: str, inputs: list[str], domain: str = "", **attributes: object) -> onnx.ModelProto:
    """The operator between a lookup and the outputs."""
    nodes = [
        helper.make_node("Gather", ["w", "input_ids"], ["g"]),
        helper.make_node(operator, inputs, ["o"], domain=domain, **attributes),
        helper.make_node("Identity", ["g"], ["logits"]),
    ]
    numbers = {"zero": 0, "minus": -1, "seven": 7}
    constants = [constant(name, np.array([value])) for name, value in numbers.items()]
    return model([sound(table()), *constants, constant("one_zero", np.array([1, 0]))], nodes)


FORGED = {
    "a function": (_function, "has field 25"),
    "a loop": (_loop, "attribute 'body'"),
    "an operator that ONNX has and we do not write": (lambda: _node("Det", ["g"]), "operator 'Det'"),
    "a branch": (lambda: _node("If", ["seven"]), "operator 'If'"),
    "a domain that is not said": (lambda: _node("Neg", ["g"], "com.microsoft"), "operator 'Neg' of domain"),
    "an operator of ours without its domain": (lambda: _node("Linear", ["g", "g"]), "operator 'Linear'"),
    "an attribute that we do not write": (lambda: _node("Conv", ["g", "g"], strides=[0, 0]), "attribute 'strides'"),
    "an attribute of another kind": (lambda: _node("Softmax", ["g"], axis=1.5), "attribute 'axis'"),
    "a cast to text": (lambda: _node("Cast", ["g"], to=TensorProto.STRING), "casts to type 8"),
    "a cast to nothing": (lambda: _node("Cast", ["g"]), "casts to type 0"),
    "a division of whole numbers by 0": (lambda: _node("Div", ["input_ids", "zero"]), "divides whole numbers"),
    "a division of whole numbers by -1": (lambda: _node("Div", ["input_ids", "minus"]), "divides whole numbers"),
    "a division by 1 and 0": (lambda: _node("Mod", ["input_ids", "one_zero"]), "divides whole numbers"),
    "a division by what comes in": (lambda: _node("Mod", ["seven", "input_ids"]), "divides whole numbers"),
    "a value from nowhere": (lambda: _node("Neg", ["nowhere"]), "which nothing before it computes"),
    "sparse tensors": (_sparse, "has field 15"),
    "training": (_training, "has field 20"),
    "annotations": (_annotated, "has field 14"),
    "an initializer twice": (lambda: _twice("initializer"), "twice"),
    "an input twice": (lambda: _twice("input"), "twice"),
    "an output twice": (lambda: _twice("output"), "twice"),
    "a node twice": (lambda: _twice("node"), "twice"),
}


@pytest.mark.parametrize("what", FORGED)
def test_nothing_that_no_exporter_of_ours_writes_is_run(tmp_path: Path, no_session: None, what: str) -> None:
    forge, message = FORGED[what]
    refuse(write(tmp_path / "b", forge().SerializeToString()), message)


@pytest.mark.parametrize(("domain", "version"), [("", 19), ("", 21), ("ai.titans", 2), ("evil", 1), ("ai.onnx.ml", 3)])
def test_only_the_versions_that_we_write_are_run(tmp_path: Path, no_session: None, domain: str, version: int) -> None:
    forged = model([sound(table())])
    del forged.opset_import[:]
    forged.opset_import.append(helper.make_opsetid(domain, version))
    refuse(write(tmp_path / "b", forged.SerializeToString()), "domain|which version")


def test_data_of_a_constant_is_as_much_as_its_shape_says(tmp_path: Path, no_session: None) -> None:
    for tensor in (
        TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[4], raw_data=bytes(8)),
        TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[2**40], raw_data=bytes(8)),
        TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[2**32, 2**32, 2**32], raw_data=b""),
        TensorProto(name="c", data_type=TensorProto.INT64, dims=[2], int64_data=[1]),
        TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[1], float_data=[1.0]),
        TensorProto(name="c", data_type=TensorProto.STRING, dims=[1], string_data=[b"x"]),
        TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[1] * 2000, raw_data=bytes(4)),
    ):
        refuse(write(tmp_path / "b", model([sound(table()), tensor]).SerializeToString()), "initializer|field")


@pytest.mark.skipif(native.found()[0] is None, reason="no compiler was there to make kernels with")
def test_a_twin_with_kernels_is_held_to_the_same(tmp_path: Path, no_session: None) -> None:
    refuse(write(tmp_path / "b", _loop().SerializeToString(), form="fused"), "attribute 'body'")


def test_what_left_a_bundle_is_not_used(tmp_path: Path) -> None:
    folder = write(tmp_path / "b", omitted=["step.onnx"])
    (folder / "step.onnx").write_bytes(b"unlisted, unhashed")
    refuse(folder, r"step\.onnx was left out of this bundle by `titans slim`")
    folder = write(tmp_path / "b", omitted=[WEIGHTS])
    refuse(folder, "has no such tensor")


def test_names_are_compared_whole(tmp_path: Path) -> None:
    """A weight's entry counts under its own name, and no other."""
    weights = table()
    for first, second in itertools.permutations(("w", "W", "w "), 2):
        stored = safetensors({second: ("F32", (VOCABULARY, VOCABULARY), weights[start(weights) :])})
        size = VOCABULARY * VOCABULARY * 4
        tensor = reference(name=first, location=WEIGHTS, offset=start(stored), length=size)
        nodes = [helper.make_node("Gather", [first, "input_ids"], ["logits"])]
        refuse(write(tmp_path / "b", model([tensor], nodes).SerializeToString(), stored), "has no such tensor")


# Packed integers: ONNX Runtime packs them anew for as many rows and blocks as the attributes say.

PACKED = {"K": 64, "N": 2, "bits": 4, "block_size": 32, "accuracy_level": 4}


def _packed(codes: tuple[int, ...] = (2, 2, 16), scales: tuple[int, ...] = (2, 2), cast: bool = True, more: int = 0,
            **changes: int) -> bytes:  # fmt: skip
    """A graph that multiplies with packed integers, for an interface without weights."""
    stored = np.zeros(scales, np.float16 if cast else np.float32)
    tensors = [onnx.numpy_helper.from_array(np.zeros(codes, np.uint8), "c"), onnx.numpy_helper.from_array(stored, "s")]
    wide = [helper.make_node("Cast", ["s"], ["wide"], to=TensorProto.FLOAT)] if cast else []
    names = ["x", "c", "wide" if cast else "s", *["c"] * more]
    product = helper.make_node("MatMulNBits", names, ["y"], domain="com.microsoft", **(PACKED | changes))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1, 2])
    graph = helper.make_graph([*wide, product], "g", [x], [y], tensors)
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=domains, ir_version=10).SerializeToString())


def _check_packed(content: bytes) -> None:
    x = TensorSpec(name="x", dtype="float32", shape=(BATCH, 1, 64))
    y = TensorSpec(name="y", dtype="float32", shape=(BATCH, 1, 2))
    check_graph(content, Interface("step.onnx", [x], [y], {}, WEIGHTS))


def test_packed_integers_of_the_right_sizes_pass() -> None:
    _check_packed(_packed())
    _check_packed(_packed(scales=(4,), cast=False))
    _check_packed(_packed(codes=(2, 2, 32), bits=8))


@pytest.mark.parametrize(
    "content",
    [
        _packed(codes=(2, 2, 15)),
        _packed(codes=(2, 1, 16)),
        _packed(codes=(1, 2, 16)),
        _packed(codes=(64,)),
        _packed(scales=(2, 1)),
        _packed(scales=(3,)),
        _packed(N=3),
        _packed(K=65),
        _packed(K=0),
        _packed(N=-2),
        _packed(K=2**62),
        _packed(bits=8),
        _packed(bits=2),
        _packed(block_size=16),
        _packed(block_size=0),
        _packed(more=1),
    ],
)
def test_packed_integers_of_other_sizes_than_their_attributes_say_are_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"packed integers|scales"):
        _check_packed(content)
