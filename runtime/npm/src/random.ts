/** NumPy's default generator, PCG64 seeded by SeedSequence: equal seeds draw equal numbers here, in Python and in C. */

const MASK32 = 0xffffffffn;
const MASK64 = (1n << 64n) - 1n;
const MASK128 = (1n << 128n) - 1n;
const MULTIPLIER = (2549297995355413924n << 64n) | 4865540595714422341n;
const POOL = 4;

/** SeedSequence's hash of 32-bit words. */
function hasher(first: number, multiplier: number): (value: number) => number {
  let constant = first;
  return (word) => {
    let value = (word ^ constant) >>> 0;
    constant = Math.imul(constant, multiplier) >>> 0;
    value = Math.imul(value, constant) >>> 0;
    return (value ^ (value >>> 16)) >>> 0;
  };
}

function mixed(x: number, y: number): number {
  const result = (Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y)) >>> 0;
  return (result ^ (result >>> 16)) >>> 0;
}

export class Random {
  private state = 0n;
  private readonly increment: bigint;

  /** Any whole number from 0 to 2^64 - 1. */
  constructor(seed: bigint) {
    const entropy = [Number(seed & MASK32), Number(seed >> 32n)];
    const into = hasher(0x43b0d7e5, 0x931e8875);
    const pool = Array.from({ length: POOL }, (_, i) => into(entropy[i] ?? 0));
    for (let from = 0; from < POOL; from += 1)
      for (let to = 0; to < POOL; to += 1)
        if (from !== to) pool[to] = mixed(pool[to] as number, into(pool[from] as number));
    const out = hasher(0x8b51f9dd, 0x58f38ded);
    const words = Array.from({ length: 4 }, (_, i) => {
      const low = out(pool[(2 * i) % POOL] as number);
      const high = out(pool[(2 * i + 1) % POOL] as number);
      return (BigInt(high) << 32n) | BigInt(low);
    }) as [bigint, bigint, bigint, bigint];
    this.increment = ((((words[2] << 64n) | words[3]) << 1n) | 1n) & MASK128;
    this.step();
    this.state = (this.state + ((words[0] << 64n) | words[1])) & MASK128;
    this.step();
  }

  /** A number of [0, 1). */
  next(): number {
    this.step();
    const value = (this.state >> 64n) ^ (this.state & MASK64);
    const turn = this.state >> 122n;
    const turned = ((value >> turn) | (value << ((64n - turn) & 63n))) & MASK64;
    return Number(turned >> 11n) * 2 ** -53;
  }

  private step(): void {
    this.state = (this.state * MULTIPLIER + this.increment) & MASK128;
  }
}

/** A seed of nobody's choice. */
export function anySeed(): bigint {
  return BigInt(Math.floor(Math.random() * 2 ** 32)) | (BigInt(Math.floor(Math.random() * 2 ** 32)) << 32n);
}
