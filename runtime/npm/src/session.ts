/**
 * One stream of memory: where it stands, and how a feed moves it.
 *
 * A call completes or changes nothing. Rows that count are never overwritten, and the rest of the state is replaced in one
 * assignment at the end of a feed. One call at a time: a second one is refused while the first has not ended.
 */

import { hostBytes, type Shared } from "./device.js";
import { allFinite, byName, finite } from "./dtypes.js";
import { TitansError, fail, said } from "./errors.js";
import { generate, type GenerateOptions, type Piece } from "./generate.js";
import { byteCount, type GraphSpec, type StateSpec } from "./manifest.js";
import type { Model } from "./model.js";
import type { OrtTensor } from "./ort.js";
import type { Call } from "./plan.js";
import { START, consumed, counted, pack, type SavedState, type Standing, type Totals } from "./state_file.js";

/** What comes out of a feed. */
export interface Fed {
  /** Logits or predictions after the last token. */
  readonly last: Float32Array;
  /** After every token, where `all` asks for them: tokens x outputs. */
  readonly all: Float32Array | undefined;
  /** How surprised each memory layer was by each token: tokens x layers. */
  readonly surprise: Float32Array;
}

/** A place to come back to. It shares its tensors with the session; `dispose` gives a GPU's memory back. */
export class Mark {
  /** @internal */
  constructor(
    readonly model: Model,
    readonly position: number,
    /** @internal */
    readonly held: Held,
  ) {}

  dispose(): void {
    letGo(this.model, this.held);
  }
}

interface Held {
  readonly standing: Standing;
  readonly last: Float32Array | undefined;
  readonly carried: Map<string, Shared>;
  readonly tables: Map<string, OrtTensor>;
}

function letGo(model: Model, held: Held): void {
  for (const shared of held.carried.values()) shared.letGo();
  for (const table of held.tables.values()) model.device.freeTable(table);
  held.carried.clear();
  held.tables.clear();
}

type Inputs = readonly number[] | Float32Array;

/** A feed under way. */
interface Next {
  position: number;
  carried: Map<string, Shared>;
  created: Set<Shared>;
  sides: Map<string, number>;
  totals: Totals;
}

export class Session {
  private now: Standing = START;
  private lastOutputs: Float32Array | undefined;
  private carried = new Map<string, Shared>();
  private readonly tables = new Map<string, [OrtTensor, OrtTensor]>();
  private sides = new Map<string, number>(); // which of the two tables counts
  private poison = "";
  private busy = false;

  /** @internal */
  constructor(readonly model: Model) {
    for (const state of this.states("rows")) {
      this.tables.set(state.name, [model.device.table(state), model.device.table(state)]);
      this.sides.set(state.name, 0);
    }
    for (const state of this.states("carried"))
      this.carried.set(state.name, model.device.carried(state, model.initialBytes(state)));
  }

  /** Tokens consumed since the beginning. */
  get position(): number {
    return this.now.position;
  }
  /** How often the memory was written. */
  get commits(): number {
    return this.now.commits;
  }
  /** Logits or predictions after the last token; undefined before the first one. */
  get last(): Float32Array | undefined {
    return this.lastOutputs?.slice();
  }
  /** The last ids that it consumed: enough to decode what follows. */
  get recent(): readonly number[] {
    return this.now.recent;
  }
  /** Surprise over the stream so far, mean over the memory layers. */
  get surprise(): { tokens: number; mean: number; highest: number } {
    const { tokens, total, highest } = this.now.totals;
    return { tokens, mean: tokens ? total / tokens : 0, highest };
  }

  /** Consumes a text, or token ids. `all`: give the logits after every token too. */
  async feed(input: string | ArrayLike<number>, options: { all?: boolean } = {}): Promise<Fed> {
    if (this.model.manifest.vectors) fail("input", "this is a model of vectors", "call feedVectors");
    const ids = this.model.idsOf(input);
    return this.alone(() => this.consume(ids, ids.length, options.all ?? false));
  }

