"""Training of a memory beside a frozen decoder: what it reads is computed once, and the decoder stays as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from titans_core.config import MemoryConfig
from titans_core.decoder.config import DecoderConfig
from titans_core.decoder.model import Decoder, DecoderLayer
from titans_core.decoder.side_memory import SideConfig, SideMemory
from titans_core.training.side import LowerLayers, SideObjective

CHUNK, VOCABULARY, TOKENS = 4, 40, 24


def objective() -> tuple[SideObjective, Decoder]:
    torch.manual_seed(0)
    config = DecoderConfig(
        architecture="llama", vocab_size=VOCABULARY, dim=16, layers=3, heads=2, kv_heads=1, head_width=8, ffn_hidden=24,
        norm_eps=1e-5, rotary_frequencies=(1.0, 0.1, 0.01, 0.001), tie_embeddings=True, window=8, sinks=2, chunk=CHUNK,
        prefill=8,
    )  # fmt: skip
    decoder = Decoder(config).requires_grad_(False)
    memory = MemoryConfig(
        heads=1, depth=1, momentum=False, forget=False, max_step_size=0.5, surprise_bound=None, conv_kernel=4
    )
    return SideObjective(SideMemory(SideConfig(read=(0, 2), dim=32, memory=memory), 16, CHUNK), decoder), decoder


def slice_() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(VOCABULARY, (2, TOKENS))
    mask = torch.zeros(2, TOKENS, dtype=torch.bool)
    mask[:, -6:-1] = True
    return ids, ids.roll(-1, 1), mask


def test_what_is_read_is_the_input_of_the_decoders_own_layers() -> None:
    _, decoder = objective()
    ids, _, _ = slice_()
    lower = LowerLayers(decoder, (0, 2))
    hidden, _ = lower.hidden(ids, lower.initial_state(2))
    seen: list[Tensor] = []
    third = decoder.layers[2]
    assert isinstance(third, DecoderLayer)
    hook = third.attention_norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    decoder(ids)
    hook.remove()
    torch.testing.assert_close(hidden, torch.cat([decoder.embedding[ids], torch.cat(seen, dim=1)], dim=-1))


def test_features_are_computed_once_and_only_the_memory_gets_gradients() -> None:
    trained, decoder = objective()
    first, _, _ = trained(*slice_(), None, None)
    tokens, taken = trained.cached_tokens, trained.cached_bytes
    assert (tokens, taken) == (2 * TOKENS, 2 * TOKENS * 32 * 2)
    again, _, _ = trained(*slice_(), None, None)
    assert trained.cached_tokens == tokens
    again.backward()
    assert first.isfinite()
    assert again.isfinite()
    moved = {name for name, value in trained.model.named_parameters() if value.grad is not None and value.grad.any()}
    assert {"to_key.weight", "to_gates.weight", "key_conv.weight", "out.weight"} <= moved
    assert all(parameter.grad is None for parameter in decoder.parameters())


@torch.no_grad()
def test_slices_of_a_stream_give_the_sums_of_the_whole_stream() -> None:
    trained, _ = objective()
    ids, targets, mask = slice_()
    whole, right, _ = trained(ids, targets, mask, None, None)
    parts, state = [], None
    for start in range(0, TOKENS, 8):
        part = slice(start, start + 8)
        reset = torch.full((2,), start == 0)
        loss, correct, state = trained(ids[:, part], targets[:, part], mask[:, part], reset, state)
        parts.append((loss, correct))
    torch.testing.assert_close(sum(float(loss) for loss, _ in parts), float(whole))
    assert sum(int(correct) for _, correct in parts) == int(right)


def test_training_lowers_the_loss_and_writing_has_a_price() -> None:
    trained, _ = objective()
    batch = slice_()
    optimizer = torch.optim.Adam([p for p in trained.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        loss, _, _ = trained(*batch, None, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    torch.manual_seed(5)
    trained.write_cost = 0.0
    free, _, _ = trained(*batch, None, None)
    trained.write_cost = 5.0
    priced, _, _ = trained(*batch, None, None)
    assert priced > free


@torch.no_grad()
def test_what_is_recalled_at_once_is_what_the_memory_answers_where_nothing_is_replaced() -> None:
    trained, decoder = objective()
    side, (ids, _, _) = trained.model, slice_()
    state = side.initial_state(2)
    x = torch.randn(2, TOKENS, 32)
    queries, _, values, logits, *rest = side.project(x, decoder.embedding[ids], state["conv_state"])
    keys = torch.eye(32)[:TOKENS].expand(2, 1, -1, -1)  # at right angles to each other
    projected = (queries, keys, values, logits + torch.randn_like(logits), *rest)
    answers, _, _ = side.run_projected(projected, state)
    assert float(answers.square().sum()) > 1e-4
    torch.testing.assert_close(trained._recalled(projected), answers, rtol=1e-4, atol=1e-6)


def test_how_sure_to_be_is_learned_from_the_first_step_and_moves_no_key() -> None:
    trained, _ = objective()
    ids, targets, mask = slice_()
    trained.done = 0.0
    trained(ids, targets, mask, None, None)[0].backward()
    assert trained.model.gate_start.grad is not None
    assert trained.model.gate_start.grad[1] != 0
    trained.model.zero_grad()
    sure = torch.zeros(2, TOKENS, 1, requires_grad=True)
    answers = (torch.randn(2, 1, TOKENS, 32) * 0.05).requires_grad_()
    trained._sure(answers, sure, mask).backward()
    assert answers.grad is None
    assert sure.grad is not None
    assert (sure.grad[..., 0][mask] < 0).all()  # surer where an answer is wanted
    assert (sure.grad[..., 0][~mask] > 0).all()
