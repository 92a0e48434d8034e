/** Element types: as a manifest, ONNX Runtime and a safetensors file spell them. */

export interface ElementType {
  readonly name: string;
  readonly bytes: number;
  readonly safetensors: string;
}

const LIST: readonly ElementType[] = [
  { name: "float32", bytes: 4, safetensors: "F32" },
  { name: "uint8", bytes: 1, safetensors: "U8" },
  { name: "int8", bytes: 1, safetensors: "I8" },
  { name: "int32", bytes: 4, safetensors: "I32" },
  { name: "int64", bytes: 8, safetensors: "I64" },
  { name: "bool", bytes: 1, safetensors: "BOOL" },
  { name: "float16", bytes: 2, safetensors: "F16" },
  { name: "float64", bytes: 8, safetensors: "F64" },
  { name: "bfloat16", bytes: 2, safetensors: "BF16" },
];

export const byName = new Map(LIST.map((type) => [type.name, type]));
export const bySafetensors = new Map(LIST.map((type) => [type.safetensors, type]));

export type Numbers =
  | Float32Array
  | Float64Array
  | Int32Array
  | Int8Array
  | Uint8Array
  | Uint16Array
  | BigInt64Array;

/** Zeros, in the array that ONNX Runtime takes for a type. */
export function zeros(type: string, count: number): Numbers {
  switch (type) {
    case "float32":
      return new Float32Array(count);
    case "float64":
      return new Float64Array(count);
    case "float16":
    case "bfloat16":
      return new Uint16Array(count);
    case "int32":
      return new Int32Array(count);
    case "int8":
      return new Int8Array(count);
    case "int64":
      return new BigInt64Array(count);
    default:
      return new Uint8Array(count);
  }
}

export function bytesOf(array: ArrayBufferView): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

/** A copy of bytes as the numbers of a type. */
export function numbersOf(type: string, bytes: Uint8Array): Numbers {
  const size = byName.get(type)?.bytes ?? 1;
  const made = zeros(type, bytes.length / size);
  bytesOf(made).set(bytes);
  return made;
}

/** Whether all numbers of a type are finite. */
export function allFinite(type: string, bytes: Uint8Array): boolean {
  if (type === "float16") {
    for (let i = 1; i < bytes.length; i += 2) if (((bytes[i] ?? 0) & 0x7c) === 0x7c) return false;
    return true;
  }
  if (type !== "float32" && type !== "float64") return true;
  const numbers = numbersOf(type, bytes) as Float32Array | Float64Array;
  return finite(numbers);
}

/** Whether numbers are finite: a sum of products with 0 is 0 only then. */
export function finite(numbers: Float32Array | Float64Array): boolean {
  let sum = 0;
  for (let i = 0; i < numbers.length; i += 1) sum += (numbers[i] as number) * 0;
  return sum === 0;
}

export function floatOfHalf(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 0x1f;
  const fraction = half & 0x3ff;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -24 * fraction;
}

/** Half-precision numbers in float32: exact. */
export function widened(type: string, bytes: Uint8Array): Float32Array {
  const halves = numbersOf(type, bytes) as Uint16Array;
  if (type === "float16") return Float32Array.from(halves, floatOfHalf);
  const made = new Float32Array(halves.length);
  const bits = new Uint32Array(made.buffer);
  for (let i = 0; i < halves.length; i += 1) bits[i] = (halves[i] as number) << 16; // a bfloat16 is the upper half
  return made;
}
