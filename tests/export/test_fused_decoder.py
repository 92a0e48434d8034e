"""The fused kernels of pretrained decoders beside PyTorch: products in blocks, norms, attention over a window."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor
from torch.nn import functional as F

from tests.export.test_decoder_bundles import exported
from tests.titans_core.decoder.families import ids
from titans_core.decoder.config import DecoderConfig
from titans_core.decoder.model import Decoder
from titans_core.layers import RMSNorm
from titans_export.graph import fused_ops
from titans_export.graph.fused_ops import DOMAIN, VERSION
from titans_export.passes.blocks import Blocks, product, quantised
from titans_export.passes.fold_into_products import fold_into_products
from titans_runtime import load, native

needs_kernels = pytest.mark.skipif(native.kernels() is None, reason=native.described())
KINDS = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64,
         np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.float16): TensorProto.FLOAT16}  # fmt: skip


def run(operator: str, attributes: dict[str, Any], inputs: list[Tensor], outputs: int = 1) -> list[Tensor]:
    """What one fused operator computes."""
    arrays = {f"x{i}": value.numpy() for i, value in enumerate(inputs)}
    took = [helper.make_tensor_value_info(name, KINDS[value.dtype], value.shape) for name, value in arrays.items()]
    gave = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, None) for i in range(outputs)]
    names = [value.name for value in gave]
    graph = helper.make_graph(
        [helper.make_node(operator, list(arrays), names, domain=DOMAIN, **attributes)], "g", took, gave
    )
    domains = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, VERSION)]
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(native.LIBRARY))
    options.intra_op_num_threads, options.log_severity_level = 2, 4
    proto = helper.make_model(graph, opset_imports=domains, ir_version=10)
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(value) for value in session.run(None, arrays)]


def made(count: int, width: int, kind: str) -> Blocks:
    """A random matrix in blocks; with least numbers as GGUF's Q4_1 has them."""
    weight = torch.randn(count, width)
    if kind != "least":
        return quantised(weight, 1, 8 if kind == "8" else 4)
    cut = F.pad(weight, (0, -width % 32)).reshape(count, -1, 32)
    least, scales = cut.amin(-1).half(), ((cut.amax(-1) - cut.amin(-1)) / 15).half()
    codes = torch.round((cut - least.float()[..., None]) / scales.float()[..., None]).clamp(0, 15).to(torch.uint8)
    return Blocks(4, width, codes[..., ::2] | codes[..., 1::2] << 4, scales, least)


def parts(blocks: Blocks) -> tuple[dict[str, int], list[Tensor]]:
    least = [] if blocks.least is None else [blocks.least]
    return {"bits": blocks.bits, "least": len(least)}, [blocks.codes, blocks.scales, *least]


@needs_kernels
@pytest.mark.parametrize("kind", ["8", "4", "least"])
@pytest.mark.parametrize("width", [32, 77, 576])  # whole blocks, a part of one, an odd and an even number of them
def test_a_product_in_blocks_is_the_numbers_times_rounded_rows(kind: str, width: int) -> None:
    torch.manual_seed(width)
    blocks = made(50, width, kind)
    attributes, weights = parts(blocks)
    for rows in (1, 2, 3, 4, 5, 16, 17, 40):
        x = torch.randn(2, rows, width) * 3
        x[0, 0] = 0.0
        (got,) = run("BlockLinear", attributes, [x, *weights])
        want = product(x, blocks)
        # A number half way between two steps may be rounded to either.
        assert (got - want).abs().max() <= 2e-3 * want.abs().max(), rows
        assert (got - want).abs().mean() <= 2e-5 * want.abs().max(), rows


@needs_kernels
@pytest.mark.parametrize("rows", [1, 4, 19])
@pytest.mark.parametrize("kind", ["8", "least"])
def test_a_norm_a_gate_and_an_addition_are_part_of_a_product(rows: int, kind: str) -> None:
    torch.manual_seed(rows)
    blocks = made(46, 64, kind)
    attributes, weights = parts(blocks)
    x, added = torch.randn(rows, 64), torch.randn(rows, 23)
    norm = RMSNorm(64, 1e-5).requires_grad_(False)
    norm.gain.uniform_(0.5, 2)
    (got,) = run("BlockLinear", attributes | {"norm": 1, "epsilon": 1e-5, "gated": 1, "added": 1},
                 [x, *weights, norm.gain, added])  # fmt: skip
    gate, value = product(norm(x), blocks).chunk(2, dim=-1)
    want = F.silu(gate) * value + added
    assert (got - want).abs().max() <= 2e-3 * want.abs().max()
    (normed,) = run("RMSNorm", {"epsilon": 1e-5}, [x, norm.gain])
    torch.testing.assert_close(normed, norm(x), atol=1e-6, rtol=1e-6)


