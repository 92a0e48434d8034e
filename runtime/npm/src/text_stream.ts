/** Token ids to text as they come, never breaking a character. */

export interface TextStream {
  /** The text that this token completes; often "" in the middle of a character. */
  push(token: number): string;
  /** What is left at the end, with U+FFFD for a character that never got complete. */
  finish(): string;
}

const REPLACEMENT = "\ufffd"; // what a decoder writes for bytes that are not, or not yet, a character
const UNFINISHED = 3; // tokens that the beginning of a character can have
const PATIENCE = 16; // tokens: text that still ends in U+FFFD after these is damaged
const CONTEXT = 4; // tokens with text before a new one, by which it is decoded
const TEXTLESS = 16; // tokens in a row whose text is empty that are kept of many
const RECENT = 32; // tokens from before the stream that are looked at

/** Ids 0 to 255 are bytes of UTF-8; others have no text. */
export class ByteStream implements TextStream {
  private readonly decoder = new TextDecoder("utf-8", { ignoreBOM: true });

  constructor(after: readonly number[]) {
    for (const token of after) this.push(token);
  }

  push(token: number): string {
    return token >= 0 && token < 256 ? this.decoder.decode(Uint8Array.of(token), { stream: true }) : "";
  }

  finish(): string {
    return this.decoder.decode();
  }
}

/**
 * Text of new tokens = decode(context + new) - decode(context), for a context of the tokens just before.
 *
 * Tokens cannot be decoded alone: some decoders strip a leading space, others join pieces. A context begins and ends at a
 * character. What Python's `LibraryStream` does, in the same steps.
 */
export class LibraryStream implements TextStream {
  private readonly context: number[][]; // pieces that each begin at a character
  private before: string;
  private textless = 0; // pieces at the end of the context that added nothing
  private fresh: number[]; // the character that they begin belongs to this stream
  private given: number; // characters of their text that do not

  constructor(
    private readonly decode: (ids: readonly number[]) => string,
    private readonly silent: (token: number) => boolean,
    after: readonly number[],
  ) {
    const recent = after.filter((token) => !silent(token)).slice(-RECENT);
    const [begin, end] = this.wholeCharacters(recent);
    this.context = [recent.slice(begin, end)];
    this.before = decode(recent.slice(begin, end));
    this.fresh = recent.slice(end);
    this.given = this.text(this.fresh).replace(/\ufffd+$/, "").length;
  }

  push(token: number): string {
    if (this.silent(token)) return "";
    this.fresh.push(token);
    const text = this.text(this.fresh);
    if (!text.endsWith(REPLACEMENT)) return this.accept(this.fresh.length, text);
    return this.fresh.length <= PATIENCE ? "" : this.acceptDamaged(text);
  }

  finish(): string {
    return this.accept(this.fresh.length, this.text(this.fresh));
  }

  private text(fresh: readonly number[]): string {
    const whole = this.decode([...this.context.flat(), ...fresh]);
    // Else a run of bytes that is damaged now, and whose beginning was written already.
    return whole.startsWith(this.before) ? whole.slice(this.before.length) : this.decode(fresh);
  }

  /** The first `count` of the new tokens have this text, which is final. */
  private accept(count: number, text: string): string {
    const piece = this.fresh.splice(0, count);
    if (piece.length === 0) return text;
    const { given } = this;
    this.given = Math.max(0, given - text.length);
    this.context.push(piece);
    this.textless = text ? 0 : this.textless + 1;
    if (this.textless > TEXTLESS) this.context.splice(-1 - TEXTLESS / 2, 1);
    const rest = (): number => this.context.slice(1).reduce((sum, each) => sum + each.length, 0);
    while (text && rest() >= CONTEXT) this.context.shift();
    this.before = this.decode(this.context.flat());
    return text.slice(given);
  }

  /** As much of damaged text as no later token can change. */
  private acceptDamaged(text: string): string {
    for (let count = this.fresh.length - UNFINISHED; count > 0; count -= 1) {
      const settled = this.text(this.fresh.slice(0, count));
      if (settled && text.startsWith(settled)) return this.accept(count, settled);
    }
    return this.accept(this.fresh.length, text);
  }

  /** Begin and end of the longest part that is whole characters among those that end last; all, if none is. */
  private wholeCharacters(tokens: readonly number[]): [number, number] {
    for (let end = tokens.length; end > 0; end -= 1)
      for (let begin = 0; begin < end; begin += 1)
        if (!this.decode(tokens.slice(begin, end)).includes(REPLACEMENT)) return [begin, end];
    return tokens.length <= UNFINISHED ? [0, 0] : [0, tokens.length];
  }
}
