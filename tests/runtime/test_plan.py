"""Plans, for every position and length: they cover the feed once, and obey the rules of each graph."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.runtime.toy import C
from titans_format.manifest import Manifest
from titans_format.specs import Due
from titans_runtime.bundle import read_manifest_of
from titans_runtime.stream.plan import FASTEST, STEPS_ONLY, Call, Planner, Policy

policies = st.builds(Policy, prefill=st.booleans(), extend=st.booleans(), extend_from=st.none() | st.integers(1, C))


@pytest.fixture(scope="module")
def manifest(toy_bundle: Path) -> Manifest:
    return read_manifest_of(toy_bundle)


def kinds(calls: list[Call]) -> list[tuple[str, int]]:
    return [(call.graph.kind, call.length) for call in calls]


@given(position=st.integers(0, 3 * C), tokens=st.integers(0, 5 * C), policy=policies)
def test_a_plan_covers_every_token_once_and_keeps_the_rules(
    manifest: Manifest, position: int, tokens: int, policy: Policy
) -> None:
    at = position
    calls = list(Planner(manifest).calls(position, tokens, policy))
    for i, call in enumerate(calls):
        assert (call.position, call.offset) == (at, at - position)
        at += call.length
        match call.graph.kind:
            case "prefill":
                assert (call.length, call.position % C) == (C, 0)
                assert policy.prefill
            case "extend":
                assert 1 <= call.length <= C - call.position % C
                assert policy.extend
            case "step":
                assert call.length == 1
            case "commit":
                assert call.length == 0
        if call.graph.kind in ("step", "extend"):
            committed = i + 1 < len(calls) and calls[i + 1].graph.kind == "commit"
            assert committed == (at % C == 0)
    assert at == position + tokens


def test_the_fastest_plan_fills_up_then_takes_whole_chunks_then_the_rest(manifest: Manifest) -> None:
    calls = Planner(manifest).calls(C - 2, 2 + 2 * C + 1)
    assert kinds(list(calls)) == [("extend", 2), ("commit", 0), ("prefill", C), ("prefill", C), ("step", 1)]


def test_steps_only_is_the_slow_twin(manifest: Manifest) -> None:
    calls = list(Planner(manifest).calls(0, C, STEPS_ONLY))
    assert kinds(calls) == [("step", 1)] * C + [("commit", 0)]


@pytest.mark.parametrize(("chunk", "threshold"), [(8, 2), (16, 2), (64, 8), (512, 64)])
def test_an_extend_pays_from_an_eighth_of_a_chunk(chunk: int, threshold: int) -> None:
    assert not FASTEST.pays(threshold - 1, chunk)
    assert FASTEST.pays(threshold, chunk)


def test_an_extend_never_jumps_over_a_commit_inside_the_chunk(manifest: Manifest) -> None:
    due = replace(manifest.schedule[0], period=C // 2)
    calls = list(Planner(replace(manifest, schedule=(due,))).calls(0, C - 1, Policy(extend_from=1)))
    assert kinds(calls) == [("extend", C // 2), ("commit", 0), ("extend", C // 2 - 1)]


def test_an_entry_with_a_phase_is_due_so_far_behind_every_multiple(manifest: Manifest) -> None:
    due = replace(manifest.schedule[0], period=C // 2, phase=1)
    calls = list(Planner(replace(manifest, schedule=(due, due))).calls(0, C // 2 + 2, Policy(extend_from=1)))
    expected = [("extend", 1), ("commit", 0), ("commit", 0), ("extend", C // 2), ("commit", 0), ("commit", 0)]
    assert kinds(calls) == [*expected, ("extend", 1)]


def test_a_scheduled_step_graph_takes_the_tokens_that_reach_its_positions(manifest: Manifest) -> None:
    step = next(graph for graph in manifest.graphs if graph.kind == "step")
    graphs = (*(g for g in manifest.graphs if g.kind != "extend"), replace(step, name="closing"))
    schedule = (Due(graph="closing", period=C, phase=3), *manifest.schedule, Due(graph="closing", period=C))
    calls = Planner(replace(manifest, graphs=graphs, schedule=schedule)).calls(1, C, STEPS_ONLY)
    named = [(call.graph.name, call.position) for call in calls if call.graph.kind == "step"]
    assert named == [("closing" if at + 1 in (3, C) else "step", at) for at in range(1, C + 1)]


def test_an_extend_never_overfills_a_table_of_rows(manifest: Manifest) -> None:
    states = tuple(replace(s, shape=(4, *s.shape[1:])) if s.kind == "rows" else s for s in manifest.states)
    calls = list(Planner(replace(manifest, states=states)).calls(1, C - 2, Policy(extend_from=1)))
    assert kinds(calls) == [("extend", 3), ("extend", 3)]


def test_a_short_extend_graph_is_called_several_times(manifest: Manifest) -> None:
    graphs = tuple(replace(g, tokens=3) if g.kind == "extend" else g for g in manifest.graphs)
    calls = list(Planner(replace(manifest, graphs=graphs)).calls(0, C - 1, Policy(extend_from=1)))
    assert kinds(calls) == [("extend", 3), ("extend", 3), ("extend", 1)]


@given(position=st.integers(0, 9 * C))
def test_a_single_token_is_planned_as_a_feed_of_one_is(manifest: Manifest, position: int) -> None:
    scheduled = replace(manifest, schedule=(*manifest.schedule, Due(graph="step", period=C, phase=3)))
    for one in (manifest, scheduled):
        planner = Planner(one)
        first, *rest = planner.calls(position, 1)
        assert planner.single(position) is first.graph
        assert planner.due(position + 1) == [call.graph for call in rest]