@needs_kernels
def test_a_product_of_other_sizes_than_its_matrix_is_refused() -> None:
    blocks = quantised(torch.randn(6, 64), 1, 4)
    x, sizes = torch.randn(1, 1, 64), {"bits": 4}
    cases: list[tuple[dict[str, int], list[Tensor]]] = [
        (sizes, [torch.randn(1, 1, 65), blocks.codes, blocks.scales]),
        (sizes, [x, blocks.codes[:, :, :15], blocks.scales]),
        (sizes, [x, blocks.codes, blocks.scales[:5]]),
        (sizes, [x, blocks.codes, blocks.scales.float()]),
        ({"bits": 8}, [x, blocks.codes, blocks.scales]),
        ({"bits": 4, "least": 1}, [x, blocks.codes, blocks.scales]),
        ({"bits": 4, "gated": 1}, [x, blocks.codes[:5], blocks.scales[:5]]),
        ({"bits": 4, "added": 1}, [x, blocks.codes, blocks.scales, torch.zeros(1, 1, 5)]),
    ]
    for attributes, inputs in cases:
        with pytest.raises(Exception, match="fused"):
            run("BlockLinear", attributes, inputs)
    with pytest.raises(Exception, match="attributes that no product has"):
        run("BlockLinear", {"bits": 5}, [x, blocks.codes, blocks.scales])


ATTENTIONS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "no sinks": {"sinks": 0, "window": 9},
    "a window of one chunk": {"window": 8},
    "norms and biases": {"qk_norm": True, "qkv_bias": True, "out_bias": True},
    "as many heads of keys": {"heads": 4, "kv_heads": 4},
    "more tokens than a task": {"chunk": 34, "window": 40, "sinks": 5, "prefill": 102},
}


