/**
 * JSON that keeps whole numbers and others apart, as Python's does, because checksums are taken over how it spells them.
 */

/** A number with a point or an exponent, or one that no double holds exactly. */
export class Spelt {
  constructor(
    readonly text: string,
    readonly value: number,
    readonly whole: boolean,
  ) {}
}

export type Json = null | boolean | number | string | Spelt | Json[] | { [name: string]: Json };
export type JsonObject = { [name: string]: Json };

const DEEPEST = 128; // the deepest that is written has six levels
const SPACE = /[ \t\n\r]*/y;
const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;
// A string as JSON has it; what it stands for is JSON.parse's business.
const STRING = /"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"/y;

/** Parses one document. Throws SyntaxError, also for a name that appears twice and for text that UTF-8 cannot express. */
export function parseJson(text: string): Json {
  let at = 0;
  const match = (pattern: RegExp): string | undefined => {
    pattern.lastIndex = at;
    const found = pattern.exec(text)?.[0];
    if (found !== undefined) at += found.length;
    return found;
  };
  const bad = (): never => {
    throw new SyntaxError(`not valid JSON at character ${at}`);
  };
  const expect = (character: string): void => {
    match(SPACE);
    if (text[at] !== character) bad();
    at += 1;
  };
  const string = (): string => {
    const value = JSON.parse(match(STRING) ?? bad()) as string;
    if (/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/.test(value))
      throw new SyntaxError("it has text that UTF-8 cannot express");
    return value;
  };
  const items = (end: string, item: () => void): void => {
    at += 1;
    match(SPACE);
    if (text[at] === end) {
      at += 1;
      return;
    }
    for (;;) {
      item();
      match(SPACE);
      if (text[at] === end) {
        at += 1;
        return;
      }
      expect(",");
    }
  };
  const value = (depth: number): Json => {
    if (depth > DEEPEST) throw new SyntaxError("it is nested too deeply");
    match(SPACE);
    const first = text[at];
    if (first === "{") {
      const made: JsonObject = Object.create(null) as JsonObject;
      items("}", () => {
        match(SPACE);
        const name = string();
        if (name in made) throw new SyntaxError(`'${name.slice(0, 80)}' appears twice`);
        expect(":");
        made[name] = value(depth + 1);
      });
      return made;
    }
    if (first === "[") {
      const made: Json[] = [];
      items("]", () => made.push(value(depth + 1)));
      return made;
    }
    if (first === '"') return string();
    for (const [word, meaning] of [["true", true], ["false", false], ["null", null]] as const)
      if (text.startsWith(word, at)) {
        at += word.length;
        return meaning;
      }
    const digits = match(NUMBER) ?? bad();
    const number = Number(digits);
    if (/[.eE]/.test(digits)) return new Spelt(digits, number, false);
    return Number.isSafeInteger(number) ? number : new Spelt(digits, number, true);
  };
  const found = value(0);
  match(SPACE);
  if (at !== text.length) bad();
  return found;
}

/** A double as Python's `repr` spells it. */
export function floatText(value: number): string {
  if (Object.is(value, -0)) return "-0.0";
  if (value === 0) return "0.0";
  const [mantissa, power] = value.toExponential().split("e") as [string, string];
  const exponent = Number(power);
  if (exponent < -4 || exponent >= 16)
    return `${mantissa}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
  const plain = String(value); // the fewest digits that say it, in both languages
  return plain.includes(".") ? plain : `${plain}.0`;
}

/** Text of a document as Python's `json.dumps(..., sort_keys=True)` writes it; compact: without spaces. */
export function sortedJson(value: Json, compact: boolean): string {
  const comma = compact ? "," : ", ";
  if (value === null || typeof value === "boolean") return String(value);
  if (typeof value === "number") return String(value);
  if (typeof value === "string")
    return JSON.stringify(value).replace(/[\u007f-\uffff]/g, (unit) =>
      unit === "\u007f" ? unit : `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`,
    );
  if (value instanceof Spelt) return value.whole ? value.text : floatText(value.value);
  if (Array.isArray(value)) return `[${value.map((item) => sortedJson(item, compact)).join(comma)}]`;
  const names = Object.keys(value).sort(byCodePoint);
  const entries = names.map((name) => `${sortedJson(name, compact)}${compact ? ":" : ": "}${sortedJson(value[name] as Json, compact)}`);
  return `{${entries.join(comma)}}`;
}

/** The order of Python's strings; JavaScript's own differs beyond U+FFFF. */
function byCodePoint(a: string, b: string): number {
  const left = Array.from(a, (c) => c.codePointAt(0) ?? 0);
  const right = Array.from(b, (c) => c.codePointAt(0) ?? 0);
  for (let i = 0; i < Math.min(left.length, right.length); i += 1)
    if (left[i] !== right[i]) return (left[i] ?? 0) - (right[i] ?? 0);
  return left.length - right.length;
}
