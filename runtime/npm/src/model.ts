/** A loaded bundle: what all its sessions share. Does not drive streams. */

import { templateIds, type ChatOptions, type Message } from "./chat.js";
import { GpuDevice, HostDevice, type Device, type Gpu } from "./device.js";
import { byName, numbersOf, widened, zeros, bytesOf } from "./dtypes.js";
import { EXPORT_AGAIN, TitansError, fail, said } from "./errors.js";
import { byteCount, elements, readManifest, type DataFile, type GraphSpec, type Manifest, type StateSpec } from "./manifest.js";
import { PROVIDERS, importOrt, type Ort, type OrtSession, type OrtTensor, type Provider } from "./ort.js";
import { Planner } from "./plan.js";
import { readTensors, type Stored } from "./safetensors.js";
import { Session } from "./session.js";
import { checkFile, readChecked, readFile, type Source } from "./source.js";
import { mostBytes, unpack } from "./state_file.js";
import { openTokenizer, type Tokenizer } from "./tokenizer.js";

/** How a model is loaded. */
export interface LoadOptions {
  /** "cpu" in Node and "wasm" in browsers, where nothing is said. */
  provider?: Provider;
  /** Of a graph, on "cpu" and "wasm"; all cores where nothing is said. In pages more than 1 needs COOP and COEP headers. */
  threads?: number;
  /** ONNX Runtime itself, where it is not to be imported by the name of its package. */
  ort?: unknown;
}

const MOST_GRAPH = 32 * 2 ** 20;

export class Model {
  private readonly programs = new Map<number, Promise<OrtSession>>();
  private weightBytes: Promise<Uint8Array> | undefined;
  private inputs = new Map<string, OrtTensor>();
  /** @internal */
  readonly planner: Planner;

  /** @internal */
  constructor(
    readonly manifest: Manifest,
    readonly provider: Provider,
    private readonly source: Source,
    private readonly options: LoadOptions,
    /** @internal */
    readonly ort: Ort,
    private readonly initial: ReadonlyMap<string, Uint8Array>,
    private readonly template: string | undefined,
    /** The bundle's, or undefined for a model that has none. */
    readonly tokenizer: Tokenizer | undefined,
  ) {
    this.planner = new Planner(manifest);
  }

  /** @internal */
  device!: Device;

  get name(): string {
    return this.manifest.name;
  }
  get variant(): string {
    return this.manifest.variant;
  }
  get dtype(): string {
    return this.manifest.dtype;
  }
  get chunk(): number {
    return this.manifest.chunk;
  }
  /** Ids are 0 to this, without it; 0 for a model of vectors. */
  get vocabSize(): number {
    return this.manifest.vectors ? 0 : this.manifest.outputs;
  }
  /** Bytes of one stream's state. */
  get stateBytes(): number {
    return this.manifest.streamBytes;
  }
  /** A name for everything that a saved session depends on: sessions of equal identities understand each other's files. */
  get identity(): string {
    return this.manifest.stateIdentity;
  }

  /** A stream at its beginning. */
  session(): Session {
    return new Session(this);
  }

  /** A session that goes on where a saved one stood: one that this package, Python or C saved. */
  async restore(saved: string | Uint8Array): Promise<Session> {
    let source = "the saved session";
    if (typeof saved === "string") {
      source = saved;
      const { readState } = await import("./folder.js");
      saved = await readState(saved, mostBytes(this.manifest));
    }
    const content = await unpack(this.manifest, saved, source);
    const session = this.session();
    session.place(content);
    return session;
  }

  /** The ids of a conversation, by the model's chat template. What a message says is text, whatever it spells. */
  encodeChat(messages: string | Message | readonly Message[], options: ChatOptions = {}): number[] {
    if (this.template === undefined || !this.manifest.chatTemplate)
      return fail("input", "this bundle has no chat template", "export it with titans export --chat-template FILE, or feed text");
    return templateIds(this.template, this.manifest.chatTemplate.tokens, this.textual(), messages, options);
  }

  /** The ids of a text or of ids. Throws for a model without text. @internal */
  idsOf(input: string | ArrayLike<number>): number[] {
    const ids = typeof input === "string" ? this.textual().encode(input) : Array.from(input, Number);
    if (ids.length === 0) fail("input", "there are no tokens to feed", "pass at least one");
    this.checkIds(ids, "token");
    return ids;
  }

  /** @internal */
  checkIds(ids: readonly number[], what: string): void {
    for (const id of ids)
      if (!Number.isInteger(id) || id < 0 || id >= this.manifest.outputs)
        fail("input", `${what} ${id} is outside the vocabulary`, `pass ids from 0 to ${this.manifest.outputs - 1}`);
  }

