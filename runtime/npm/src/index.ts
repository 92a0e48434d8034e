/** Titans bundles in Node. */

import { stat } from "node:fs/promises";
import { fail } from "./errors.js";
import { FolderSource } from "./folder.js";
import { loadFrom, type LoadOptions, type Model } from "./model.js";
import { UrlSource, type Source } from "./source.js";

export * from "./browser.js";
export { FolderSource } from "./folder.js";

/** Loads a bundle from its folder, from a URL, or from another source. Runs on "cpu" where nothing else is said. */
export async function load(bundle: string | URL | Source, options: LoadOptions = {}): Promise<Model> {
  return loadFrom(await sourceOf(bundle), options.provider ?? "cpu", options);
}

async function sourceOf(bundle: string | URL | Source): Promise<Source> {
  if (bundle instanceof URL || (typeof bundle === "string" && /^https?:\/\//.test(bundle))) return new UrlSource(bundle);
  if (typeof bundle !== "string") return bundle;
  const found = await stat(bundle).catch(() => undefined);
  if (!found?.isDirectory()) return fail("bundle", `${bundle} is not a bundle directory`, "give the directory that `titans export` wrote");
  return new FolderSource(bundle);
}
