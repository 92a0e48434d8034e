"""How far memories are from their start, and which of them cannot learn any more."""

from __future__ import annotations

import numpy as np
import pytest

from titans_runtime import Model
from titans_runtime.arrays import Array
from titans_runtime.stream.memories import FADED, dead_memories, dead_warning, memory_distances


def matrices(*scales: float, heads: int = 2) -> dict[str, Array]:
    """A memory of as many matrices, `[1, H, 3, 3]` each; head 1 is scaled, head 0 is as it was."""
    random = np.random.default_rng(0)
    found = {}
    for number, scale in enumerate(scales):
        matrix = random.standard_normal((1, heads, 3, 3)).astype(np.float32)
        matrix[:, 1:] *= scale
        found[f"4.memory_{number}"] = matrix
    return found


def test_distances_are_euclidean_norms() -> None:
    start = {"0.memory_0": np.array([[3.0, 0.0]], np.float32)}
    found = memory_distances(start, {"0.memory_0": np.array([[[3.0, 4.0]]], np.float32)})["0.memory_0"]
    assert (found.start, found.from_start, found.from_zero) == (3.0, 4.0, 5.0)


@pytest.mark.parametrize(
    ("scales", "dead"),
    [
        ((1.0, 1.0), False),
        ((0.0, 1.0), False),  # the first matrix still has a gradient through the second
        ((1.0, 0.0), False),
        ((0.0, 0.0), True),
        ((FADED / 2, FADED / 2), True),
        ((2 * FADED, FADED / 2), False),
        ((0.0, 1.0, 0.0), True),
        ((0.0,), False),  # a linear memory's gradient does not depend on it
    ],
)
def test_a_memory_is_dead_where_two_of_its_matrices_have_faded(scales: tuple[float, ...], dead: bool) -> None:
    found = dead_memories(matrices(*[1.0] * len(scales)), matrices(*scales))
    assert found == (["layer 4, head 1"] if dead else [])


def test_one_dead_stream_of_several_is_enough() -> None:
    start, dead = matrices(1.0, 1.0), matrices(0.0, 0.0)
    both = {name: np.concatenate([start[name], dead[name]]) for name in start}
    assert dead_memories(start, both) == ["layer 4, head 1"]


def test_the_warning_names_the_memories_and_a_remedy() -> None:
    text = dead_warning(["layer 4, head 1"])
    assert "layer 4, head 1" in text
    assert 'memory.forget_to="start"' in text


def test_a_sessions_figures_say_how_far_its_memory_has_moved(toy_model: Model) -> None:
    session = toy_model.session()
    fresh = session.stats.memories["0.memory_0"]
    assert fresh.from_start == 0
    assert fresh.from_zero == fresh.start > 0
    session.feed(list(range(40)))
    start, now = toy_model.driver().state()["0.memory_0"], _state(session_tokens=40, model=toy_model)
    moved = session.stats.memories["0.memory_0"]
    assert moved.from_start == pytest.approx(float(np.linalg.norm(now - start)), rel=1e-6)
    assert moved.from_zero == pytest.approx(float(np.linalg.norm(now)), rel=1e-6)
    assert moved.from_start > 0
    assert session.stats.dead_memories == ()


def _state(session_tokens: int, model: Model) -> Array:
    driver = model.driver()
    driver.feed(np.arange(session_tokens)[None])
    return driver.state()["0.memory_0"]
