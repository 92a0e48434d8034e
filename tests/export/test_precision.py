"""Bundles of lower precision: what is stored, what the graphs compute, and that a wrong one is found."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

import titans_runtime
from tests.export.conftest import build
from titans_core.layers import Linear
from titans_core.model import TitansModel
from titans_export.bundle import writer as bundle_writer
from titans_export.bundle.weights import write_tensors
from titans_export.errors import ExportError
from titans_export.export import export_model
from titans_export.graph.model import example_feeds, past, present
from titans_export.models.precision import at_precision, precision
from titans_export.models.protocol import DATA_INPUTS, Feeds
from titans_export.passes.blocks import BLOCK, Blocks, from_gguf, product, quantised, rounded, stacked
from titans_export.passes.quantise import codes_name, least_name, quantise, scales_name
from titans_export.verification.agreement import compare
from titans_export.verification.tolerances import tolerance
from titans_format.manifest import Manifest
from titans_runtime.errors import ProviderError, StateError
from titans_runtime.tensorfile import map_tensors

VARIANTS = ("lmm", "mal", "mag", "mac")
LOWER = ("fp16", "bf16", "int8", "int4")
INTEGERS = ("int8", "int4")


@dataclass(frozen=True)
class Lowered:
    """A bundle of lower precision and the model that it was made from."""

    path: Path
    model: TitansModel
    manifest: Manifest


@pytest.fixture(scope="module", params=[f"{variant}-{dtype}" for variant in VARIANTS for dtype in LOWER])
def lowered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    """One bundle per variant and precision, not yet verified."""
    variant, dtype = request.param.split("-")
    model = build(f"{variant}-tokens")
    path = tmp_path_factory.mktemp("lowered") / f"{request.param}.titans"
    return Lowered(path, model, export_model(model, path, dtype=dtype, verify_tokens=0))


def test_a_bundle_of_any_precision_computes_what_its_weights_say(lowered: Lowered) -> None:
    report = compare(lowered.path, lowered.model, tokens=200)
    assert report.ok, report.explain()
    assert report.dtype == lowered.manifest.dtype


def test_norms_gates_and_memory_stay_fp32_and_the_rest_does_not(lowered: Lowered) -> None:
    weights = map_tensors(lowered.path / "weights.safetensors")
    low = {"fp16": "F16", "bf16": "BF16", "int8": "U8", "int4": "U8"}[lowered.manifest.dtype]
    matrices = {f"{path}.weight" for path, part in lowered.model.named_modules() if isinstance(part, Linear)}
    matrices |= {"embedding"}
    for name, tensor in weights.items():
        plain = name.removesuffix(".codes")
        if name.endswith(".scales"):
            assert tensor.dtype == "F16", name
        elif name.endswith("gain") or ".gate_bias" in name or ".initial" in name:
            assert tensor.dtype == "F32", name
        elif plain in matrices:
            assert tensor.dtype == low, name
        else:  # convolutions and persistent tokens are not multiplied as matrices
            assert tensor.dtype == (low if low != "U8" else "F32"), name
    assert matrices <= {name.removesuffix(".codes") for name in weights}
    stored = sum(tensor.array.nbytes for tensor in weights.values())
    assert stored < 0.6 * sum(4 * p.numel() for p in lowered.model.parameters())
    specs = {spec.name: spec for spec in lowered.model.state_specs()}
    for state in lowered.manifest.states:
        activation = specs[state.name].dtype == "activation" and lowered.manifest.dtype == "fp16"
        assert state.dtype == ("float16" if activation else "float32"), state.name


def run_onnx(path: Path, feeds: dict[str, Any], dtype: str) -> dict[str, np.ndarray[Any, Any]]:
    """A half-precision graph as it is: fp16 by ONNX Runtime, bf16 by ONNX's reference, both in that arithmetic."""
    if dtype == "fp16":
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))
    evaluator = ReferenceEvaluator(str(path))
    return dict(zip(evaluator.output_names, evaluator.run(None, feeds), strict=True))


