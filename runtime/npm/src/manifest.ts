/** What a bundle says about itself, read strictly: docs/bundle-format.md describes the fields. */

import { checkContract } from "./contract.js";
import { byName } from "./dtypes.js";
import { COPY_AGAIN, fail, said } from "./errors.js";
import { Spelt, floatText, parseJson, sortedJson, type Json, type JsonObject } from "./json.js";
import { Place } from "./place.js";
import { sha256 } from "./platform.js";

export interface DataFile {
  readonly file: string;
  readonly sha256: string;
  readonly bytes?: number;
}

/** "batch" stands for the number of streams, which is 1 here. */
export type Shape = readonly (number | "batch")[];

export interface Initial {
  readonly kind: "zeros" | "constant" | "learned";
  readonly value?: number;
  readonly tensor?: string;
}

export interface StateSpec {
  readonly name: string;
  readonly kind: "carried" | "rows";
  readonly dtype: string;
  readonly shape: Shape;
  readonly initial: Initial;
  readonly input: string;
  readonly output: string;
}

export interface TensorSpec {
  readonly name: string;
  readonly dtype: string;
  readonly shape: Shape;
}

export interface GraphSpec extends DataFile {
  readonly name: string;
  readonly kind: "prefill" | "extend" | "step" | "commit";
  readonly tokens: number;
  readonly inputs: readonly TensorSpec[];
  readonly outputs: readonly TensorSpec[];
  readonly cpu?: DataFile;
}

/** How text is generated where the caller does not say. */
export interface GenerationDefaults {
  readonly temperature?: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly minP?: number;
  readonly repetitionPenalty?: number;
  readonly maxNewTokens?: number;
}

export interface Manifest {
  readonly name: string;
  readonly variant: string;
  readonly dtype: string;
  /** Whether the model reads vectors instead of tokens. */
  readonly vectors: boolean;
  /** Numbers of an input vector; 0 for tokens. */
  readonly features: number;
  /** Numbers that come out for each token: the vocabulary, or targets. */
  readonly outputs: number;
  readonly chunk: number;
  readonly states: readonly StateSpec[];
  readonly graphs: readonly GraphSpec[];
  readonly schedule: readonly { readonly graph: string; readonly period: number; readonly phase: number }[];
  readonly weights: DataFile;
  readonly initialState?: DataFile;
  readonly tokenizer?: { readonly kind: "byte" } | ({ readonly kind: "tokenizers" } & DataFile);
  readonly chatTemplate?: DataFile & { readonly tokens: Readonly<Record<string, string>> };
  readonly eos: readonly number[];
  readonly stop: readonly number[];
  readonly generation: GenerationDefaults;
  /** Providers that can run it, all where it does not say. */
  readonly providers?: readonly string[];
  readonly omitted: ReadonlySet<string>;
  /** Memory layers that report surprise. */
  readonly surpriseLayers: number;
  /** A SHA-256 of what a saved state depends on. */
  readonly stateIdentity: string;
  /** Bytes of one stream's state. */
  readonly streamBytes: number;
}

const VERSION = 1;
const FEW = 2 ** 31 - 1;
const MOST_DIMENSION = 2 ** 30;
const MOST_AXES = 16;
const MOST_ENDS = 256;
const TOKEN_NAME = /^[a-z_]{1,40}_token$/;
const ANY = Number.MAX_VALUE;

/** The shape for one stream. */
export const concrete = (shape: Shape): number[] => shape.map((size) => (size === "batch" ? 1 : size));
export const elements = (shape: Shape): number => concrete(shape).reduce((a, b) => a * b, 1);
export const byteCount = (tensor: { readonly dtype: string; readonly shape: Shape }): number =>
  elements(tensor.shape) * (byName.get(tensor.dtype)?.bytes ?? 1);

/** Leaves out what is undefined, as optional fields want it. */
function present<T extends object>(fields: { [K in keyof T]: T[K] | undefined }): T {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as T;
}

/** Reads a manifest. Throws a TitansError of "bundle" for anything that is not a sound one. */
export async function readManifest(text: string): Promise<Manifest> {
  let document: Json;
  try {
    document = parseJson(text);
  } catch (error) {
    return fail("bundle", `manifest.json cannot be read (${said(error)})`, "it may be truncated: copy the bundle again");
  }
  const root = new Place(document);
  root.at("format").choice("titans-bundle");
  const version = root.at("format_version").whole(1);
  if (version > VERSION)
    fail("bundle", `manifest.json has format_version ${version}, and this package reads up to ${VERSION}`, "install a newer titans-runtime");
  const table = { ...inputsOf(root.at("inputs")), ...partsOf(root) };
  checkContract(table);
  await checkSeal(document as JsonObject, root);
  const layers = table.graphs.flatMap((graph) => graph.outputs).find((tensor) => tensor.name === "surprise");
  return {
    ...table,
    surpriseLayers: Number(layers?.shape.at(-1) ?? 0),
    stateIdentity: await identityOf(table),
    streamBytes: table.states.reduce((sum, state) => sum + byteCount(state), 0),
  };
}

export type Table = Omit<Manifest, "surpriseLayers" | "stateIdentity" | "streamBytes">;

function inputsOf(inputs: Place): Pick<Table, "vectors" | "features" | "outputs"> {
  if (inputs.at("kind").choice("tokens", "continuous") === "tokens")
    return { vectors: false, features: 0, outputs: inputs.at("vocab_size").whole(1, MOST_DIMENSION) };
  const [features, outputs] = [inputs.at("features"), inputs.at("targets")].map((each) => each.whole(1, MOST_DIMENSION));
  return { vectors: true, features: features as number, outputs: outputs as number };
}

