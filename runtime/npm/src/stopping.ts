/** Where streamed text ends: at stop strings, found even when they arrive in pieces or have special tokens in them. */

import { fail } from "./errors.js";

export class StopFilter {
  private held = "";
  private hidden: [number, number][] = []; // parts of what is held that are not text
  stopped = false;

  constructor(private readonly stops: readonly string[]) {
    for (const stop of stops) if (typeof stop !== "string" || !stop) fail("input", "a stop string is empty or not a string", "leave it out");
  }

  /** The text that is now certain to come before any stop string. `hidden`: a special token, which is not passed on. */
  push(piece: string, hidden = false): string {
    if (this.stopped) return "";
    const text = this.held + piece;
    if (hidden && piece) this.hidden.push([this.held.length, text.length]);
    const found = this.stops.map((stop) => text.indexOf(stop)).filter((at) => at >= 0);
    if (found.length) {
      this.stopped = true;
      return this.pass(text, Math.min(...found), "");
    }
    const keep = this.undecided(text);
    return this.pass(text, text.length - keep, text.slice(text.length - keep));
  }

  /** What was held back, once nothing more comes. */
  finish(): string {
    return this.pass(this.held, this.held.length, "");
  }

  private pass(text: string, end: number, held: string): string {
    let shown = "";
    let at = 0;
    for (const [begin, stop] of this.hidden) {
      shown += text.slice(at, Math.max(at, Math.min(begin, end)));
      at = Math.min(stop, end);
    }
    this.hidden = this.hidden
      .filter(([, stop]) => stop > end)
      .map(([begin, stop]) => [Math.max(begin - end, 0), stop - end]);
    this.held = held;
    return shown + text.slice(at, end);
  }

  /** Length of the longest end of `text` that a stop string begins with. */
  private undecided(text: string): number {
    const longest = Math.max(1, ...this.stops.map((stop) => stop.length)) - 1;
    for (let length = Math.min(longest, text.length); length > 0; length -= 1)
      if (this.stops.some((stop) => stop.startsWith(text.slice(text.length - length)))) return length;
    return 0;
  }
}
