/** A value in a document, and the name of its place: what does not fit is refused by that name. */

import { EXPORT_AGAIN, fail } from "./errors.js";
import { Spelt, type Json, type JsonObject } from "./json.js";

export const MOST_INTEGER = Number.MAX_SAFE_INTEGER; // of anything counted; more is damage
const DIGEST = /^[0-9a-f]{64}$/;
const PLAIN = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$/;
const DEVICES = /^(?:con|prn|aux|nul|com[0-9]|lpt[0-9])$/; // of Windows

function isPlain(name: string): boolean {
  return PLAIN.test(name) && !DEVICES.test((name.split(".")[0] ?? "").toLowerCase());
}

export class Place {
  constructor(
    readonly value: Json,
    private readonly path: string = "",
    private readonly file: string = "manifest.json",
  ) {}

  refuse(expected: string): never {
    fail("bundle", `${this.file}: ${this.path || "the document"} must be ${expected}`, EXPORT_AGAIN);
  }

  private object(): JsonObject {
    const { value } = this;
    if (value === null || typeof value !== "object" || Array.isArray(value) || value instanceof Spelt)
      return this.refuse("an object");
    return value;
  }

  private joined(field: string): string {
    return this.path ? `${this.path}.${field}` : field;
  }

  /** A field that may be absent or null. */
  when(field: string): Place | undefined {
    const found = this.object()[field];
    return found === undefined || found === null ? undefined : new Place(found, this.joined(field), this.file);
  }

  at(field: string): Place {
    const found = this.object()[field];
    if (found === undefined)
      return fail("bundle", `${this.file}: ${this.path || "the document"} has no field "${field}"`, EXPORT_AGAIN);
    return new Place(found, this.joined(field), this.file);
  }

  entries(): [string, Place][] {
    return Object.entries(this.object()).map(([name, value]) => [name, new Place(value, this.joined(name), this.file)]);
  }

  list(most = Infinity): Place[] {
    if (!Array.isArray(this.value) || this.value.length > most) return this.refuse("a list");
    return this.value.map((item, index) => new Place(item, `${this.path}[${index}]`, this.file));
  }

  whole(least: number, most = MOST_INTEGER): number {
    if (typeof this.value !== "number" || this.value < least || this.value > most)
      return this.refuse(`a whole number of at least ${least}${most < MOST_INTEGER ? ` and at most ${most}` : ""}`);
    return this.value;
  }

  number(least: number, most: number): number {
    const found = this.value instanceof Spelt ? this.value.value : this.value;
    if (typeof found !== "number") return this.refuse("a number");
    if (!(found >= least && found <= most)) return this.refuse("a number within its range");
    return found;
  }

  words(): string {
    if (typeof this.value !== "string" || !this.value) return this.refuse("a string that is not empty");
    return this.value;
  }

  choice<T extends string>(...of: readonly T[]): T {
    const found = of.find((each) => each === this.value);
    return found ?? this.refuse(`one of ${of.join(", ")}`);
  }

  plain(): string {
    if (typeof this.value !== "string" || !isPlain(this.value)) return this.refuse("a plain name");
    return this.value;
  }

  inside(): string {
    if (typeof this.value !== "string" || !this.value.split("/").every(isPlain))
      return this.refuse("a relative path of plain names that stays inside the bundle");
    return this.value;
  }

  digest(): string {
    if (typeof this.value !== "string" || !DIGEST.test(this.value)) return this.refuse("a SHA-256 digest");
    return this.value;
  }
}