  /** The same for a model of vectors: one after the other in one array. */
  async feedVectors(vectors: Float32Array, options: { all?: boolean } = {}): Promise<Fed> {
    const { features } = this.model.manifest;
    if (!features) fail("input", "this is a model of tokens", "call feed");
    const count = vectors.length / features;
    if (!Number.isInteger(count) || count < 1)
      fail("input", `there are ${vectors.length} numbers to feed`, `pass one or more vectors of ${features} numbers`);
    if (!finite(vectors)) fail("input", "a vector has numbers that are not finite", "clean or scale the series first");
    return this.alone(() => this.consume(vectors, count, options.all ?? false));
  }

  /** Text and tokens that follow a prompt, as they come; without a prompt it goes on from where the session is. */
  generate(prompt?: string | ArrayLike<number>, options: GenerateOptions = {}): AsyncGenerator<Piece, void, void> {
    return generate(this, prompt, options);
  }

  /** Starts afresh. */
  reset(): void {
    this.checkIdle();
    for (const shared of this.carried.values()) shared.letGo();
    for (const state of this.states("carried"))
      this.carried.set(state.name, this.model.device.carried(state, this.model.initialBytes(state)));
    this.stand(START, undefined);
  }

  /** Another session that stands where this one stands. */
  fork(): Session {
    const mark = this.mark();
    const made = new Session(this.model);
    made.rewind(mark);
    mark.dispose();
    return made;
  }

  /** A place to come back to. */
  mark(): Mark {
    this.checkIdle();
    const carried = new Map([...this.carried].map(([name, shared]) => [name, shared.hold()]));
    const tables = new Map(
      this.states("rows").map((state) => [
        state.name,
        this.model.device.copied(state, this.tableOf(state.name), this.countedBytes(state)),
      ]),
    );
    return new Mark(this.model, this.position, { standing: this.now, last: this.lastOutputs, carried, tables });
  }

  /** Goes back to a mark of any session of this model, exactly. The mark stays. */
  rewind(mark: Mark): void {
    this.checkIdle();
    if (mark.model !== this.model)
      fail("input", "this mark was made with another model", "rewind to a mark of a session of this one");
    const { standing, last, carried, tables } = mark.held;
    if (carried.size < this.carried.size) fail("input", "this mark was disposed of", "keep it until it is not needed");
    for (const shared of this.carried.values()) shared.letGo();
    this.carried = new Map([...carried].map(([name, shared]) => [name, shared.hold()]));
    for (const state of this.states("rows")) {
      const pair = this.tables.get(state.name) as [OrtTensor, OrtTensor];
      const side = this.sides.get(state.name) as 0 | 1;
      this.model.device.freeTable(pair[side]);
      pair[side] = this.model.device.copied(state, tables.get(state.name) as OrtTensor, counted(state, standing.position));
    }
    this.stand(standing, last);
  }

  /** The session as a file that this package, Python and C restore. */
  async toBytes(): Promise<Uint8Array> {
    return this.alone(async () => {
      const tensors = new Map<string, Uint8Array>();
      for (const state of this.model.manifest.states) {
        const tensor = this.carried.get(state.name)?.tensor ?? this.tableOf(state.name);
        tensors.set(state.name, await this.model.device.read(tensor, this.countedBytes(state)));
      }
      return pack(this.model.manifest, this.now, tensors, this.lastOutputs);
    });
  }

  /** Writes that file, in Node: all of the old one or all of the new one is there. */
  async save(path: string): Promise<void> {
    const { writeWhole } = await import("./folder.js");
    await writeWhole(path, await this.toBytes());
  }

  /** Gives a GPU's memory back. The session cannot be used afterwards. */
  dispose(): void {
    this.checkIdle();
    this.busy = true;
    const tables = new Map([...this.tables].flatMap(([name, pair]) => pair.map((table, side) => [name + side, table] as const)));
    letGo(this.model, { standing: this.now, last: undefined, carried: this.carried, tables });
    this.tables.clear();
  }

  /** Goes where a saved session stood. @internal */
  place(saved: SavedState): void {
    for (const state of this.model.manifest.states) {
      const bytes = saved.tensors.get(state.name) as Uint8Array;
      if (state.kind === "carried") {
        this.carried.get(state.name)?.letGo();
        this.carried.set(state.name, this.model.device.carried(state, bytes));
      } else {
        const pair = this.tables.get(state.name) as [OrtTensor, OrtTensor];
        const side = this.sides.get(state.name) as 0 | 1;
        this.model.device.freeTable(pair[side]);
        pair[side] = this.model.device.table(state, bytes);
      }
    }
    this.stand(saved.standing, saved.last);
  }