  /** @internal */
  textual(): Tokenizer {
    return this.tokenizer ?? fail("input", "this model has no tokenizer", "pass token ids");
  }

  /** Where a stream's carried tensor begins, as bytes. @internal */
  initialBytes(state: StateSpec): Uint8Array {
    return this.initial.get(state.name) ?? new Uint8Array(byteCount(state));
  }

  /** A tensor of numbers. @internal */
  tensor(type: string, data: unknown, dims: readonly number[]): OrtTensor {
    return new this.ort.Tensor(type, data, dims);
  }

  /** ONNX Runtime's session of a graph, created when it is first needed. @internal */
  program(index: number): Promise<OrtSession> {
    let found = this.programs.get(index);
    if (!found) {
      found = this.create(this.manifest.graphs[index] as GraphSpec);
      this.programs.set(index, found);
      found.catch(() => this.programs.delete(index));
    }
    return found;
  }

  /** Half-precision weights that a graph takes as float32 inputs. @internal */
  weight(name: string): OrtTensor {
    return this.inputs.get(name) ?? fail("bundle", `a graph takes '${name}', which is not among the weights`, EXPORT_AGAIN);
  }

  /** Gives ONNX Runtime's memory back. Sessions of the model cannot be used afterwards. */
  async dispose(): Promise<void> {
    const programs = [...this.programs.values()];
    this.programs.clear();
    for (const program of programs) await (await program).release();
  }

  private async create(graph: GraphSpec): Promise<OrtSession> {
    const file: DataFile = this.provider !== "webgpu" && graph.cpu ? graph.cpu : graph;
    const what = `${this.source.name}/${file.file}`;
    if (this.manifest.omitted.has(file.file))
      return fail("bundle", `${what} was left out of this bundle by \`titans slim\``, "use the bundle it was made from");
    const content = await readChecked(this.source, file);
    if (content.length > MOST_GRAPH) return fail("bundle", `${what} is larger than any graph`, EXPORT_AGAIN);
    try {
      const created = await this.createFrom(graph, file, content);
      await this.addWeights(graph, created);
      return created;
    } catch (error) {
      if (error instanceof TitansError) throw error;
      return fail("bundle", `${what} cannot be loaded by ONNX Runtime (${said(error)})`, "upgrade ONNX Runtime, or export the bundle again");
    }
  }

  private async createFrom(graph: GraphSpec, file: DataFile, content: Uint8Array): Promise<OrtSession> {
    const { threads } = this.options;
    const options: Record<string, unknown> = { executionProviders: [this.provider], logSeverityLevel: 3 };
    if (threads !== undefined) Object.assign(options, { intraOpNumThreads: threads, interOpNumThreads: 1 });
    if (this.provider === "cpu" && this.source.path)
      return this.ort.InferenceSession.create(this.source.path(file.file), options); // which maps the weights beside it
    const { weights, states } = this.manifest;
    if (this.provider === "webgpu") {
      const outputs = new Set(states.map((state) => state.output));
      options["preferredOutputLocation"] = Object.fromEntries(
        graph.outputs.map(({ name }) => [name, outputs.has(name) ? "gpu-buffer" : "cpu"]),
      );
    }
    options["externalData"] = [{ path: weights.file, data: await this.weightFile() }];
    return this.ort.InferenceSession.create(content, options);
  }

  private weightFile(): Promise<Uint8Array> {
    this.weightBytes ??= readFile(this.source, this.manifest.weights.file);
    return this.weightBytes;
  }

  private async addWeights(graph: GraphSpec, program: OrtSession): Promise<void> {
    const known = new Set(graph.inputs.map((each) => each.name));
    const extra = program.inputNames.filter((name) => !known.has(name));
    const outputs = new Set(program.outputNames);
    const missing = graph.outputs.find((each) => !outputs.has(each.name));
    if (missing) fail("bundle", `graph '${graph.name}' has no output '${missing.name}'`, EXPORT_AGAIN);
    if (extra.length === 0 || extra.every((name) => this.inputs.has(name))) return;
    const { tensors } = readTensors(await this.weightFile());
    for (const name of extra) {
      const found = tensors.get(name);
      if (!found || this.provider === "webgpu" || !["float16", "bfloat16"].includes(found.type.name))
        return fail("bundle", `graph '${graph.name}' has an unknown input '${name}'`, EXPORT_AGAIN);
      if (!this.inputs.has(name))
        this.inputs.set(name, this.tensor("float32", widened(found.type.name, found.data), found.shape));
    }
  }

