/** Where the files of a bundle are. Knows how they are read and hashed. Does not know what is in them. */

import { COPY_AGAIN, fail, said } from "./errors.js";
import type { DataFile } from "./manifest.js";
import { sha256 } from "./platform.js";

/** A place with files. Give one of your own to read a bundle from an archive, a database or the network. */
export interface Source {
  /** What to call it in errors. */
  readonly name: string;
  /** A file's bytes. Rejects where it is missing. */
  read(file: string): Promise<Uint8Array>;
  /** Size and SHA-256 of a file that need not be in memory at once. */
  digest?(file: string): Promise<{ bytes: number; sha256: string }>;
  /** The file's path, where ONNX Runtime can open it itself and map the weights beside it. */
  path?(file: string): string;
}

/** A bundle below a URL. */
export class UrlSource implements Source {
  readonly name: string;
  private readonly base: URL;

  constructor(url: string | URL, private readonly init?: RequestInit) {
    this.base = new URL(url, globalThis.location?.href);
    if (!this.base.pathname.endsWith("/")) this.base.pathname += "/";
    this.name = this.base.href.replace(/\/$/, "");
  }

  async read(file: string): Promise<Uint8Array> {
    const answer = await fetch(new URL(file, this.base), this.init);
    if (!answer.ok) throw new Error(`the server says ${answer.status}`);
    return new Uint8Array(await answer.arrayBuffer());
  }
}

/** A bundle in memory, by the names of its files. */
export class MemorySource implements Source {
  readonly name = "the bundle";

  constructor(private readonly files: ReadonlyMap<string, Uint8Array>) {}

  read(file: string): Promise<Uint8Array> {
    const found = this.files.get(file);
    return found ? Promise.resolve(found) : Promise.reject(new Error("it is not among the files"));
  }
}

/** A file's bytes. */
export async function readFile(source: Source, file: string): Promise<Uint8Array> {
  try {
    return await source.read(file);
  } catch (error) {
    return fail("bundle", `${source.name}/${file} cannot be read (${said(error)})`, "check the place, or copy the bundle again");
  }
}

/** A file's bytes, which are those that were exported. */
export async function readChecked(source: Source, file: DataFile): Promise<Uint8Array> {
  const data = await readFile(source, file.file);
  check(source, file, data.length, await sha256(data));
  return data;
}

/** The same without keeping the bytes. */
export async function checkFile(source: Source, file: DataFile): Promise<void> {
  if (!source.digest) {
    await readChecked(source, file);
    return;
  }
  try {
    const { bytes, sha256: digest } = await source.digest(file.file);
    check(source, file, bytes, digest);
  } catch (error) {
    if (error instanceof Error && error.name === "TitansError") throw error;
    fail("bundle", `${source.name}/${file.file} cannot be read (${said(error)})`, "copy the bundle again");
  }
}

function check(source: Source, file: DataFile, bytes: number, digest: string): void {
  const path = `${source.name}/${file.file}`;
  if (file.bytes !== undefined && bytes !== file.bytes)
    fail("bundle", `${path} has ${bytes} bytes, the manifest says ${file.bytes}`, COPY_AGAIN);
  if (digest !== file.sha256)
    fail("bundle", `${path} is not the file that was exported (sha256 ${digest.slice(0, 12)}..., expected ${file.sha256.slice(0, 12)}...)`, COPY_AGAIN);
}