  /** Throws where the session met numbers that are not finite, and was not reset or rewound. @internal */
  checkSound(): void {
    if (this.poison)
      fail("poisoned", `this session stopped at position ${this.position} (${this.poison})`, "call reset() to start it afresh, or rewind() to go on from a mark");
  }

  private states(kind: StateSpec["kind"]): StateSpec[] {
    return this.model.manifest.states.filter((state) => state.kind === kind);
  }

  private tableOf(name: string): OrtTensor {
    return (this.tables.get(name) as [OrtTensor, OrtTensor])[this.sides.get(name) as 0 | 1];
  }

  private countedBytes(state: StateSpec): number {
    return counted(state, this.position);
  }

  private stand(standing: Standing, last: Float32Array | undefined): void {
    this.now = standing;
    this.lastOutputs = last;
    this.poison = "";
  }

  private checkIdle(): void {
    if (this.busy) fail("busy", "this session is in use, or was disposed of", "await the call before, or fork the session");
  }

  private async alone<T>(call: () => Promise<T>): Promise<T> {
    this.checkIdle();
    this.busy = true;
    try {
      return await call();
    } finally {
      this.busy = false;
    }
  }

  private async consume(inputs: Inputs, count: number, all: boolean): Promise<Fed> {
    this.checkSound();
    const { outputs, surpriseLayers, chunk } = this.model.manifest;
    const next: Next = {
      position: this.position,
      carried: new Map(this.carried),
      created: new Set(),
      sides: new Map(this.sides),
      totals: this.now.totals,
    };
    const every = all ? new Float32Array(count * outputs) : undefined;
    const surprise = new Float32Array(count * surpriseLayers);
    let last = new Float32Array(0);
    try {
      for (let offset = 0; offset < count; ) {
        const call: Call = this.model.planner.next(next.position, count - offset);
        const { head, surprised } = await this.call(call.graph, inputs, offset, call.length, next);
        every?.set(head.subarray(0, call.length * outputs), offset * outputs);
        surprise.set(surprised.subarray(0, call.length * surpriseLayers), offset * surpriseLayers);
        next.totals = added(next.totals, surprised, call.length, surpriseLayers);
        last = head.slice((call.length - 1) * outputs, call.length * outputs);
        offset += call.length;
        if (!call.commits) for (const due of this.model.planner.due(next.position)) await this.call(due, inputs, 0, 0, next);
      }
    } catch (error) {
      for (const shared of next.created) shared.letGo();
      if (error instanceof TitansError && error.code === "non-finite") this.poison = error.finding;
      throw error;
    }
    for (const [name, shared] of this.carried) if (next.carried.get(name) !== shared) shared.letGo();
    this.carried = next.carried;
    this.sides = next.sides;
    this.lastOutputs = last;
    this.now = {
      ...this.now,
      position: next.position,
      commits: this.now.commits + Math.floor(next.position / chunk) - Math.floor(this.position / chunk),
      totals: next.totals,
      recent: inputs instanceof Float32Array ? [] : consumed(this.now.recent, inputs),
    };
    return { last: last.slice(), all: every, surprise };
  }

  private async call(index: number, inputs: Inputs, offset: number, length: number, next: Next): Promise<{ head: Float32Array; surprised: Float32Array }> {
    const { manifest } = this.model;
    const graph = manifest.graphs[index] as GraphSpec;
    const program = await this.model.program(index);
    const feeds: Record<string, OrtTensor> = {};
    for (const name of program.inputNames) feeds[name] = this.input(graph, name, inputs, offset, length, next);
    let results: Record<string, OrtTensor>;
    try {
      results = await program.run(feeds, graph.outputs.map((each) => each.name));
    } catch (error) {
      return fail("execution", `graph '${graph.name}' failed (${said(error)})`, "nothing has changed: try again, and check the bundle with `titans verify`");
    }
    const numbers = (name: string): Float32Array => (results[name]?.data as Float32Array | undefined) ?? new Float32Array(0);
    const head = numbers(manifest.vectors ? "predictions" : "logits");
    const surprised = numbers("surprise");
    const strange = this.takeStates(graph, results, length, next);
    if (length && !finite(head.subarray(0, length * manifest.outputs)) && !strange) this.refuse(graph, next.position, "in the outputs");
    if (!finite(surprised.subarray(0, length * manifest.surpriseLayers)) && !strange) this.refuse(graph, next.position, "in the surprise");
    if (strange) this.refuse(graph, next.position, `in state '${strange}'`);
    next.position += length;
    return { head, surprised };
  }

