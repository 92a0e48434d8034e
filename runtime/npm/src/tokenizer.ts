/**
 * Text to ids and back. Models of bytes need nothing; a `tokenizer.json` is read by `@huggingface/tokenizers`.
 *
 * What a file says about truncation, padding and a post-processor never acts. What a text says is text: control tokens
 * that are written out in it are not read as such. For that the file is read a second time with names for them that nobody
 * can type.
 */

import { EXPORT_AGAIN, TitansError, fail, said } from "./errors.js";
import type { Manifest } from "./manifest.js";
import { readChecked, type Source } from "./source.js";
import { ByteStream, LibraryStream, type TextStream } from "./text_stream.js";

export interface Tokenizer {
  /** The ids of a text. `special`: control tokens that are written out in it are read as what they are. */
  encode(text: string, options?: { special?: boolean }): number[];
  /** The text of ids, all at once. Special tokens have none. */
  decode(ids: readonly number[]): string;
  /** A decoder for tokens that follow those of `after`, whose text it does not give again. */
  stream(after: readonly number[]): TextStream;
  /** Whether decoding leaves an id out: a special token, or one that the tokenizer does not know. */
  silent(token: number): boolean;
  /** How a special token is written; "" for others. */
  written(token: number): string;
  /** The control tokens as they are written. */
  readonly control: readonly string[];
  /** The ids of a text whose control tokens were given their secret names. @internal */
  encodeSecret(text: string): number[];
  /** A control token's secret name. @internal */
  secret(name: string): string;
}

/** Ids 0 to 255 are the bytes of UTF-8. */
export class ByteTokenizer implements Tokenizer {
  readonly control: readonly string[] = [];

  encode(text: string): number[] {
    return Array.from(new TextEncoder().encode(wellFormed(text)));
  }
  encodeSecret(text: string): number[] {
    return this.encode(text);
  }
  secret(name: string): string {
    return name;
  }
  decode(ids: readonly number[]): string {
    const bytes = Uint8Array.from(ids.filter((id) => !this.silent(id)));
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
  }
  stream(after: readonly number[]): TextStream {
    return new ByteStream(after);
  }
  silent(token: number): boolean {
    return !(token >= 0 && token < 256);
  }
  written(): string {
    return "";
  }
}

/** Throws for half a surrogate pair, which UTF-8 cannot express. */
function wellFormed(text: string): string {
  const at = text.search(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/);
  if (at >= 0) fail("text", `the text has half a character at ${at}, which UTF-8 cannot express`, "remove it");
  return text;
}

// What is used of @huggingface/tokenizers.
interface LibraryTokenizerClass {
  new (tokenizer: object, config: object): {
    encode(text: string, options: { add_special_tokens: boolean }): { ids: number[] };
    decode(ids: number[], options: { skip_special_tokens: boolean; clean_up_tokenization_spaces: boolean }): string;
    id_to_token(id: number): string | undefined;
  };
}
interface AddedToken {
  id: number;
  content: string;
  special?: boolean;
}
interface TokenizerDocument {
  model: { end_of_word_suffix?: string | null; vocab?: Record<string, number> | [string, number][]; unk_token?: string | null; unk_id?: number | null };
  added_tokens?: AddedToken[];
  [part: string]: unknown;
}

export class LibraryTokenizer implements Tokenizer {
  readonly control: readonly string[];
  private readonly special: ReadonlyMap<number, string>;
  private readonly secrets: ReadonlyMap<string, string>;
  private readonly plain: InstanceType<LibraryTokenizerClass>;
  private readonly marked: InstanceType<LibraryTokenizerClass>;

