/** A session as a file: one safetensors file that is whole or refused, and belongs to one model. Python's and C's too. */

import { allFinite, byName, bytesOf } from "./dtypes.js";
import { SAVE_AGAIN, TitansError, fail, said } from "./errors.js";
import { floatText, parseJson } from "./json.js";
import { byteCount, concrete, type Manifest, type StateSpec } from "./manifest.js";
import { Place } from "./place.js";
import { inflate, sha256 } from "./platform.js";
import { MOST_HEADER, readTensors, type Stored, type TensorFile } from "./safetensors.js";

const LAST = "last_output";
const NO_DIGEST = "0".repeat(64);
const VERSION = 1;
const KEPT = 8; // ids: more than the longest character takes, and what stands before it
const ANY = Number.MAX_VALUE;

/** Surprise over a whole stream: mean over the memory layers, per token. */
export interface Totals {
  readonly tokens: number;
  readonly total: number;
  readonly squares: number;
  readonly highest: number;
}

/** Everything a session is at one point of its stream but the tensors. */
export interface Standing {
  readonly position: number;
  readonly commits: number;
  readonly totals: Totals;
  readonly recent: readonly number[];
  /** Where a conversation stands, as Python's `chat` left it. */
  readonly turn: number | undefined;
}

export const START: Standing = {
  position: 0,
  commits: 0,
  totals: { tokens: 0, total: 0, squares: 0, highest: 0 },
  recent: [],
  turn: undefined,
};

export interface SavedState {
  readonly standing: Standing;
  /** Bytes of each tensor, rows as far as they count. */
  readonly tensors: ReadonlyMap<string, Uint8Array>;
  readonly last: Float32Array | undefined;
}

/** The ids that are kept once more were consumed. */
export function consumed(recent: readonly number[], ids: readonly number[]): number[] {
  return [...recent, ...ids.slice(-KEPT)].slice(-KEPT);
}

/** Bytes of a state's part that counts: all of a carried tensor, and the rows that were written. */
export function counted(state: StateSpec, position: number): number {
  const length = state.shape[0] as number;
  return state.kind === "carried" ? byteCount(state) : (byteCount(state) / length) * (position % length);
}

function countedShape(state: StateSpec, position: number): number[] {
  const shape = concrete(state.shape);
  return state.kind === "rows" ? [position % (shape[0] as number), ...shape.slice(1)] : shape;
}

/** More bytes than any state of a model has. */
export function mostBytes(manifest: Manifest): number {
  return 2 * manifest.streamBytes + 4 * manifest.outputs + MOST_HEADER;
}

interface Part {
  name: string;
  dtype: string;
  shape: number[];
  data: Uint8Array;
}

/** The bytes of a state file. */
export async function pack(
  manifest: Manifest,
  standing: Standing,
  tensors: ReadonlyMap<string, Uint8Array>,
  last: Float32Array | undefined,
): Promise<Uint8Array> {
  const parts: Part[] = manifest.states.map((state) => ({
    name: state.name,
    dtype: state.dtype,
    shape: countedShape(state, standing.position),
    data: tensors.get(state.name) as Uint8Array,
  }));
  if (last) parts.push({ name: LAST, dtype: "float32", shape: [last.length], data: bytesOf(last) });
  const entry = entryText(manifest, standing, parts);
  const size = (part: Part): number => byName.get(part.dtype)?.bytes ?? 1;
  const header: Record<string, unknown> = { __metadata__: { titans: entry } };
  let end = 0;
  const ordered = [...parts].sort((a, b) => size(b) - size(a)); // the widest types first, so that all are aligned
  for (const part of ordered) {
    const begin = end;
    end += part.data.length;
    header[part.name] = { dtype: byName.get(part.dtype)?.safetensors, shape: part.shape, data_offsets: [begin, end] };
  }
  const head = new TextEncoder().encode(JSON.stringify(header));
  const padded = Math.ceil(head.length / 8) * 8;
  const data = new Uint8Array(8 + padded + end);
  new DataView(data.buffer).setBigUint64(0, BigInt(padded), true);
  data.fill(32, 8, 8 + padded);
  data.set(head, 8);
  let at = 8 + padded;
  for (const part of ordered) {
    data.set(part.data, at);
    at += part.data.length;
  }
  const digest = await sha256(data);
  data.set(new TextEncoder().encode(digest), 8 + find(head, NO_DIGEST)); // the first: it is the entry's
  return data;
}

/** The entry's JSON, in which Python reads whole numbers and others apart. */
function entryText(manifest: Manifest, standing: Standing, parts: readonly Part[]): string {
  const { position, commits, recent, turn, totals } = standing;
  const surprise = `{"tokens": ${totals.tokens}, "total": ${floatText(totals.total)}, "squares": ${floatText(totals.squares)}, "highest": ${floatText(totals.highest)}}`;
  const fields = {
    format: "titans-state",
    format_version: VERSION,
    sha256: NO_DIGEST,
    identity: manifest.stateIdentity,
    model: manifest.name,
    position,
    commits,
    compressed: false,
    recent,
    tensors: Object.fromEntries(parts.map((part) => [part.name, [part.dtype, part.shape]])),
    ...(turn === undefined ? {} : { turn }),
  };
  return `${JSON.stringify(fields).slice(0, -1)},"surprise":${surprise}}`;
}