def test_half_precision_graphs_compute_what_pytorch_computes_in_half_precision(lowered: Lowered) -> None:
    dtype = lowered.manifest.dtype
    if dtype in INTEGERS:
        pytest.skip("there is one kind of graph, and the runtime has run it")
    steppable = at_precision(lowered.model, precision(dtype))
    for graph, spec in zip(steppable.graphs(), lowered.manifest.graphs, strict=True):
        torch.manual_seed(0)
        feeds: Feeds = {}
        for name, value in example_feeds(steppable, graph, 2).items():
            feeds[name] = value + 0.1 * torch.randn_like(value) if value.is_floating_point() else value
        if "input_ids" in feeds:
            feeds["input_ids"] = torch.randint(0, 50, feeds["input_ids"].shape)
        wanted = graph.run(feeds)
        named = {name if name in DATA_INPUTS else past(name): value.numpy() for name, value in feeds.items()}
        got = run_onnx(lowered.path / spec.file, {t.name: named[t.name] for t in spec.inputs}, dtype)
        unit = 2**-10 if dtype == "fp16" else 2**-7
        for name, value in wanted.items():
            found = got.get(name, got.get(present(name)))
            assert found is not None, name
            scale = max(1.0, float(value.abs().max()))
            error = float(np.abs(found.astype(np.float32) - value.float().numpy()).max()) / scale
            assert error < 16 * unit, (spec.name, name, error)


@pytest.mark.parametrize("dtype", LOWER)
def test_a_bundle_with_other_weights_fails(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, int]]:
        wrong = {name: value.mul(1.2).to(value.dtype) if "scales" in name or dtype != "int8" else value
                 for name, value in tensors.items()}  # fmt: skip
        return write_tensors(path, wrong)

    model = build("mac-tokens")
    monkeypatch.setattr(bundle_writer, "write_tensors", spoiled)
    export_model(model, tmp_path / "bad.titans", dtype=dtype, verify_tokens=0)
    assert not compare(tmp_path / "bad.titans", model, tokens=64).ok


@pytest.mark.parametrize("dtype", LOWER)
def test_saved_and_batched_streams_go_on_as_if_nothing_had_happened(dtype: str, tmp_path: Path) -> None:
    export_model(build("mag-tokens"), tmp_path / "m.titans", dtype=dtype, verify_tokens=0)
    model = titans_runtime.load(tmp_path / "m.titans", threads=1)
    tokens = np.random.default_rng(0).integers(0, 50, 45)
    whole = model.session()
    want = whole.feed(tokens, all_logits=True)[30:]
    session = model.session()
    session.feed(tokens[:30])
    session.save(tmp_path / "s.state")
    restored = model.restore(tmp_path / "s.state")
    close = 10 * tolerance(dtype).outputs  # another split of the stream rounds at other places
    np.testing.assert_allclose(restored.feed(tokens[30:], all_logits=True), want, atol=close)
    driver = model.driver(3)
    together = driver.feed(np.stack([tokens] * 3), all_outputs=True).outputs
    np.testing.assert_allclose(together[:, 30:], np.stack([want] * 3), atol=close)


def test_every_precision_has_its_tolerances() -> None:
    assert all(tolerance(dtype).outputs > 0 for dtype in ("fp32", *LOWER))
    with pytest.raises(ExportError, match="fp64"):
        precision("fp64")


# ---------------------------------------------------------------- int8, int4


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 200), count=st.integers(1, 9), axis=st.integers(0, 1), seed=st.integers(0, 2**16))
def test_integers_are_within_half_a_step_of_the_weights(width: int, count: int, axis: int, seed: int) -> None:
    torch.manual_seed(seed)
    rows = torch.randn(count, width) * 10.0 ** torch.randint(-3, 4, (count, 1))
    rows[0] = 0.0
    weight = rows if axis == 1 else rows.T.contiguous()
    blocks = quantised(weight, axis, 8)
    assert blocks.codes.shape == (count, -(-width // BLOCK), BLOCK)
    steps = blocks.scales.float().repeat_interleave(BLOCK, dim=1)[:, :width]
    error = (rounded(weight, axis, 8) - weight).abs()
    assert bool((error <= 0.5001 * (steps if axis == 1 else steps.T)).all())


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 200), count=st.integers(1, 9), axis=st.integers(0, 1), seed=st.integers(0, 2**16))
def test_four_bits_lose_less_than_the_plain_scale_of_the_largest_number(
    width: int, count: int, axis: int, seed: int
) -> None:
    torch.manual_seed(seed)
    rows = torch.randn(count, width) * 10.0 ** torch.randint(-3, 4, (count, 1))
    rows[0] = 0.0
    weight = rows if axis == 1 else rows.T.contiguous()
    found = rounded(weight, axis, 4)
    padded = torch.nn.functional.pad(rows, (0, -width % BLOCK)).reshape(count, -1, BLOCK)
    steps = (padded.abs().amax(-1, keepdim=True) / 7).half().float()
    plain = torch.round(padded / torch.where(steps > 0, steps, 1.0)).clamp(-8, 7) * steps
    lost = (found - weight).square().sum()
    assert lost <= 1.0001 * (plain - padded).square().sum()
    assert bool((found[weight == 0] == 0).all())


