/** What Node and browsers do differently: hashing and inflating. */

/** The SHA-256 of bytes, as 64 hexadecimal digits. */
export async function sha256(data: Uint8Array): Promise<string> {
  const subtle = globalThis.crypto?.subtle;
  if (subtle) return hex(new Uint8Array(await subtle.digest("SHA-256", data as Uint8Array<ArrayBuffer>)));
  if (typeof process !== "undefined") {
    const { createHash } = await import("node:crypto"); // Node 18
    return createHash("sha256").update(data).digest("hex");
  }
  throw new Error("this page is not served from https or localhost, and so has no SHA-256");
}

function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Decompresses zlib's format. Returns undefined for damaged data, and where more than `size` bytes come out or fewer. */
export async function inflate(data: Uint8Array, size: number): Promise<Uint8Array | undefined> {
  const made = new Uint8Array(size);
  let at = 0;
  try {
    const source = new Blob([data as Uint8Array<ArrayBuffer>]).stream().pipeThrough(new DecompressionStream("deflate"));
    const reader = source.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return at === size ? made : undefined;
      if (at + value.length > size) {
        await reader.cancel();
        return undefined;
      }
      made.set(value, at);
      at += value.length;
    }
  } catch {
    return undefined;
  }
}
