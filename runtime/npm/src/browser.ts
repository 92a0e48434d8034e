/** Titans bundles in browsers, and wherever there are no files: everything of `index` but paths. */

import { fail } from "./errors.js";
import { loadFrom, type LoadOptions, type Model } from "./model.js";
import type { Provider } from "./ort.js";
import { UrlSource, type Source } from "./source.js";

export { TitansError, type Code } from "./errors.js";
export type { ChatOptions, Message } from "./chat.js";
export type { GenerateOptions, Piece } from "./generate.js";
export type { Manifest } from "./manifest.js";
export { Model, type LoadOptions } from "./model.js";
export type { Provider } from "./ort.js";
export type { SamplingOptions } from "./sampling.js";
export { Mark, Session, type Fed } from "./session.js";
export { MemorySource, UrlSource, type Source } from "./source.js";
export type { Tokenizer } from "./tokenizer.js";

/** Loads a bundle from a URL, relative to the page, or from another source. Runs on "wasm" where nothing else is said. */
export async function load(bundle: string | URL | Source, options: LoadOptions = {}): Promise<Model> {
  const source = typeof bundle === "string" || bundle instanceof URL ? new UrlSource(bundle) : bundle;
  const provider: Provider = options.provider ?? "wasm";
  if (provider === "cpu") return fail("provider", 'provider "cpu" is for Node', 'use "wasm" or "webgpu"');
  return loadFrom(source, provider, options);
}