def gguf_block(kind: str, block: bytes) -> list[float]:
    """The 32 numbers of a block of GGUF, as its format says."""
    scale = float(np.frombuffer(block[:2], np.float16)[0])
    if kind == "Q8_0":
        return [scale * code for code in np.frombuffer(block[2:], np.int8).tolist()]
    least = float(np.frombuffer(block[2:4], np.float16)[0]) if kind == "Q4_1" else -8 * scale
    pairs = block[-16:]
    return [scale * code + least for code in (*(pair & 15 for pair in pairs), *(pair >> 4 for pair in pairs))]


@pytest.mark.parametrize(("kind", "size"), [("Q4_0", 18), ("Q4_1", 20), ("Q8_0", 34)])
def test_blocks_of_gguf_keep_their_numbers(kind: str, size: int) -> None:
    random = np.random.default_rng(1)
    raw = random.integers(0, 256, (3, 2, size), dtype=np.uint8)
    halves = raw.view(np.float16)
    halves[..., : 2 if kind == "Q4_1" else 1] = random.standard_normal((3, 2, 1)).astype(np.float16)
    blocks = from_gguf(kind, raw.reshape(-1), 3, 64)
    wanted = [[number for block in row for number in gguf_block(kind, block.tobytes())] for row in raw]
    np.testing.assert_allclose(blocks.numbers().numpy(), np.array(wanted, np.float32), rtol=1e-6, atol=1e-6)
    twice = stacked([blocks, blocks])
    np.testing.assert_array_equal(twice.numbers().numpy(), blocks.numbers().repeat(2, 1).numpy())
    with pytest.raises(ValueError, match=r"are not a .* matrix of 4 rows of 64 numbers"):
        from_gguf(kind, raw.reshape(-1), 4, 64)
    with pytest.raises(ValueError, match="Q6_K is not a type that blocks can hold"):
        from_gguf("Q6_K", raw.reshape(-1), 3, 64)


def with_least(weight: torch.Tensor) -> Blocks:
    """A matrix `[n, k]` in blocks of 4 bits that have a least number each."""
    cut = torch.nn.functional.pad(weight, (0, -weight.shape[1] % BLOCK)).reshape(weight.shape[0], -1, BLOCK)
    least, scales = cut.amin(-1).half(), ((cut.amax(-1) - cut.amin(-1)) / 15).half()
    codes = torch.round((cut - least.float()[..., None]) / scales.float()[..., None]).clamp(0, 15).to(torch.uint8)
    return Blocks(4, weight.shape[1], codes[..., ::2] | codes[..., 1::2] << 4, scales, least)


def quantised_graph(
    model: onnx.ModelProto,
    weights: dict[str, torch.Tensor],
    bits: Literal[4, 8],
    ready: dict[str, Blocks] | None = None,
) -> tuple[dict[str, torch.Tensor], bytes]:
    """What `quantise` stores for one graph, and the graph with it inside."""
    changed = ir.from_proto(model)
    for number, node in enumerate(changed.graph):
        node.name = f"n{number}"
    stored = quantise([changed], weights, bits, ready=ready)
    for value in changed.graph.initializers.values():
        if value.name in stored:
            value.const_value = ir.tensor(stored[value.name].numpy())
    proto = ir.to_proto(changed)
    onnx.checker.check_model(proto, full_check=True)
    return stored, bytes(proto.SerializeToString())


