/** Reads safetensors files strictly: every byte belongs to one tensor. */

import { bySafetensors, type ElementType } from "./dtypes.js";
import { parseJson, Spelt, type Json, type JsonObject } from "./json.js";

export interface Stored {
  readonly type: ElementType;
  readonly shape: readonly number[];
  readonly data: Uint8Array;
}

export interface TensorFile {
  /** The header as it is written. */
  readonly head: Uint8Array;
  readonly metadata: Json | undefined;
  readonly tensors: ReadonlyMap<string, Stored>;
}

export const MOST_HEADER = 16 * 2 ** 20; // bytes: far above any header of ours
const MOST_AXES = 16;

const isObject = (value: Json | undefined): value is JsonObject =>
  typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Spelt);
const isCount = (value: Json | undefined): value is number => typeof value === "number" && value >= 0;

/** Throws Error or SyntaxError for what is not a sound file. */
export function readTensors(data: Uint8Array): TensorFile {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const length = data.length >= 8 ? view.getBigUint64(0, true) : 0n;
  if (data.length < 8 || length > BigInt(Math.min(data.length - 8, MOST_HEADER)))
    throw new Error(`it is not a complete safetensors file (${data.length} bytes)`);
  const start = 8 + Number(length);
  const head = data.subarray(8, start);
  const header = parseJson(new TextDecoder("utf-8", { fatal: true }).decode(head));
  if (!isObject(header)) throw new Error("its header is not an object");
  const tensors = new Map<string, Stored>();
  const places: [number, number, string][] = [];
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const [begin, end, stored] = tensorOf(name, entry, data, start);
    places.push([begin, end, name]);
    tensors.set(name, stored);
  }
  places.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  let at = start;
  for (const [begin, end, name] of places) {
    if (begin !== at) throw new Error(`${name} overlaps another tensor or leaves a hole before it`);
    at = end;
  }
  if (at !== data.length) throw new Error("it has bytes that belong to no tensor");
  return { head, metadata: header["__metadata__"], tensors };
}

function tensorOf(name: string, entry: Json, data: Uint8Array, start: number): [number, number, Stored] {
  const { dtype, shape, data_offsets: offsets } = isObject(entry) ? entry : ({} as JsonObject);
  const type = typeof dtype === "string" ? bySafetensors.get(dtype) : undefined;
  if (!type || !Array.isArray(shape) || shape.length > MOST_AXES || !shape.every(isCount) || !Array.isArray(offsets))
    throw new Error(`${name} is not described as a tensor of a known type`);
  const [begin, end] = offsets;
  const bytes = (shape as number[]).reduce((a, b) => a * b, type.bytes);
  if (offsets.length !== 2 || !isCount(begin) || !isCount(end) || end - begin !== bytes || start + end > data.length)
    throw new Error(`${name} does not lie within the file`);
  const stored = { type, shape: shape as number[], data: data.subarray(start + begin, start + end) };
  return [start + begin, start + end, stored];
}