  constructor(
    library: LibraryTokenizerClass,
    text: string,
    ends: ReadonlySet<number>,
    private readonly vocabulary: number,
  ) {
    const document = JSON.parse(text) as TokenizerDocument;
    for (const part of ["truncation", "padding", "post_processor"]) document[part] = null;
    if (document.model.end_of_word_suffix)
      fail("bundle", "the tokenizer marks the ends of words, which @huggingface/tokenizers reads otherwise", "run this bundle in Python or C");
    const added = document.added_tokens ?? [];
    this.special = new Map(added.filter((token) => token.special).map((token) => [token.id, token.content]));
    const controls = added.filter((token) => token.special || ends.has(token.id));
    this.control = controls.map((token) => token.content).sort((a, b) => b.length - a.length);
    this.secrets = new Map(this.control.map((name, number) => [name, `${random()}-${number}`]));
    this.plain = new library(document, {});
    this.marked = this.control.length ? new library(this.renamed(document), {}) : this.plain;
  }

  encode(text: string, options: { special?: boolean } = {}): number[] {
    return this.within((options.special ? this.plain : this.marked).encode(wellFormed(text), { add_special_tokens: false }).ids);
  }

  encodeSecret(text: string): number[] {
    return this.within(this.marked.encode(wellFormed(text), { add_special_tokens: false }).ids);
  }

  secret(name: string): string {
    return this.secrets.get(name) ?? name;
  }

  decode(ids: readonly number[]): string {
    const known = ids.filter((id) => !this.silent(id));
    // The library has no text for no ids.
    return known.length ? this.plain.decode(known, { skip_special_tokens: true, clean_up_tokenization_spaces: false }) : "";
  }

  stream(after: readonly number[]): TextStream {
    return new LibraryStream(
      (ids) => this.decode(ids),
      (token) => this.silent(token),
      after,
    );
  }

  silent(token: number): boolean {
    return this.special.has(token) || this.plain.id_to_token(token) === undefined;
  }

  written(token: number): string {
    return this.special.get(token) ?? "";
  }

  private within(ids: number[]): number[] {
    for (const id of ids)
      if (id >= this.vocabulary)
        fail("text", `the text has token ${id}, and the model has ${this.vocabulary} ids`, "leave it out, or export with the tokenizer that the model was trained with");
    return ids;
  }

  /** The document with secret names for its control tokens. What stands for the unknown keeps its own. */
  private renamed(document: TokenizerDocument): TokenizerDocument {
    const { model } = document;
    const { vocab, unk_id: unkId } = model;
    const unknown = Array.isArray(vocab) && unkId != null ? vocab[unkId]?.[0] : model.unk_token;
    const name = (token: string): string => (token === unknown ? token : this.secret(token));
    const renamed = Array.isArray(vocab)
      ? vocab.map(([token, score]): [string, number] => [name(token), score])
      : vocab && Object.fromEntries(Object.entries(vocab).map(([token, id]) => [name(token), id]));
    return {
      ...document,
      model: { ...model, ...(renamed ? { vocab: renamed } : {}) },
      added_tokens: (document.added_tokens ?? []).map((token) => ({ ...token, content: name(token.content) })),
    };
  }
}

function random(): string {
  const words = globalThis.crypto?.getRandomValues(new Uint32Array(4)) ?? Array.from({ length: 4 }, () => Math.random() * 2 ** 32);
  return Array.from(words, (word) => Math.floor(word).toString(16).padStart(8, "0")).join("");
}

/** The tokenizer of a bundle; undefined for a model that has none. */
export async function openTokenizer(source: Source, manifest: Manifest): Promise<Tokenizer | undefined> {
  const { tokenizer } = manifest;
  if (!tokenizer) return undefined;
  if (tokenizer.kind === "byte") return new ByteTokenizer();
  let library: LibraryTokenizerClass;
  try {
    library = (await import("@huggingface/tokenizers")).Tokenizer as unknown as LibraryTokenizerClass;
  } catch (error) {
    return fail("provider", `this bundle's text needs @huggingface/tokenizers (${said(error)})`, "run: npm install @huggingface/tokenizers");
  }
  const data = await readChecked(source, tokenizer);
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(data);
    return new LibraryTokenizer(library, text, new Set([...manifest.eos, ...manifest.stop]), manifest.outputs);
  } catch (error) {
    if (error instanceof TitansError) throw error;
    return fail("bundle", `${tokenizer.file} is not a tokenizer (${said(error)})`, EXPORT_AGAIN);
  }
}
