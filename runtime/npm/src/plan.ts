/** How a piece of a stream is cut into graph calls: pure arithmetic on positions. */

import type { Manifest } from "./manifest.js";

export interface Call {
  readonly graph: number;
  /** Tokens. */
  readonly length: number;
  /** Whether what is due at its end is fused into it. */
  readonly commits: boolean;
}

interface Due {
  readonly graph: number;
  readonly period: number;
  readonly phase: number;
}

export class Planner {
  private readonly chunk: number;
  private readonly prefill: number;
  private readonly extend: number;
  private readonly step: number;
  private readonly extendTokens: number;
  private readonly periods: number[];
  private readonly commits: Due[] = [];
  private readonly steps: Due[] = [];

  constructor(manifest: Manifest) {
    const first = (kind: string): number => manifest.graphs.findIndex((graph) => graph.kind === kind);
    this.chunk = manifest.chunk;
    this.prefill = first("prefill");
    this.extend = first("extend");
    this.step = first("step");
    this.extendTokens = manifest.graphs[this.extend]?.tokens ?? 0;
    this.periods = [this.chunk];
    for (const state of manifest.states) if (state.kind === "rows") this.periods.push(state.shape[0] as number);
    for (const { graph: name, period, phase } of manifest.schedule) {
      const graph = manifest.graphs.findIndex((each) => each.name === name);
      (manifest.graphs[graph]?.kind === "commit" ? this.commits : this.steps).push({ graph, period, phase });
    }
  }

  /** The first call of `left` tokens that follow `position` consumed ones. */
  next(position: number, left: number): Call {
    if (this.prefill >= 0 && left >= this.chunk && position % this.chunk === 0)
      return { graph: this.prefill, length: this.chunk, commits: true };
    if (this.extend >= 0) {
      const length = Math.min(left, this.extendTokens, this.toBoundary(position));
      // It does a whole chunk's work however few tokens are real.
      if (length >= Math.max(2, Math.floor(this.chunk / 8))) return { graph: this.extend, length, commits: false };
    }
    for (const due of this.steps)
      if ((position + 1) % due.period === due.phase) return { graph: due.graph, length: 1, commits: false };
    return { graph: this.step, length: 1, commits: false };
  }

  /** The commits that are due once `position` tokens are consumed, in order. */
  due(position: number): number[] {
    return this.commits.filter((due) => position % due.period === due.phase).map((due) => due.graph);
  }

  /** Tokens up to the next position where a chunk ends, a commit may be due or a table of rows is full. */
  private toBoundary(position: number): number {
    let least = Infinity;
    for (const period of this.periods) least = Math.min(least, period - (position % period));
    for (const due of this.commits) {
      const wait = (due.phase - position - 1) % due.period;
      least = Math.min(least, (wait < 0 ? wait + due.period : wait) + 1);
    }
    return least;
  }
}