@pytest.mark.parametrize(("width", "count"), [(32, 5), (100, 7), (130, 3)])
@pytest.mark.parametrize("bits", [8, 4])
def test_graphs_multiply_with_and_look_up_integers(width: int, count: int, bits: Literal[4, 8]) -> None:
    torch.manual_seed(0)
    weights = {"m": torch.randn(width, count), "e": torch.randn(9, width), "c": torch.randn(2, count)}
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
g (int64[1, t] ids) => (float[1, t, {count}] y, float[1, t, 9] z, float[2, {count}] w)
<float[{width}, {count}] m, float[9, {width}] e, float[2, {count}] c>
{{ x = Gather<axis = 0>(e, ids)  y = MatMul(x, m)  f = Transpose<perm = [1, 0]>(e)  z = MatMul(x, f)
   w = Identity(c) }}"""
    model = onnx.parser.parse_model(text)
    for name, value in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.numpy(), name))
    stored, content = quantised_graph(model, weights, bits)
    assert sorted(stored) == sorted(["c", *(f(n) for n in ("m", "e") for f in (codes_name, scales_name))])
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    ids = np.array([[3, 0, 8]])
    y, z, w = session.run(["y", "z", "w"], {"ids": ids})
    x = rounded(weights["e"], 1, 8)[ids[0]]
    largest = float(x.abs().max()) / 127  # the kernel rounds x to at most this step
    for got, matrix in ((y, rounded(weights["m"], 0, bits)), (z, rounded(weights["e"], 1, 8).T)):
        error = np.abs(got[0] - (x @ matrix).numpy()).max()
        assert error <= 0.5 * largest * float(matrix.abs().sum(0).max())
    np.testing.assert_array_equal(w, weights["c"].numpy())


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_what_is_in_blocks_already_is_stored_and_looked_up_as_it_is(kind: str) -> None:
    random = np.random.default_rng(2)
    size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[kind]
    raw = random.integers(0, 256, (9, 3, size), dtype=np.uint8)
    raw.view(np.float16)[..., : 2 if kind == "Q4_1" else 1] = random.standard_normal((9, 3, 1)).astype(np.float16)
    blocks = from_gguf(kind, raw.reshape(-1), 9, 96)
    weights = {"e": blocks.numbers()}
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
g (int64[1, t] ids) => (float[1, t, 96] x, float[1, t, 9] z) <float[9, 96] e>
{ x = Gather<axis = 0>(e, ids)  f = Transpose<perm = [1, 0]>(e)  z = MatMul(x, f) }""")
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights["e"].numpy(), "e"))
    stored, content = quantised_graph(model, weights, 4, {"e": blocks})
    assert (least_name("e") in stored) == (kind == "Q4_1")
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    ids = np.array([[3, 0, 8]])
    (x,) = session.run(["x"], {"ids": ids})
    np.testing.assert_allclose(x[0], weights["e"][ids[0]].numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("width", "rows"), [(64, 1), (96, 1), (160, 9), (192, 64)])
@pytest.mark.parametrize("kind", ["8 bits", "4 bits", "4 bits with least numbers"])
def test_the_reference_rounds_activations_as_the_kernel_does(width: int, rows: int, kind: str) -> None:
    torch.manual_seed(1)
    weights = {"m": torch.randn(width, 7) + (kind == "4 bits with least numbers")}
    blocks = quantised(weights["m"], 0, 8 if kind == "8 bits" else 4)
    if kind == "4 bits with least numbers":
        blocks = with_least(weights["m"].T)
    x = torch.randn(rows, width) * torch.rand(rows, 1) * 10
    x[:, :3] = 0.0
    model = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 20]>
