/**
 * Where a session's state lives: in arrays of this program, or in buffers of a GPU that it never leaves.
 *
 * A carried tensor is never written once it is there: sessions, forks and marks share it, and count who holds it. A table
 * of rows belongs to one session.
 */

import { bytesOf, numbersOf, zeros, type Numbers } from "./dtypes.js";
import { byteCount, concrete, elements, type StateSpec } from "./manifest.js";
import type { Ort, OrtTensor } from "./ort.js";

/** A tensor that several may hold; it is given back when the last one lets go. */
export class Shared {
  private holders = 1;

  constructor(
    readonly tensor: OrtTensor,
    private readonly free: (tensor: OrtTensor) => void,
  ) {}

  hold(): this {
    this.holders += 1;
    return this;
  }

  letGo(): void {
    this.holders -= 1;
    if (this.holders === 0) this.free(this.tensor);
  }
}

export interface Device {
  /** Where ONNX Runtime leaves what a graph returns of the state. */
  readonly outputLocation: "cpu" | "gpu-buffer";
  /** A carried tensor from bytes. */
  carried(state: StateSpec, bytes: Uint8Array): Shared;
  /** A carried tensor that a graph returned. */
  returned(tensor: OrtTensor): Shared;
  /** A table of rows, whose first bytes are these. */
  table(state: StateSpec, bytes?: Uint8Array): OrtTensor;
  /** Another table with the first bytes of one. */
  copied(state: StateSpec, table: OrtTensor, count: number): OrtTensor;
  /** Puts the first bytes of `rows` into a table. The caller does not use `rows` again. */
  append(table: OrtTensor, rows: OrtTensor, at: number, count: number): void;
  /** The first bytes of a tensor, copied. */
  read(tensor: OrtTensor, count: number): Promise<Uint8Array>;
  freeTable(table: OrtTensor): void;
}

export class HostDevice implements Device {
  readonly outputLocation = "cpu";

  constructor(private readonly ort: Ort) {}

  carried(state: StateSpec, bytes: Uint8Array): Shared {
    return this.returned(new this.ort.Tensor(state.dtype, numbersOf(state.dtype, bytes), concrete(state.shape)));
  }

  returned(tensor: OrtTensor): Shared {
    return new Shared(tensor, () => undefined);
  }

  table(state: StateSpec, bytes?: Uint8Array): OrtTensor {
    const numbers = zeros(state.dtype, elements(state.shape));
    if (bytes) bytesOf(numbers).set(bytes);
    return new this.ort.Tensor(state.dtype, numbers, concrete(state.shape));
  }

  copied(state: StateSpec, table: OrtTensor, count: number): OrtTensor {
    return this.table(state, hostBytes(table).subarray(0, count));
  }

  append(table: OrtTensor, rows: OrtTensor, at: number, count: number): void {
    hostBytes(table).set(hostBytes(rows).subarray(0, count), at);
  }

  read(tensor: OrtTensor, count: number): Promise<Uint8Array> {
    return Promise.resolve(hostBytes(tensor).slice(0, count));
  }

  freeTable(): void {}
}

/** The bytes of a tensor that is in this program's memory. */
export function hostBytes(tensor: OrtTensor): Uint8Array {
  return bytesOf(tensor.data as Numbers);
}

// What is used of WebGPU; its types come with no package that is needed here.
interface GpuBuffer {
  mapAsync(mode: number): Promise<void>;
  getMappedRange(): ArrayBuffer;
  destroy(): void;
}
export interface Gpu {
  createBuffer(options: { size: number; usage: number }): GpuBuffer;
  createCommandEncoder(): {
    copyBufferToBuffer(from: GpuBuffer, fromAt: number, to: GpuBuffer, toAt: number, size: number): void;
    finish(): unknown;
  };
  queue: { submit(commands: unknown[]): void; writeBuffer(to: GpuBuffer, at: number, data: Uint8Array): void };
}

const MAP_READ = 1;
const COPY_SRC = 4;
const COPY_DST = 8;
const STORAGE = 128;
const WORD = 4; // bytes: what WebGPU copies are multiples of
const ALIGNED = 16;

export class GpuDevice implements Device {
  readonly outputLocation = "gpu-buffer";

  constructor(
    private readonly ort: Ort,
    private readonly gpu: Gpu,
  ) {}

  carried(state: StateSpec, bytes: Uint8Array): Shared {
    const tensor = this.buffer(state, bytes);
    return new Shared(tensor, (it) => {
      this.freeTable(it);
    });
  }

  returned(tensor: OrtTensor): Shared {
    return new Shared(tensor, (it) => {
      it.dispose();
    });
  }

  table(state: StateSpec, bytes?: Uint8Array): OrtTensor {
    return this.buffer(state, bytes);
  }

  copied(state: StateSpec, table: OrtTensor, count: number): OrtTensor {
    const made = this.buffer(state);
    if (count) this.copy(table, made, 0, count);
    return made;
  }

  append(table: OrtTensor, rows: OrtTensor, at: number, count: number): void {
    this.copy(rows, table, at, count);
    rows.dispose();
  }

  async read(tensor: OrtTensor, count: number): Promise<Uint8Array> {
    if (count === 0) return new Uint8Array(0);
    const size = rounded(count, WORD);
    const landing = this.gpu.createBuffer({ size, usage: MAP_READ | COPY_DST });
    const encoder = this.gpu.createCommandEncoder();
    encoder.copyBufferToBuffer(tensor.gpuBuffer as GpuBuffer, 0, landing, 0, size);
    this.gpu.queue.submit([encoder.finish()]);
    await landing.mapAsync(MAP_READ);
    const bytes = new Uint8Array(landing.getMappedRange()).slice(0, count);
    landing.destroy();
    return bytes;
  }

  freeTable(table: OrtTensor): void {
    (table.gpuBuffer as GpuBuffer).destroy();
  }

  private buffer(state: StateSpec, bytes?: Uint8Array): OrtTensor {
    const size = rounded(byteCount(state), ALIGNED);
    const buffer = this.gpu.createBuffer({ size, usage: STORAGE | COPY_SRC | COPY_DST });
    if (bytes?.length) {
      const padded = new Uint8Array(rounded(bytes.length, WORD));
      padded.set(bytes);
      this.gpu.queue.writeBuffer(buffer, 0, padded);
    }
    const made = this.ort.Tensor.fromGpuBuffer?.(buffer, { dataType: state.dtype, dims: concrete(state.shape) });
    if (!made) throw new Error("this ONNX Runtime has no tensors in GPU buffers");
    return made;
  }

  private copy(from: OrtTensor, to: OrtTensor, at: number, count: number): void {
    const encoder = this.gpu.createCommandEncoder();
    encoder.copyBufferToBuffer(from.gpuBuffer as GpuBuffer, 0, to.gpuBuffer as GpuBuffer, at, rounded(count, WORD));
    this.gpu.queue.submit([encoder.finish()]);
  }
}

const rounded = (bytes: number, to: number): number => Math.ceil(bytes / to) * to;
