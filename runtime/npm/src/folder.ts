/** Files of Node: a bundle's folder, and saved sessions that are all old or all new. */

import { createHash, randomBytes } from "node:crypto";
import { open, readFile, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { SAVE_AGAIN, fail, said } from "./errors.js";
import type { Source } from "./source.js";

const PIECE = 1 << 22;

/** A bundle's folder. */
export class FolderSource implements Source {
  constructor(readonly name: string) {}

  path(file: string): string {
    return join(this.name, file);
  }

  async read(file: string): Promise<Uint8Array> {
    return new Uint8Array(await readFile(this.path(file)));
  }

  async digest(file: string): Promise<{ bytes: number; sha256: string }> {
    const opened = await open(this.path(file));
    try {
      const hash = createHash("sha256");
      const buffer = new Uint8Array(PIECE);
      let bytes = 0;
      for (;;) {
        const { bytesRead } = await opened.read(buffer, 0, PIECE, bytes);
        if (!bytesRead) return { bytes, sha256: hash.digest("hex") };
        hash.update(buffer.subarray(0, bytesRead));
        bytes += bytesRead;
      }
    } finally {
      await opened.close();
    }
  }
}

/** Writes a file that is whole or not there. */
export async function writeWhole(path: string, data: Uint8Array): Promise<void> {
  const beside = join(dirname(path), `.${basename(path)}.${randomBytes(6).toString("hex")}`);
  try {
    const opened = await open(beside, "wx");
    try {
      await opened.writeFile(data);
      await opened.sync();
    } finally {
      await opened.close();
    }
    await rename(beside, path);
  } catch (error) {
    await rm(beside, { force: true });
    fail("state", `${path} cannot be written (${said(error)})`, "give a file in a folder that you may write to");
  }
}

/** A saved session's bytes; refused unread if it is far larger than one of the model can be. */
export async function readState(path: string, most: number): Promise<Uint8Array> {
  try {
    const opened = await open(path);
    try {
      const found = await opened.stat();
      if (!found.isFile()) return fail("state", `${path} is not a file`, "give one that a session saved");
      if (found.size > most) return fail("state", `${path} is larger than a state of this model can be`, "give one that it saved");
      return new Uint8Array(await opened.readFile());
    } finally {
      await opened.close();
    }
  } catch (error) {
    if (error instanceof Error && error.name === "TitansError") throw error;
    return fail("state", `${path} cannot be read (${said(error)})`, SAVE_AGAIN);
  }
}