function partsOf(root: Place): Omit<Table, "vectors" | "features" | "outputs"> {
  const ends = root.when("ends");
  const ids = (field: string): number[] => ends?.when(field)?.list(MOST_ENDS).map((id) => id.whole(0)) ?? [];
  const model = root.at("model");
  return present<Omit<Table, "vectors" | "features" | "outputs">>({
    name: model.at("name").words(),
    variant: model.at("variant").words(),
    dtype: root.at("dtype").words(),
    chunk: root.at("chunk").whole(1),
    states: root.at("states").list().map(stateOf),
    graphs: root.at("graphs").list().map(graphOf),
    schedule: root.at("schedule").list().map((due) => ({
      graph: due.at("graph").words(),
      period: due.at("period").whole(1),
      phase: due.when("phase")?.whole(0) ?? 0,
    })),
    weights: dataFile(root.at("weights")),
    initialState: maybe(root.when("initial_state"), dataFile),
    tokenizer: maybe(root.when("tokenizer"), tokenizerOf),
    chatTemplate: maybe(root.when("chat_template"), templateOf),
    eos: ids("eos"),
    stop: ids("stop"),
    generation: generationOf(root.when("generation")),
    providers: root.when("providers")?.list().map((each) => each.words()),
    omitted: new Set(root.when("omitted")?.list().map((each) => each.inside()) ?? []),
  });
}

function maybe<T>(place: Place | undefined, read: (place: Place) => T): T | undefined {
  return place && read(place);
}

function dataFile(place: Place): DataFile {
  return present<DataFile>({
    file: place.at("file").inside(),
    sha256: place.at("sha256").digest(),
    bytes: place.when("bytes")?.whole(0),
  });
}

function typeOf(place: Place): string {
  const name = place.words();
  return byName.has(name) && name !== "bfloat16" ? name : place.refuse("an element type such as float32");
}

const shapeOf = (place: Place): Shape =>
  place.list(MOST_AXES).map((size) => (size.value === "batch" ? "batch" : size.whole(1, MOST_DIMENSION)));

function stateOf(place: Place): StateSpec {
  const initial = place.at("initial");
  return {
    name: place.at("name").words(),
    kind: place.at("kind").choice("carried", "rows"),
    dtype: typeOf(place.at("dtype")),
    shape: shapeOf(place.at("shape")),
    initial: present<Initial>({
      kind: initial.at("kind").choice("zeros", "constant", "learned"),
      value: initial.when("value")?.number(-ANY, ANY),
      tensor: initial.when("tensor")?.words(),
    }),
    input: place.at("input").words(),
    output: place.at("output").words(),
  };
}

const tensorsOf = (place: Place): TensorSpec[] =>
  place.list().map((each) => ({
    name: each.at("name").words(),
    dtype: typeOf(each.at("dtype")),
    shape: shapeOf(each.at("shape")),
  }));

function graphOf(place: Place): GraphSpec {
  return present<GraphSpec>({
    ...dataFile(place),
    name: place.at("name").plain(),
    kind: place.at("kind").choice("prefill", "extend", "step", "commit"),
    tokens: place.at("tokens").whole(0),
    inputs: tensorsOf(place.at("inputs")),
    outputs: tensorsOf(place.at("outputs")),
    cpu: maybe(place.when("cpu"), dataFile),
  });
}

function tokenizerOf(place: Place): NonNullable<Manifest["tokenizer"]> {
  return place.at("kind").choice("byte", "tokenizers") === "byte"
    ? { kind: "byte" }
    : { kind: "tokenizers", ...dataFile(place) };
}

function templateOf(place: Place): NonNullable<Manifest["chatTemplate"]> {
  const named = place.when("tokens")?.entries() ?? [];
  const tokens = named.map(([name, token]) => [TOKEN_NAME.test(name) ? name : token.refuse("named like bos_token"), token.words()]);
  return { ...dataFile(place), tokens: Object.fromEntries(tokens) as Record<string, string> };
}

function generationOf(place: Place | undefined): GenerationDefaults {
  return present<GenerationDefaults>({
    temperature: place?.when("temperature")?.number(0, ANY),
    topK: place?.when("top_k")?.whole(1, FEW),
    topP: place?.when("top_p")?.number(1e-9, 1),
    minP: place?.when("min_p")?.number(0, 1),
    repetitionPenalty: place?.when("repetition_penalty")?.number(1e-3, ANY),
    maxNewTokens: place?.when("max_new_tokens")?.whole(1, FEW),
  });
}

/** The document's own checksum: what was changed by accident is noticed. */
async function checkSeal(document: JsonObject, root: Place): Promise<void> {
  const written = root.at("sha256").digest();
  const content = Object.fromEntries(Object.entries(document).filter(([name]) => name !== "sha256"));
  if ((await sha256(new TextEncoder().encode(sortedJson(content, true)))) !== written)
    fail("bundle", "manifest.json was changed after it was written: its checksum does not match", COPY_AGAIN);
}

/** The weights, the chunk and the state table, in the spelling that Python hashes. */
async function identityOf(table: Table): Promise<string> {
  const inputs: JsonObject = table.vectors
    ? { kind: "continuous", features: table.features, targets: table.outputs }
    : { kind: "tokens", vocab_size: table.outputs };
  const states: Json[] = table.states.map((state) => {
    const { kind, value, tensor } = state.initial;
    const initial: JsonObject = { kind };
    if (value) initial["value"] = new Spelt(floatText(value), value, false); // 0 is left out, as a default
    if (tensor !== undefined) initial["tensor"] = tensor;
    return { ...state, shape: [...state.shape], initial };
  });
  const facts = sortedJson([table.weights.sha256, table.chunk, inputs, states], false);
  return sha256(new TextEncoder().encode(facts));
}
