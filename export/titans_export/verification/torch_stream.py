"""A steppable model driven in PyTorch: the twin that a bundle is compared with.

Feeds whole chunks through `prefill`, parts of them through `extend`, or, where a model has none, token by token
through the step graph that the schedule names; and folds what is due. Written apart from the
runtime's planner on purpose: two drivers that share a mistake would agree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from titans_export.models.protocol import StepGraph, SteppableModel, initial_state
from titans_format.specs import GraphKind


class TorchStream:
    """`batch` streams in lockstep; `state` holds every tensor of the state table by name."""

    def __init__(self, model: SteppableModel, batch: int) -> None:
        self.model = model
        self.specs = {spec.name: spec for spec in model.state_specs()}
        self.graphs = {graph.name: graph for graph in model.graphs()}
        self.by_kind: dict[GraphKind, StepGraph] = {}
        for graph in model.graphs():
            self.by_kind.setdefault(graph.kind, graph)
        self.state = initial_state(model, batch)
        self.position, self.batch = 0, batch
        # Where a call has to end: at a chunk, at a commit, and where a table of rows is full.
        rows = {spec.shape[0] for spec in model.state_specs() if spec.kind == "rows"}
        self._periods = {model.chunk, *rows, *(due.period for due in model.schedule)}

    @torch.no_grad()
    def feed(self, inputs: Tensor) -> Tensor:
        """Outputs `[B, T, V]` of the next T tokens `[B, T]` (or vectors `[B, T, F]`)."""
        outputs, chunk = [], self.model.chunk
        while inputs.shape[1]:
            whole = self.position % chunk == 0 and inputs.shape[1] >= chunk
            graph = self.by_kind.get("prefill") if whole else self.by_kind.get("extend")
            left = min(period - self.position % period for period in self._periods)
            length = chunk if whole else min(left, inputs.shape[1])
            if graph is None:
                length, graph = 1, self._step()
            piece, inputs = inputs[:, :length], inputs[:, length:]
            outputs.append(self._call(graph, piece))
            self.position += length
            if graph.kind != "prefill":
                self._fold()
        return torch.cat(outputs, dim=1)

    def _step(self) -> StepGraph:
        for due in self.model.schedule:
            graph = self.graphs[due.graph]
            if graph.kind == "step" and (self.position + 1) % due.period == due.phase:
                return graph
        return self.by_kind["step"]

    def _call(self, graph: StepGraph, piece: Tensor) -> Tensor:
        length = piece.shape[1]
        padding = piece[:, :1].expand(-1, graph.tokens - length, *piece.shape[2:])
        feeds = self.state | {
            "input_ids" if piece.dim() == 2 else "inputs": torch.cat([piece, padding], dim=1),
            "position": torch.full((self.batch,), self.position),
            "length": torch.full((self.batch,), length),
        }
        results = graph.run(feeds)
        for name, value in results.items():
            if name in self.specs:
                if self.specs[name].kind == "rows":
                    place = self.position % self.specs[name].shape[0]
                    self.state[name][place : place + length] = value[:length]
                else:
                    self.state[name] = value
        return (results["logits"] if "logits" in results else results["predictions"])[:, :length]

    def _fold(self) -> None:
        for due in self.model.schedule:
            graph = self.graphs[due.graph]
            if graph.kind == "commit" and self.position % due.period == due.phase:
                position = torch.full((self.batch,), self.position)
                self.state |= graph.run(self.state | {"position": position})
