/** From logits to a token, in a fixed order: repetition penalty, temperature, top-k, top-p, min-p, draw. */

import { fail } from "./errors.js";
import type { GenerationDefaults } from "./manifest.js";
import { Random, anySeed } from "./random.js";

/** What is left out is the model's own default. */
export interface SamplingOptions {
  /** Divides the logits; 0 takes the most likely token, ties to the lowest id. */
  temperature?: number | undefined;
  /** The k likeliest; 0: all. */
  topK?: number | undefined;
  /** The likeliest tokens that make up this probability; 1: all. */
  topP?: number | undefined;
  /** At least this fraction of the likeliest token's probability; 0: all. */
  minP?: number | undefined;
  /** Of tokens already seen; 1: none. */
  repetitionPenalty?: number | undefined;
  /** Makes the draws repeatable, and equal to Python's. */
  seed?: number | bigint | undefined;
}

interface Chosen {
  temperature: number;
  topK: number;
  topP: number;
  minP: number;
  repetitionPenalty: number;
}

function checked(name: string, value: number, least: number, most: number, advice: string): number {
  if (typeof value !== "number" || !(value >= least && value <= most)) fail("input", `${name} is ${String(value)}`, `use ${advice}`);
  return value;
}

export class Sampler {
  private readonly options: Chosen;
  private readonly random: Random;
  private readonly seen: Uint8Array;
  private readonly scores: Float64Array;

  constructor(options: SamplingOptions, defaults: GenerationDefaults, vocabulary: number) {
    const { temperature, topK, topP, minP, repetitionPenalty, seed } = options;
    const most = Number.MAX_VALUE;
    this.options = {
      temperature: checked("temperature", temperature ?? defaults.temperature ?? 1, 0, most, "0 (greedy) or above, such as 0.8"),
      topK: checked("topK", topK ?? defaults.topK ?? 0, 0, 2 ** 31, "0 for all, or a whole number above"),
      topP: checked("topP", topP ?? defaults.topP ?? 1, 1e-9, 1, "a value above 0 and at most 1, such as 0.95"),
      minP: checked("minP", minP ?? defaults.minP ?? 0, 0, 1, "a value from 0 to 1, such as 0.05"),
      repetitionPenalty: checked("repetitionPenalty", repetitionPenalty ?? defaults.repetitionPenalty ?? 1, 1e-3, most, "1 for none, or above, such as 1.1"),
    };
    if (!Number.isInteger(this.options.topK)) fail("input", `topK is ${this.options.topK}`, "use a whole number");
    const whole = typeof seed === "bigint" || seed === undefined || Number.isSafeInteger(seed);
    const number = whole ? (seed === undefined ? anySeed() : BigInt(seed)) : -1n;
    if (number < 0n || number >= 1n << 64n) fail("input", `seed is ${String(seed)}`, "use a whole number from 0");
    this.random = new Random(number);
    this.seen = new Uint8Array(vocabulary);
    this.scores = new Float64Array(vocabulary);
  }

  /** Counts tokens as seen, for the repetition penalty. */
  observe(tokens: Iterable<number>): void {
    for (const token of tokens) this.seen[token] = 1;
  }

  /** The next token; it counts as seen from then on. */
  choose(logits: Float32Array): number {
    const { repetitionPenalty: penalty, temperature } = this.options;
    let best = 0;
    for (let i = 0; i < this.scores.length; i += 1) {
      let score = logits[i] as number;
      if (penalty !== 1 && this.seen[i]) score = score > 0 ? score / penalty : score * penalty;
      this.scores[i] = score;
      if (score > (this.scores[best] as number)) best = i;
    }
    const token = temperature === 0 ? best : this.draw();
    this.seen[token] = 1;
    return token;
  }

  private draw(): number {
    const { temperature, topK, topP, minP } = this.options;
    const { scores } = this;
    const keep = topK > 0 ? Math.min(topK, scores.length) : scores.length;
    const order = Uint32Array.from(scores, (_, i) => i)
      .sort((a, b) => (scores[b] as number) - (scores[a] as number) || a - b)
      .subarray(0, keep);
    const top = scores[order[0] as number] as number;
    const probabilities = Float64Array.from(order, (id) => Math.exp(((scores[id] as number) - top) / temperature));
    normalise(probabilities);
    let left = keep;
    if (topP < 1) {
      let reached = 0;
      left = Math.min(keep, 1 + probabilities.findIndex((each) => (reached += each) >= topP));
      if (left === 0) left = keep;
    }
    if (minP > 0) {
      const edge = minP * (probabilities[0] as number);
      left = Math.min(left, probabilities.reduce((count, each) => count + Number(each >= edge), 0));
    }
    const kept = probabilities.subarray(0, left);
    normalise(kept);
    const place = this.random.next() * kept.reduce((a, b) => a + b, 0);
    let edge = 0;
    const at = kept.findIndex((each) => place < (edge += each));
    return order[at < 0 ? left - 1 : at] as number;
  }
}

function normalise(numbers: Float64Array): void {
  const sum = numbers.reduce((a, b) => a + b, 0);
  for (let i = 0; i < numbers.length; i += 1) numbers[i] = (numbers[i] as number) / sum;
}
