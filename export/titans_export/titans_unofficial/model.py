"""titans-unofficial's TitansMAC, TitansMAG and TitansMAL over external state: one token at a time.

Persistent tokens see only one another, so their keys and values, and in mal the memories after them, are constants.

mac: in a chunk, attention runs over rows of what the memory recalled at the chunk's start and of the inputs; what comes
out of the last layer is written token by token into another copy, which the next chunk reads. With a window, distances
are those of a whole chunk. mag and mal: keys and values of the last `window - 1` tokens, and a memory that is read
before it is written.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titans_core.state import State, StateSpec, prefixed
from titans_export.titans_pytorch.parameters import Reader
from titans_export.titans_unofficial.layers import Layer, Linear, Norm, Part
from titans_export.titans_unofficial.memory import Memory, Weights, named
from titans_export.titans_unofficial.options import Options


class Body(nn.Module):
    """The parameters, and one token's way through them."""

    def __init__(self, options: Options, read: Reader, outside: Reader) -> None:
        super().__init__()
        self.options = o = options
        self.vocabulary = self.outputs = 0
        self.embedding = self.head_weight = self.head_bias = None
        if o.head:
            self.outputs = outside.rows(f"{o.head}.weight")
            self.head_weight = outside.matrix(f"{o.head}.weight", o.dim, self.outputs)
            if outside.has(f"{o.head}.bias"):
                self.head_bias = outside.parameter(f"{o.head}.bias", (self.outputs,))
        if o.embedding:
            self.vocabulary = outside.rows(f"{o.embedding}.weight")
            self.embedding = outside.parameter(f"{o.embedding}.weight", (self.vocabulary, o.dim))
        self.memory = Memory(o.dim, o.memory_depth, read.below("neural_memory"))
        self.layers = nn.ModuleList(Layer(number, o.dim, o.heads, read) for number in range(o.layers))
        self.memory_norm = Norm(o.dim, read.below("memory_norm")) if o.variant == "mal" else None
        if o.variant == "mag":
            self.gate_norm1 = Norm(o.dim, read.below("gate_norm1"))
            self.gate_norm2 = Norm(o.dim, read.below("gate_norm2"))
            self.gate1 = Linear(2 * o.dim, o.dim, read.below("gate_proj.0"))
            self.gate2 = Linear(o.dim, o.dim, read.below("gate_proj.2"))
        self.output = Linear(o.dim, o.dim, read.below("output_projection"))
        tokens = read.tensor("persistent_memory.memory_tokens", (1, o.persistent, o.dim))
        self.persistent_keys, self.persistent_values = nn.ParameterList(), nn.ParameterList()
        self.starts: list[tuple[Weights, Weights]] = []
        self.learned = nn.ParameterDict()
        with torch.no_grad():
            self._persist(tokens)

    # ---------------------------------------------------------------- constants

    def _persist(self, x: Tensor) -> None:
        """Carry the persistent tokens `[1, P, dim]` through the layers, and keep what later tokens see of them."""
        o = self.options
        distance = torch.arange(o.persistent)[:, None] - torch.arange(o.persistent)
        seen = distance >= 0
        if o.variant == "mac" and o.window is not None:
            seen = seen & (distance < o.window)
        for number, layer in enumerate(self._layers()):
            q, k, v = layer.project(x)
            self.persistent_keys.append(nn.Parameter(k, requires_grad=False))
            self.persistent_values.append(nn.Parameter(v, requires_grad=False))
            if o.persistent:
                x = x + layer.attend(q, [(k, v, seen)])
            if self.memory_norm is not None:
                now, momentum = self.memory.initial(), self._still()
                read = []
                inputs = self.memory_norm(x)
                for place in range(o.persistent):
                    one = inputs[:, place : place + 1]
                    read.append(self.memory.retrieve(one, now))
                    now, momentum = self.memory.write(one, now, momentum)
                x = x + torch.cat(read, dim=1) if read else x
                for name, value in (named("memory", now) | named("momentum", momentum)).items():
                    self.learned[f"{number}_{name}"] = nn.Parameter(value.squeeze(0).clone(), requires_grad=False)
            x = layer.feed_forward(x)

    def _still(self) -> Weights:
        first = self.memory.initial()
        return Weights([torch.zeros_like(w) for w in first.matrices], [torch.zeros_like(b) for b in first.biases])

    def _layers(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    # ---------------------------------------------------------------- state

    def state_specs(self) -> list[StateSpec]:
        """The whole state."""
        o, specs = self.options, []
        for number in range(o.layers):
            row = (o.heads, o.head_dim)
            if o.variant == "mac":
                names = ("recalled_key", "recalled_value", "key", "value")
                specs += [StateSpec(f"{number}.{name}", "rows", (o.chunk, *row)) for name in names]
            elif o.window is not None and o.window > 1:
                shape = (o.heads, o.window - 1, o.head_dim)
                specs += [StateSpec(f"{number}.past_{name}", "carried", shape) for name in ("key", "value")]
            if o.variant == "mal":
                for name in ("memory", "momentum"):
                    for spec in self.memory.state_specs(name):
                        specs.append(StateSpec(f"{number}.{spec.name}", "carried", spec.shape, spec.name))
        if o.variant != "mal":
            specs += self.memory.state_specs("memory")
            specs += self.memory.state_specs("momentum", initial=False)
        if o.variant == "mac":
            specs += self.memory.state_specs("read")
        return specs

    def initial_tensor(self, name: str) -> Tensor:
        """What a learned state starts from."""
        number, found, own = name.partition(".")
        if found:
            learned: Tensor = self.learned[f"{number}_{own}"]
            return learned
        _, kind, index = name.split("_")
        return self.memory.get_parameter(f"{'matrices' if kind == 'matrix' else 'biases'}.{index}")

    # ---------------------------------------------------------------- one token

    def token(self, inputs: Tensor, position: Tensor, state: State) -> tuple[Tensor, State]:
        """One token: ids `[B, 1]` or vectors `[B, 1, dim]`, position `[B]`; outputs and the states that change."""
        x = inputs if self.embedding is None else F.embedding(inputs, self.embedding)
        variant = {"mac": self._mac, "mag": self._mag, "mal": self._mal}[self.options.variant]
        out, changed = variant(x, position, state)
        out = self.output(out)
        if self.head_weight is not None:
            out = out @ self.head_weight
            out = out if self.head_bias is None else out + self.head_bias
        return out, changed

    def commit(self, state: State) -> State:
        """The next chunk of mac reads what this one has written."""
        return named("read", self.memory.read_state("memory", state))

    def _persistent(self, number: int, seen: Tensor | None) -> list[Part]:
        if not self.options.persistent:
            return []
        return [(self.persistent_keys[number], self.persistent_values[number], seen)]

    def _mac(self, x: Tensor, position: Tensor, state: State) -> tuple[Tensor, State]:
        o = self.options
        slot = (position % o.chunk)[:, None, None, None]
        places, fixed = torch.arange(o.chunk), torch.arange(o.persistent)
        # Distances of the query of what was recalled, and of the input's, to every row before them.
        of_recalled = {"persistent": o.persistent + slot - fixed, "recalled": slot - places}
        of_input = {
            "persistent": o.persistent + o.chunk + slot - fixed,
            "recalled": o.chunk + slot - places,
            "key": slot - places,
        }
        earlier = places < slot

        def seen(distance: Tensor) -> Tensor | None:
            return None if o.window is None else distance < o.window

        def rows(name: str, number: int) -> Tensor:
            return state[f"{number}.{name}"].permute(1, 2, 0, 3)

        changed: State = {}
        h = self.memory.retrieve(x, self.memory.read_state("read", state))
        own_sees_recalled = o.window is None or o.chunk < o.window
        for number, layer in enumerate(self._layers()):
            hq, hk, hv = layer.project(h)
            q, k, v = layer.project(x)
            recalled = (rows("recalled_key", number), rows("recalled_value", number))

            def open_rows(distance: Tensor) -> Tensor:
                limit = seen(distance)
                return earlier if limit is None else earlier & limit

            parts = self._persistent(number, seen(of_recalled["persistent"]))
            parts += [(*recalled, open_rows(of_recalled["recalled"])), (hk, hv, None)]
            h_out = layer.attend(hq, parts)
            parts = self._persistent(number, seen(of_input["persistent"]))
            parts.append((*recalled, open_rows(of_input["recalled"])))
            if own_sees_recalled:
                parts.append((hk, hv, None))
            parts += [(rows("key", number), rows("value", number), open_rows(of_input["key"])), (k, v, None)]
            x = x + layer.attend(q, parts)
            x, h = layer.feed_forward(x), layer.feed_forward(h + h_out)
            new = {"recalled_key": hk, "recalled_value": hv, "key": k, "value": v}
            changed |= prefixed({name: value.permute(2, 0, 1, 3) for name, value in new.items()}, f"{number}.")
        now, momentum = (self.memory.read_state(name, state) for name in ("memory", "momentum"))
        now, momentum = self.memory.write(x, now, momentum)
        return x, changed | named("memory", now) | named("momentum", momentum)

    def _windowed(self, layer: Layer, number: int, x: Tensor, position: Tensor, state: State) -> tuple[Tensor, State]:
        """x after a layer's attention over persistent tokens and the window, and the window's new keys and values."""
        past = (self.options.window or 1) - 1
        q, k, v = layer.project(x)
        parts, changed = self._persistent(number, None), {}
        if past:
            seen = torch.arange(past) >= past - position[:, None, None, None]
            keys, values = (state[f"{number}.past_{name}"] for name in ("key", "value"))
            parts.append((keys, values, seen))
            for name, old, new in (("key", keys, k), ("value", values, v)):
                changed[f"{number}.past_{name}"] = torch.cat([old[:, :, 1:], new], dim=2)
        return x + layer.attend(q, [*parts, (k, v, None)]), changed

    def _mag(self, x: Tensor, position: Tensor, state: State) -> tuple[Tensor, State]:
        changed: State = {}
        short = x
        for number, layer in enumerate(self._layers()):
            short, new = self._windowed(layer, number, short, position, state)
            short = layer.feed_forward(short)
            changed |= new
        now, momentum = (self.memory.read_state(name, state) for name in ("memory", "momentum"))
        long = self.memory.retrieve(x, now)
        now, momentum = self.memory.write(x, now, momentum)
        both = torch.cat([self.gate_norm1(short), self.gate_norm2(long)], dim=-1)
        gate = torch.sigmoid(self.gate2(F.gelu(self.gate1(both))))
        return gate * short + (1.0 - gate) * long, changed | named("memory", now) | named("momentum", momentum)

    def _mal(self, x: Tensor, position: Tensor, state: State) -> tuple[Tensor, State]:
        changed: State = {}
        for number, layer in enumerate(self._layers()):
            x, new = self._windowed(layer, number, x, position, state)
            now, momentum = (self.memory.read_state(f"{number}.{name}", state) for name in ("memory", "momentum"))
            entry = x if self.memory_norm is None else self.memory_norm(x)
            x = x + self.memory.retrieve(entry, now)
            now, momentum = self.memory.write(entry, now, momentum)
            new |= named(f"{number}.memory", now) | named(f"{number}.momentum", momentum)
            x = layer.feed_forward(x)
            changed |= new
        return x, changed