  private refuse(graph: GraphSpec, position: number, where: string): never {
    fail("non-finite", `graph '${graph.name}' returned numbers that are not finite at token ${position} or after, ${where}`, "go back with reset(), rewind() or a saved session, and if it recurs train with memory.surprise_bound set");
  }

  /** An input of a graph. What the state table does not have is data, or a weight. */
  private input(graph: GraphSpec, name: string, inputs: Inputs, offset: number, length: number, next: Next): OrtTensor {
    const { model } = this;
    const { manifest } = model;
    if (name === "position") return model.tensor("int64", BigInt64Array.of(BigInt(next.position)), [1]);
    if (name === "length") return model.tensor("int64", BigInt64Array.of(BigInt(length)), [1]);
    if (name === "input_ids") {
      const ids = new BigInt64Array(graph.tokens); // padded on the right
      for (let i = 0; i < length; i += 1) ids[i] = BigInt(inputs[offset + i] as number);
      return model.tensor("int64", ids, [1, graph.tokens]);
    }
    if (name === "inputs") {
      const padded = new Float32Array(graph.tokens * manifest.features);
      padded.set((inputs as Float32Array).subarray(offset * manifest.features, (offset + length) * manifest.features));
      return model.tensor("float32", padded, [1, graph.tokens, manifest.features]);
    }
    const state = manifest.states.find((each) => each.input === name);
    if (!state) return model.weight(name);
    const carried = next.carried.get(state.name);
    if (carried) return carried.tensor;
    return (this.tables.get(state.name) as [OrtTensor, OrtTensor])[next.sides.get(state.name) as 0 | 1];
  }

  /** Takes what a graph returned of the state; the name of one that has numbers that are not finite, or "". */
  private takeStates(graph: GraphSpec, results: Record<string, OrtTensor>, length: number, next: Next): string {
    const { device, manifest } = this.model;
    const onHost = device.outputLocation === "cpu";
    let strange = "";
    for (const state of manifest.states) {
      const tensor = graph.outputs.some((each) => each.name === state.output) ? results[state.output] : undefined;
      if (!tensor) continue;
      const rowBytes = state.kind === "rows" ? byteCount(state) / (state.shape[0] as number) : byteCount(state);
      const bytes = state.kind === "rows" ? rowBytes * length : rowBytes;
      if (onHost && !strange && !soundBytes(state, tensor, bytes)) strange = state.name;
      if (state.kind === "carried") {
        const old = next.carried.get(state.name);
        if (old && next.created.delete(old)) old.letGo();
        const shared = device.returned(tensor);
        next.carried.set(state.name, shared);
        next.created.add(shared);
      } else if (length) {
        const at = next.position % (state.shape[0] as number);
        // Rows that count stay: where a table begins anew the other one is taken.
        if (at === 0) next.sides.set(state.name, 1 - (this.sides.get(state.name) as number));
        const table = (this.tables.get(state.name) as [OrtTensor, OrtTensor])[next.sides.get(state.name) as 0 | 1];
        device.append(table, tensor, at * rowBytes, bytes);
      }
    }
    return strange;
  }
}

function soundBytes(state: StateSpec, tensor: OrtTensor, bytes: number): boolean {
  if (state.dtype === "float32") return finite((tensor.data as Float32Array).subarray(0, bytes / 4));
  return byName.has(state.dtype) && allFinite(state.dtype, hostBytes(tensor).subarray(0, bytes));
}

function added(totals: Totals, surprise: Float32Array, length: number, layers: number): Totals {
  if (!layers || !surprise.length) return totals;
  let { total, squares, highest } = totals;
  for (let i = 0; i < length; i += 1) {
    let sum = 0;
    for (let j = 0; j < layers; j += 1) sum += surprise[i * layers + j] as number;
    const mean = sum / layers;
    total += mean;
    squares += mean * mean;
    highest = Math.max(highest, mean);
  }
  return { tokens: totals.tokens + length, total, squares, highest };
}