@needs_kernels
@pytest.mark.parametrize("options", ATTENTIONS.values(), ids=ATTENTIONS)
def test_attention_over_a_window_and_its_sinks_is_pytorchs(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    shape = {"architecture": "llama", "vocab_size": 9, "dim": 20, "layers": 1, "heads": 6, "kv_heads": 2,
             "head_width": 12, "ffn_hidden": 9, "norm_eps": 1e-5, "rotary_frequencies": [10.0**-i for i in range(6)],
             "window": 20, "sinks": 3, "chunk": 8, "prefill": 40}  # fmt: skip
    config = DecoderConfig.from_dict(shape | options)
    attention = Decoder(config).requires_grad_(False).layers[0].attention
    for parameter in attention.parameters():
        parameter.uniform_(-0.5, 1.0)
    stand_in = fused_ops._FusedDecoderAttention(attention)
    monkeypatch.setattr(
        fused_ops, "fused_operator", lambda name, attributes, x, sizes: run(name, attributes, x, len(sizes))
    )
    chunk = config.chunk
    for start in (0, chunk, 5 * chunk):
        position = torch.tensor([start, 0, start + chunk])
        state = {spec.name: torch.randn(spec.batched(3)) for spec in attention.state_specs()}
        for tokens in (chunk, config.prefill):
            x = torch.randn(3, tokens, 20)
            same(attention.chunks(x, state, position), stand_in.chunks(x, state, position))
        for tokens, place in itertools.product((1, chunk // 2), (0, 1, chunk // 2)):
            x, at = torch.randn(3, tokens, 20), position + place
            places = place + torch.arange(tokens).expand(3, -1)
            same(attention.extend(x, state, at, places), stand_in.extend(x, state, at, places))


def same(want: tuple[Tensor, dict[str, Tensor]], got: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(got[0], want[0], atol=3e-5, rtol=1e-4)
    assert set(got[1]) == set(want[1])
    for name, value in want[1].items():
        torch.testing.assert_close(got[1][name], value, atol=3e-5, rtol=1e-4)


@needs_kernels
def test_attention_refuses_places_and_sizes_that_are_not_there() -> None:
    def inputs(tokens: int = 1, position: int = 0, positions: int = 16) -> list[Tensor]:
        table, past, rows = torch.zeros(2 * positions, 4), torch.zeros(1, 1, 8, 4), torch.zeros(4, 1, 1, 4)
        sinks = torch.zeros(1, 1, 2, 4)
        return [
            torch.zeros(1, tokens, 16),
            table,
            table,
            past,
            past,
            sinks,
            sinks,
            rows,
            rows,
            torch.tensor([position]),
        ]

    sizes = {"heads": 2, "kv_heads": 1, "chunk": 4, "past": 2, "window": 8, "sinks": 2, "normed": 0}
    whole = {7, 8}
    assert run("WindowAttention", sizes, inputs(), 3)[0].shape == (1, 1, 8)
    for wrong, message in ((inputs(position=-1), "below 0"), (inputs(tokens=5), "more tokens than a chunk"),
                           (inputs(positions=15), "too few places")):  # fmt: skip
        with pytest.raises(Exception, match=message):
            run("WindowAttention", sizes, wrong, 3)
    for chunks, message in ((inputs(tokens=6), "not whole chunks"), (inputs(tokens=4, position=2), "begin inside"),
                            (inputs(tokens=12), "too few places")):  # fmt: skip
        with pytest.raises(Exception, match=message):
            run("WindowPrefill", sizes, [x for i, x in enumerate(chunks) if i not in whole], 5)
    for wrong_sizes in ({"heads": 3, "kv_heads": 2}, {"window": 10}, {"sinks": 5}, {"past": 0}):
        with pytest.raises(Exception, match="attributes that no attention has"):
            run("WindowAttention", sizes | wrong_sizes, inputs(), 3)


def test_norms_gates_and_additions_are_folded_where_nothing_else_reads_them() -> None:
    def folded(nodes: str, results: str = "float[1, 2, 4] y") -> list[tuple[str, list[str], dict[str, int]]]:
        model = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 20, "{DOMAIN}" : 1]>
g (float[1, 2, 4] x, uint8[8, 1, 16] c, float16[8, 1] s, float[4] n) => ({results})
<float[1, 2, 4] h, float[1, 2, 8] u, float[1, 2, 4] v> {{ {nodes} }}""")
        changed = ir.from_proto(model)
        fold_into_products([changed])
        return [
            (node.op_type, list(node.input), {a.name: a.i for a in node.attribute if a.name not in ("epsilon", "bits")})
            for node in ir.to_proto(changed).graph.node
        ]

    norm, up = f"h = {DOMAIN}.RMSNorm<epsilon = 1.0>(x, n)", f"u = {DOMAIN}.BlockLinear<bits = 4>(h, c, s)"
    gate = f"v = {DOMAIN}.GatedUnit(u)"
    assert folded(f"{norm} {up} {gate} y = Add(v, x)") == [
        ("BlockLinear", ["x", "c", "s", "n", "x"], {"norm": 1, "gated": 1, "added": 1})
    ]
    both = folded(f"{norm} {up} {gate} y = Add(v, x) z = Identity(v)", "float[1, 2, 4] y, float[1, 2, 4] z")
    assert [name for name, _, _ in both] == ["BlockLinear", "Add", "Identity"]
    shown = folded(f"{norm} {up} {gate} y = Add(v, x)", "float[1, 2, 4] y, float[1, 2, 4] h")
    assert [name for name, _, _ in shown] == ["RMSNorm", "BlockLinear"]
    spread = folded(f"{norm} {up} {gate} y = Add(v, n)")  # of another shape
    assert [name for name, _, _ in spread] == ["BlockLinear", "Add"]


@needs_kernels
@pytest.mark.parametrize("dtype", ["fp32", "int4"])
@pytest.mark.parametrize("name", ["llama-tied", "qwen2"])
def test_a_decoder_runs_on_fused_kernels_as_without_them(
    name: str, dtype: Literal["fp32", "int4"], tmp_path: Path
) -> None:
    _, bundle = exported(name, tmp_path, window=13, sinks=3, dtype=dtype, verify_tokens=200)
    graph = onnx.load(str(bundle / "step.fused.onnx"), load_external_data=False).graph
    found = [node.op_type for node in graph.node if node.domain == DOMAIN]
    assert found.count("WindowAttention") == 2
    if dtype == "int4":
        assert found.count("BlockLinear") == 8  # a small head that is tied to the embedding is a constant
        assert found.count("RMSNorm") == 1  # before it
    report = load(bundle, provider="cpu").manifest.verification
    assert report is not None
    assert report["forms"] == ["portable", "fused"]
    tokens = ids(60).numpy()
    outputs = [
        load(bundle, provider="cpu", threads=1).driver(1).feed(tokens, all_outputs=True).outputs for _ in range(2)
    ]
    np.testing.assert_array_equal(*outputs)