  /** Prepares what sessions need before they can be opened. @internal */
  async open(): Promise<this> {
    const step = this.manifest.graphs.findIndex((graph) => graph.kind === "step");
    await this.program(step); // now: a stream must not meet a refusal half way
    if (this.provider === "webgpu") {
      const gpu = (await this.ort.env.webgpu?.device) as Gpu | undefined;
      if (!gpu) return fail("provider", "ONNX Runtime has no WebGPU device here", 'use provider "wasm"');
      this.device = new GpuDevice(this.ort, gpu);
    } else {
      this.device = new HostDevice(this.ort);
    }
    return this;
  }
}

/** Loads a bundle, checking the hash of every file that is used. */
export async function loadFrom(source: Source, provider: Provider, options: LoadOptions): Promise<Model> {
  if (!PROVIDERS.includes(provider)) return fail("input", `provider is '${String(provider)}'`, `use one of ${PROVIDERS.join(", ")}`);
  const manifest = await readManifest(decoded(await readFile(source, "manifest.json"), "manifest.json"));
  const runs = manifest.providers;
  if (runs && !runs.includes(provider === "wasm" ? "cpu" : provider))
    return fail("provider", `this bundle is for ${runs.join(", ")}`, "export the checkpoint with another --dtype");
  for (const file of [manifest.weights, ...(manifest.initialState ? [manifest.initialState] : [])])
    if (manifest.omitted.has(file.file))
      return fail("bundle", `${file.file} was left out of this bundle by \`titans slim\``, "use the bundle it was made from");
  await checkFile(source, manifest.weights);
  const initial = await initialStates(source, manifest);
  const { chatTemplate } = manifest;
  const template = chatTemplate && decoded(await readChecked(source, chatTemplate), chatTemplate.file);
  const ort = (options.ort as Ort | undefined) ?? (await importOrt(provider));
  if (provider === "wasm" && options.threads !== undefined && ort.env.wasm) ort.env.wasm.numThreads = options.threads;
  const tokenizer = await openTokenizer(source, manifest);
  const model = new Model(manifest, provider, source, options, ort, initial, template, tokenizer);
  return model.open();
}

function decoded(data: Uint8Array, file: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(data);
  } catch {
    return fail("bundle", `${file} is not UTF-8`, EXPORT_AGAIN);
  }
}

/** Bytes of the states that do not begin with zeros. */
async function initialStates(source: Source, manifest: Manifest): Promise<Map<string, Uint8Array>> {
  const found = new Map<string, Uint8Array>();
  let learned: ReadonlyMap<string, Stored> = new Map();
  if (manifest.initialState) {
    const data = await readChecked(source, manifest.initialState);
    try {
      learned = readTensors(data).tensors;
    } catch (error) {
      fail("bundle", `${manifest.initialState.file} is not a sound safetensors file (${said(error)})`, "copy the bundle again");
    }
  }
  for (const state of manifest.states) {
    const { kind, tensor, value } = state.initial;
    if (kind === "zeros" || state.kind === "rows") continue;
    if (kind === "constant") {
      found.set(state.name, constant(state, value ?? 0));
      continue;
    }
    const stored = learned.get(tensor ?? "");
    const shape = state.shape.filter((size) => size !== "batch");
    if (stored?.type.name !== state.dtype || JSON.stringify(stored.shape) !== JSON.stringify(shape))
      return fail("bundle", `initial tensor '${tensor}' is missing, or of another type or shape than state '${state.name}'`, COPY);
    found.set(state.name, stored.data);
  }
  return found;
}

const COPY = "copy the bundle again, or export it again";

function constant(state: StateSpec, value: number): Uint8Array {
  if (state.dtype === "float16") {
    // The few constants that states begin with are exact in half precision: found by looking for them.
    for (let half = 0; half < 0x7c00; half += 1)
      if (widened("float16", bytesOf(Uint16Array.of(half)))[0] === Math.abs(value))
        return bytesOf(new Uint16Array(elements(state.shape)).fill(value < 0 ? half | 0x8000 : half));
    return fail("bundle", `state '${state.name}' starts from ${value}, which is no float16`, EXPORT_AGAIN);
  }
  const size = byName.get(state.dtype)?.bytes ?? 1;
  const made = zeros(state.dtype, elements(state.shape));
  if (made instanceof BigInt64Array) made.fill(BigInt(Math.trunc(value)));
  else (made as Float32Array).fill(value);
  const held = Number((numbersOf(state.dtype, bytesOf(made).slice(0, size)) as Float32Array)[0]);
  if (!(Math.abs(held - value) <= 1e-8 + 0.01 * Math.abs(value)))
    return fail("bundle", `state '${state.name}' starts from ${value}, which is no ${state.dtype}`, EXPORT_AGAIN);
  return bytesOf(made);
}
