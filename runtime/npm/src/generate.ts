/** Text as it is generated: tokens are chosen, consumed and written one by one, until something ends them. */

import { fail } from "./errors.js";
import { Sampler, type SamplingOptions } from "./sampling.js";
import type { Session } from "./session.js";
import { StopFilter } from "./stopping.js";

export interface GenerateOptions extends SamplingOptions {
  maxNewTokens?: number | undefined;
  /** Strings that end the text; they are not part of it. */
  stop?: string | readonly string[] | undefined;
  /** Ids that end the text besides the model's own. */
  stopIds?: readonly number[] | undefined;
  /** The model's own ids do not end it. */
  ignoreEos?: boolean | undefined;
  /** Ends it between two tokens: what was consumed until then stays. */
  signal?: AbortSignal | undefined;
}

/** A token and the text that is certain with it; at the end, a piece with the rest of the text and why it ended. */
export interface Piece {
  /** The session has consumed it; undefined in the last piece. */
  readonly token: number | undefined;
  readonly text: string;
  readonly ended: "eos" | "stop" | "length" | undefined;
}

const NEW_TOKENS = 64;
const PIECE = 1024; // tokens of a prompt that are one call

/** See `Session.generate`. */
export async function* generate(
  session: Session,
  prompt: string | ArrayLike<number> | undefined,
  options: GenerateOptions,
): AsyncGenerator<Piece, void, void> {
  const { model } = session;
  const { manifest } = model;
  if (manifest.vectors) fail("input", "a model of vectors has no tokens to generate", "feed its predictions back to it");
  session.checkSound();
  const ids = prompt === undefined ? [] : model.idsOf(prompt);
  if (prompt === undefined && !session.last) fail("input", "there is nothing to go on from", "pass a prompt, or feed the session first");
  const most = options.maxNewTokens ?? manifest.generation.maxNewTokens ?? NEW_TOKENS;
  if (!Number.isInteger(most) || most < 0) fail("input", `maxNewTokens is ${most}`, "use 0 or above, such as 64");
  model.checkIds(options.stopIds ?? [], "stop id");
  const eos = new Set(options.ignoreEos ? [] : manifest.eos);
  const stopIds = new Set([...(options.stopIds ?? []), ...(options.ignoreEos ? [] : manifest.stop)]);
  const stops = options.stop === undefined ? [] : typeof options.stop === "string" ? [options.stop] : options.stop;
  if (stops.length) model.textual();
  const writer = new Transcript(session, new StopFilter(stops), new Set([...eos, ...stopIds]));
  const sampler = new Sampler(options, manifest.generation, manifest.outputs);
  sampler.observe(ids);
  await readPrompt(session, ids, options.signal);
  for (let count = 0; count < most; count += 1) {
    options.signal?.throwIfAborted();
    const { last } = session;
    if (!last) return fail("input", "the session was reset while it generated", "start again with a prompt");
    const token = sampler.choose(last);
    const before = session.recent;
    await session.feed([token]);
    const text = writer.push(token, before);
    yield { token, text, ended: undefined };
    const ended = eos.has(token) ? "eos" : stopIds.has(token) || writer.stopped ? "stop" : undefined;
    if (ended) {
      yield { token: undefined, text: writer.finish(), ended };
      return;
    }
  }
  yield { token: undefined, text: writer.finish(), ended: "length" };
}

/** In pieces that end where a chunk ends: the calls are those of the prompt as one piece. */
async function readPrompt(session: Session, ids: readonly number[], signal: AbortSignal | undefined): Promise<void> {
  const { chunk } = session.model;
  for (let at = 0; at < ids.length; ) {
    signal?.throwIfAborted();
    const piece = Math.max(Math.floor(PIECE / chunk), 1) * chunk - (session.position % chunk);
    await session.feed(ids.slice(at, at + piece));
    at += piece;
  }
}

/** The text of generated tokens, up to where it ends. */
class Transcript {
  private stream: { push(token: number): string; finish(): string } | undefined;

  constructor(
    private readonly session: Session,
    private readonly stops: StopFilter,
    private readonly ends: ReadonlySet<number>,
  ) {}

  get stopped(): boolean {
    return this.stops.stopped;
  }

  push(token: number, before: readonly number[]): string {
    const { tokenizer } = this.session.model;
    if (!tokenizer) return "";
    this.stream ??= tokenizer.stream(before);
    if (this.ends.has(token) || tokenizer.silent(token)) return this.stops.push(tokenizer.written(token), true);
    return this.stops.push(this.stream.push(token));
  }

  finish(): string {
    return this.stops.push(this.stream?.finish() ?? "") + this.stops.finish();
  }
}
