/**
 * A conversation as ids, by the model's chat template.
 *
 * What a user wrote is text, whatever it spells: control tokens in it wear secret names while the template is rendered, and
 * the template's own get other ones afterwards. `@huggingface/jinja` renders; it has no access to anything but what it is
 * given, but it does not bound its work. Python does.
 */

import { Template } from "@huggingface/jinja";
import { fail, said } from "./errors.js";
import type { Tokenizer } from "./tokenizer.js";

export interface Message {
  readonly role: string;
  readonly content?: unknown;
  readonly [field: string]: unknown;
}

export interface ChatOptions {
  /** End with what an answer begins with; true where nothing is said. */
  addGenerationPrompt?: boolean;
}

const ROLE = /^[A-Za-z][A-Za-z0-9_-]{0,39}$/;
const MOST_CHARACTERS = 2 ** 18;
const EXAMPLE = '[{role: "user", content: "Hello"}]';

/** The ids of messages. Throws a TitansError of "input" or "text". */
export function templateIds(
  template: string,
  tokens: Readonly<Record<string, string>>,
  tokenizer: Tokenizer,
  messages: string | Message | readonly Message[],
  options: ChatOptions,
): number[] {
  if (template.length > MOST_CHARACTERS) fail("bundle", "the chat template is longer than any", "export the bundle with another one");
  const list = typeof messages === "string" ? [{ role: "user", content: messages }] : Array.isArray(messages) ? messages : [messages];
  if (!list.length) fail("input", "there are no messages", `pass a text, or messages such as ${EXAMPLE}`);
  const names = new Map(tokenizer.control.map((name, number) => [name, `${number}-${Math.random().toString(36).slice(2)}-${number}`]));
  const pattern = tokenizer.control.length
    ? new RegExp(tokenizer.control.map((name) => name.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&")).join("|"), "g")
    : undefined;
  const hidden = (value: unknown): unknown => {
    if (typeof value === "string") return pattern ? value.replace(pattern, (name) => names.get(name) ?? name) : value;
    if (Array.isArray(value)) return value.map(hidden);
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).filter(([, each]) => each != null).map(([name, each]) => [name, hidden(each)]));
    return value;
  };
  for (const [number, message] of (list as readonly Message[]).entries())
    if (typeof message?.role !== "string" || !ROLE.test(message.role))
      fail("input", `message ${number} has the role ${JSON.stringify(message?.role)}`, 'use a word, such as "user" or "assistant"');
  let text: string;
  try {
    text = new Template(template).render({
      ...tokens,
      messages: (list as readonly Message[]).map(hidden),
      tools: null,
      documents: null,
      add_generation_prompt: options.addGenerationPrompt ?? true,
    });
  } catch (error) {
    return fail("text", `the chat template does not take these messages (${said(error)})`, `pass messages such as ${EXAMPLE}`);
  }
  if (pattern) text = text.replace(pattern, (name) => tokenizer.secret(name));
  for (const [name, secret] of names) text = text.replaceAll(secret, name);
  return tokenizer.encodeSecret(text);
}
