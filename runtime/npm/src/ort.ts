/**
 * The part of ONNX Runtime's JavaScript interface that is used here, in its own words.
 *
 * `onnxruntime-node` and `onnxruntime-web` both have it. Which one is loaded is the caller's choice, or the platform's.
 */

import { fail, said } from "./errors.js";

export interface OrtTensor {
  readonly data: unknown;
  readonly dims: readonly number[];
  readonly location: string;
  readonly gpuBuffer: unknown;
  dispose(): void;
}

export interface OrtSession {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  run(feeds: Record<string, OrtTensor>, fetches: readonly string[]): Promise<Record<string, OrtTensor>>;
  release(): Promise<void>;
}

export interface Ort {
  readonly InferenceSession: {
    create(model: Uint8Array | string, options?: Record<string, unknown>): Promise<OrtSession>;
  };
  readonly Tensor: {
    new (type: string, data: unknown, dims: readonly number[]): OrtTensor;
    fromGpuBuffer?(buffer: unknown, options: { dataType: string; dims: readonly number[] }): OrtTensor;
  };
  readonly env: {
    wasm?: { numThreads?: number; wasmPaths?: unknown };
    webgpu?: { device?: unknown };
    logLevel?: string;
  };
}

/** "cpu" is onnxruntime-node; "wasm" and "webgpu" are onnxruntime-web. */
export type Provider = "cpu" | "wasm" | "webgpu";
export const PROVIDERS: readonly Provider[] = ["cpu", "wasm", "webgpu"];

/** The package of a provider. */
export async function importOrt(provider: Provider): Promise<Ort> {
  try {
    // Spelt out, because bundlers look for these words.
    const found: unknown =
      provider === "cpu"
        ? await import("onnxruntime-node")
        : provider === "wasm"
          ? await import("onnxruntime-web/wasm")
          : await import("onnxruntime-web/webgpu");
    const module = found as { default?: Ort } & Ort;
    return module.InferenceSession ? module : (module.default as Ort);
  } catch (error) {
    const name = provider === "cpu" ? "onnxruntime-node" : "onnxruntime-web";
    return fail("provider", `${name} cannot be imported (${said(error)})`, `run: npm install ${name}`);
  }
}