g (float[1, {rows}, {width}] x) => (float[1, {rows}, 7] y) <float[{width}, 7] m> {{ y = MatMul(x, m) }}""")
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights["m"].numpy(), "m"))
    _, content = quantised_graph(model, weights, blocks.bits, {"m": blocks})
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x[None].numpy()})
    error = np.abs(y[0] - product(x, blocks).numpy()).max()
    unrounded = np.abs(y[0] - (x @ blocks.numbers().T).numpy()).max()
    assert error < 2e-3 < 1e-2 < unrounded


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_state_belongs_to_the_weights_as_they_are_stored(tmp_path: Path, dtype: str) -> None:
    export_model(build("lmm-tokens"), tmp_path / "one.titans", verify_tokens=0)
    export_model(build("lmm-tokens"), tmp_path / "two.titans", dtype=dtype, verify_tokens=0)
    one, two = (titans_runtime.load(tmp_path / name, threads=1) for name in ("one.titans", "two.titans"))
    session = one.session()
    session.feed([1, 2, 3])
    if dtype == "fp32":
        np.testing.assert_array_equal(two.restore_bytes(session.to_bytes()).feed([4]), session.feed([4]))
    else:
        with pytest.raises(StateError, match="another model"):
            two.restore_bytes(session.to_bytes())


def test_an_int8_bundle_is_for_cpus_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = export_model(build("lmm-tokens"), tmp_path / "m.titans", dtype="int8", verify_tokens=0)
    assert manifest.providers == ("cpu",)
    assert json.loads((tmp_path / "m.titans" / "manifest.json").read_text())["providers"] == ["cpu"]
    operators = {
        node.op_type for node in onnx.load(tmp_path / "m.titans" / "step.onnx", load_external_data=False).graph.node
    }
    assert "MatMulNBits" in operators
    monkeypatch.setattr("titans_runtime.devices.select.PROVIDERS", ("cpu", "cuda"))
    with pytest.raises(ProviderError, match=r"int8 bundle for cpu only, not for cuda.*--dtype"):
        titans_runtime.load(tmp_path / "m.titans", provider="cuda")


# -- weights that a precision cannot hold ------------------------------------------------------------------------------


def with_weight(value: float, name: str = "layers.0.feed_forward.down.weight") -> tuple[TitansModel, str]:
    """A model with one number of one weight changed."""
    model = build("mag-tokens")
    parameters = dict(model.named_parameters())
    name = name if name in parameters else next(path for path in parameters if parameters[path].dim() == 2)
    with torch.no_grad():
        parameters[name][1, 2] = value
    return model, name


@pytest.mark.parametrize("verify_tokens", [0, 20])
@pytest.mark.parametrize(
    ("dtype", "value", "words"),
    [
        ("fp16", 70000.0, "holds 70000 at [1, 2], and fp16 ends at 65504; use --dtype bf16 or fp32"),
        ("fp16", -65520.0, "holds -65520 at [1, 2], and fp16 ends at 65504; use --dtype bf16 or fp32"),
        ("bf16", 3.4e38, "holds 3.4e+38 at [1, 2], and bf16 ends at 3.38953e+38; use --dtype fp32"),
        *[(dtype, float("nan"), "holds nan at [1, 2], which is not finite") for dtype in ("fp32", *LOWER)],
        *[(dtype, float("-inf"), "holds -inf at [1, 2], which is not finite") for dtype in ("fp32", *LOWER)],
    ],
)
def test_a_weight_beyond_the_range_is_named_and_nothing_is_left(
    tmp_path: Path, dtype: str, value: float, words: str, verify_tokens: int
) -> None:
    model, name = with_weight(value)
    with pytest.raises(ExportError) as caught:
        export_model(model, tmp_path / "out", dtype=dtype, verify_tokens=verify_tokens)
    assert f"the weight {name} {words}" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("dtype", "value"), [("fp16", 65504.0), ("fp16", 65519.0), ("bf16", 3.3e38), ("int8", 7e4)])
def test_the_largest_weight_that_fits_is_stored(tmp_path: Path, dtype: str, value: float) -> None:
    model, _ = with_weight(value)
    export_model(model, tmp_path / "out", dtype=dtype, verify_tokens=0)


def test_a_weight_that_would_become_nothing_is_named(tmp_path: Path) -> None:
    model, name = with_weight(1.0)
    with torch.no_grad():
        dict(model.named_parameters())[name].mul_(1e-9)
    with pytest.raises(ExportError, match=f"the weight {name} holds .*has no numbers but 0 below 5.96046e-08"):
        export_model(model, tmp_path / "out", dtype="fp16", verify_tokens=0)
    export_model(model, tmp_path / "out", dtype="bf16", verify_tokens=0)


@pytest.mark.parametrize("scale", [0.0, 1e-5, 1e3])
@pytest.mark.parametrize("bits", [8, 4])
def test_integers_of_any_scale_are_finite_and_right(scale: float, bits: Literal[4, 8]) -> None:
    weight = torch.randn(32, 48, generator=torch.Generator().manual_seed(0)) * scale
    found = rounded(weight, 0, bits)
    assert torch.isfinite(found).all()
    assert (found - weight).abs().max() <= weight.abs().max() / (120 if bits == 8 else 7)


@pytest.mark.parametrize(("scale", "message"), [(1e7, "holds numbers up to"), (1e-8, "has scales for")])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_a_weight_beyond_the_scales_of_integers_is_named(
    tmp_path: Path, scale: float, message: str, dtype: str
) -> None:
    model, name = with_weight(1.0)
    with torch.no_grad():
        dict(model.named_parameters())[name].mul_(scale)
    with pytest.raises(ExportError, match=f"the weight {name} .*{message}.* use --dtype fp32"):
        export_model(model, tmp_path / "out", dtype=dtype, verify_tokens=0)
