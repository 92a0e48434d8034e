"""`titans train --from` the `--out` of `titans graft`: its memory, adapters, or all of it.

Knows how the checkpoint of a decoder begins, and what is said of kept features. Does not know the options of tasks.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from titans_cli.terminal import say

if TYPE_CHECKING:
    import torch

    from titans_cli.train_tasks import Lesson
    from titans_core.training.learner import Learner
    from titans_core.training.log import Observer
    from titans_core.training.loop import TrainOptions, TrainResult


def train_grafted(
    start: Path, only: str, lesson: Lesson, options: TrainOptions, out: Path, *, resume: bool, progress: Observer
) -> TrainResult:
    """Train a part of the decoder in `start` into `out`.

    Args:
        start: a checkpoint of a decoder.
        only: what is trained, as `Only.parse` takes it.
        lesson: the task.
        options: steps, rates and the rest.
        out: the checkpoint directory to make; it gets a backbone of its own.
        resume: go on with the run that is in `out`.
        progress: hears of steps.

    Raises:
        ConfigError: the decoder has nothing of what is to be trained.
        CheckpointError: `start` or `out` is not usable.
    """
    from titans_core.training.checkpoint import has_checkpoint
    from titans_core.training.grafted import GraftLearner, Only, adopt_backbone, begun_with
    from titans_core.training.loop import Start, train_learner
    from titans_core.training.side import SideObjective

    part = Only.parse(only)
    sha256, provenance = begun_with(start)
    if not has_checkpoint(out):
        adopt_backbone(start, out)
    objectives: list[SideObjective] = []

    def learner(device: torch.device) -> Learner:
        built = GraftLearner(start, part, device, seed=options.seed)
        if isinstance(built.objective, SideObjective):
            objectives.append(built.objective)
        return built

    result = train_learner(
        learner,
        lesson.task,
        options,
        out,
        start=Start({}, sha256, provenance),
        resume=resume,
        observers=[progress],
    )
    for objective in objectives:
        size = objective.cached_bytes / 2**20
        say(f"features of {objective.cached_tokens:,} tokens were kept, {size:,.0f} MiB", err=True)
    return result