function find(data: Uint8Array, text: string): number {
  return new TextDecoder("latin1").decode(data).indexOf(text);
}

const FILE = "the saved session";

/** Reads what `pack` wrote, here or in Python or C. Throws a TitansError of "state". */
export async function unpack(manifest: Manifest, data: Uint8Array, source: string): Promise<SavedState> {
  let file: TensorFile;
  let entry: Place;
  try {
    file = readTensors(data);
    entry = new Place(parseJson(new Place(file.metadata ?? null, "", FILE).at("titans").words()), "", FILE);
    const format = entry.at("format").words();
    if (format === "titans-state-int8")
      return fail("state", `${source} is a session in 8 bits`, "restore it in Python and save it again");
    if (format !== "titans-state") return fail("state", `${source} is not a saved session`, "give a file that a session saved");
    const version = entry.at("format_version").whole(1);
    if (version > VERSION)
      return fail("state", `${source} has format version ${version}, newer than ${VERSION}`, "install a newer titans-runtime");
    await checkDigest(data, file, entry.at("sha256").digest(), source);
    const identity = entry.at("identity").words();
    if (identity !== manifest.stateIdentity)
      return fail(
        "state",
        `${source} is a state of another model (identity ${identity.slice(0, 12)})`,
        `this bundle has identity ${manifest.stateIdentity.slice(0, 12)}: load the one it was saved with`,
      );
    return await contentOf(manifest, file, entry, source);
  } catch (error) {
    if (error instanceof TitansError && error.code === "state") throw error;
    const why = error instanceof TitansError ? error.finding : said(error);
    return fail("state", `${source} is not a saved session, or is damaged (${why})`, SAVE_AGAIN);
  }
}

async function checkDigest(data: Uint8Array, file: TensorFile, digest: string, source: string): Promise<void> {
  const at = find(file.head, digest);
  const copy = data.slice();
  if (at >= 0) copy.set(new TextEncoder().encode(NO_DIGEST), 8 + at);
  if (at < 0 || (await sha256(copy)) !== digest)
    fail("state", `${source} is damaged: its checksum does not match`, SAVE_AGAIN);
}

async function contentOf(manifest: Manifest, file: TensorFile, entry: Place, source: string): Promise<SavedState> {
  const standing = standingOf(entry);
  const compressed = entry.at("compressed").value;
  if (typeof compressed !== "boolean") return entry.at("compressed").refuse("true or false");
  const table = new Map(entry.at("tensors").entries());
  const expected = new Map(
    manifest.states.map((state) => [state.name, [state.dtype, countedShape(state, standing.position)] as const]),
  );
  if (file.tensors.has(LAST)) expected.set(LAST, ["float32", [manifest.outputs]]);
  if (table.size !== expected.size || file.tensors.size !== expected.size)
    return fail("state", `${source} holds other tensors than this model's`, SAVE_AGAIN);
  const tensors = new Map<string, Uint8Array>();
  for (const [name, [dtype, shape]] of expected) {
    const stored = file.tensors.get(name);
    if (!stored || JSON.stringify(table.get(name)?.value) !== JSON.stringify([dtype, shape]))
      return fail("state", `${source}: '${name}' is not the ${dtype} that this model has`, SAVE_AGAIN);
    tensors.set(name, await content(name, stored, dtype, shape, compressed, source));
  }
  const last = tensors.get(LAST);
  return { standing, tensors, last: last && new Float32Array(last.slice().buffer) };
}

async function content(
  name: string,
  stored: Stored,
  dtype: string,
  shape: readonly number[],
  compressed: boolean,
  source: string,
): Promise<Uint8Array> {
  const item = byName.get(dtype)?.bytes ?? 1;
  const size = shape.reduce((a, b) => a * b, item);
  let data: Uint8Array | undefined = stored.data;
  if (compressed) {
    const planes = await inflate(stored.data, size);
    data = planes && interleaved(planes, item);
    if (!data) return fail("state", `${source} does not decompress to the model's state`, SAVE_AGAIN);
  } else if (stored.type.name !== dtype || JSON.stringify(stored.shape) !== JSON.stringify(shape)) {
    return fail("state", `${source}: '${name}' is stored in another type or shape than its header says`, SAVE_AGAIN);
  }
  if (!allFinite(dtype, data)) return fail("state", `${source}: '${name}' has numbers that are not finite`, SAVE_AGAIN);
  return data;
}

/** Numbers from their bytes of equal significance, which stand together. */
function interleaved(planes: Uint8Array, item: number): Uint8Array {
  const made = new Uint8Array(planes.length);
  const count = planes.length / item;
  for (let i = 0; i < count; i += 1)
    for (let plane = 0; plane < item; plane += 1) made[i * item + plane] = planes[plane * count + i] as number;
  return made;
}

function standingOf(entry: Place): Standing {
  const surprise = entry.at("surprise");
  const number = (name: string): number => surprise.at(name).number(-ANY, ANY);
  return {
    position: entry.at("position").whole(0),
    commits: entry.at("commits").whole(0),
    totals: {
      tokens: surprise.at("tokens").whole(0),
      total: number("total"),
      squares: number("squares"),
      highest: number("highest"),
    },
    recent: (entry.when("recent")?.list() ?? []).map((id) => id.whole(0)).slice(-KEPT),
    turn: entry.when("turn")?.whole(-1),
  };
}
