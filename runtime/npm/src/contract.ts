/** How graphs, state table and schedule must fit together. That a graph is what its entry says, ONNX Runtime shows. */

import { EXPORT_AGAIN, fail } from "./errors.js";
import { byteCount, type GraphSpec, type Shape, type StateSpec, type Table, type TensorSpec } from "./manifest.js";

// More is damage or an attack.
const MOST_GRAPHS = 256;
const MOST_STATES = 16_384;
const MOST_BYTES = 2 ** 36;

function misfit(what: string): never {
  fail("bundle", `manifest.json: ${what}`, EXPORT_AGAIN);
}

/** Throws a TitansError of "bundle" for parts that do not fit together. */
export function checkContract(table: Table): void {
  if (table.graphs.length > MOST_GRAPHS || table.states.length > MOST_STATES)
    misfit("there are more graphs or states than any model has");
  checkStates(table);
  unique("graph name", table.graphs.map((graph) => graph.name));
  const of = (kind: string): number => table.graphs.filter((graph) => graph.kind === kind).length;
  if (of("prefill") > 1 || of("extend") > 1) misfit("there is more than one prefill or extend graph");
  if (!of("step")) misfit("graphs has no step graph, without which no stream can be driven");
  const surprise = new Set(table.graphs.flatMap((g) => g.outputs).filter((t) => t.name === "surprise").map((t) => t.shape.at(-1)));
  if (surprise.size > 1) misfit("graphs report surprise for different numbers of memory layers");
  const [layers] = surprise;
  for (const graph of table.graphs) checkGraph(table, graph, layers);
  checkSchedule(table);
  for (const id of [...table.eos, ...table.stop])
    if (table.vectors || id >= table.outputs) misfit(`id ${id} ends a text, and is outside the vocabulary`);
}

function unique(what: string, names: readonly string[]): void {
  const seen = new Set<string>();
  for (const name of names) {
    if (seen.has(name)) misfit(`${what} '${name}' appears more than once`);
    seen.add(name);
  }
}

function checkStates(table: Table): void {
  for (const { name, kind, shape, initial } of table.states) {
    const axis = kind === "rows" ? 1 : 0;
    if (shape.length <= axis || shape.some((size, index) => (size === "batch") !== (index === axis)))
      misfit(`the shape of state '${name}' must have "batch" at axis ${axis} alone`);
    if (name === "__metadata__" || name === "last_output")
      misfit(`a state is called '${name}', which is the name of something else in saved sessions`);
    if ((initial.kind === "learned") !== (initial.tensor !== undefined))
      misfit(`state '${name}' names a tensor that it does not start from, or the other way round`);
    if (initial.kind === "learned" && !table.initialState)
      misfit(`state '${name}' starts from a learned tensor, and initial_state is null`);
  }
  unique("state name", table.states.map((state) => state.name));
  unique("state tensor", table.states.flatMap((state) => [state.input, state.output]));
  if (table.states.reduce((sum, state) => sum + byteCount(state), 0) > MOST_BYTES)
    misfit(`the state of a stream has more than ${MOST_BYTES} bytes`);
}

function stateTensor(state: StateSpec, name: string, rows?: number): TensorSpec {
  const shape: Shape = rows === undefined ? state.shape : [rows, ...state.shape.slice(1)];
  return { name, dtype: state.dtype, shape };
}

function checkGraph(table: Table, graph: GraphSpec, layers: number | "batch" | undefined): void {
  const { kind, tokens, name } = graph;
  const fits =
    kind === "prefill" ? tokens === table.chunk
    : kind === "extend" ? tokens >= 1 && tokens <= table.chunk
    : tokens === (kind === "step" ? 1 : 0);
  if (!fits) misfit(`graph '${name}' holds ${tokens} tokens, with chunk ${table.chunk}`);
  if (4 * tokens * table.outputs > MOST_BYTES) misfit(`graph '${name}' returns more than ${MOST_BYTES} bytes`);
  const inputs: TensorSpec[] = table.states.map((state) => stateTensor(state, state.input));
  const outputs: TensorSpec[] = [];
  for (const state of table.states) {
    if (state.kind === "carried") outputs.push(stateTensor(state, state.output));
    else if (kind === "step" || kind === "extend") outputs.push(stateTensor(state, state.output, tokens));
  }
  const head = table.vectors ? "predictions" : "logits";
  const data = table.vectors ? "inputs" : "input_ids";
  inputs.push({ name: "position", dtype: "int64", shape: ["batch"] });
  if (kind === "extend") inputs.push({ name: "length", dtype: "int64", shape: ["batch"] });
  if (tokens) {
    inputs.push(
      table.vectors
        ? { name: data, dtype: "float32", shape: ["batch", tokens, table.features] }
        : { name: data, dtype: "int64", shape: ["batch", tokens] },
    );
    outputs.push({ name: head, dtype: "float32", shape: ["batch", tokens, table.outputs] });
    if (layers !== undefined) outputs.push({ name: "surprise", dtype: "float32", shape: ["batch", tokens, layers] });
  }
  checkTensors(graph, "input", graph.inputs, inputs);
  checkTensors(graph, "output", graph.outputs, outputs);
  if (tokens && !graph.inputs.some((each) => each.name === data)) misfit(`graph '${name}' has no input '${data}'`);
  if (tokens && !graph.outputs.some((each) => each.name === head)) misfit(`graph '${name}' has no output '${head}'`);
  const rows = table.states.filter((state) => state.kind === "rows");
  const returned = rows.filter((state) => graph.outputs.some((each) => each.name === state.output)).length;
  if (returned && returned < rows.length) misfit(`graph '${name}' returns rows of some states, and not of others`);
}

function checkTensors(graph: GraphSpec, side: string, listed: readonly TensorSpec[], allowed: readonly TensorSpec[]): void {
  unique(`graph '${graph.name}' ${side}`, listed.map((tensor) => tensor.name));
  for (const tensor of listed) {
    const known = allowed.find((each) => each.name === tensor.name);
    if (!known) misfit(`graph '${graph.name}' has an unknown ${side} '${tensor.name}'`);
    if (known.dtype !== tensor.dtype || JSON.stringify(known.shape) !== JSON.stringify(tensor.shape))
      misfit(`graph '${graph.name}' has ${side} '${tensor.name}' of another type or shape than the table's`);
  }
}

function checkSchedule(table: Table): void {
  const first = table.graphs.find((graph) => graph.kind === "step");
  const scheduled = new Set<string>();
  for (const { graph: name, period, phase } of table.schedule) {
    const graph = table.graphs.find((each) => each.name === name);
    if (!graph || (graph.kind !== "commit" && (graph.kind !== "step" || graph === first)))
      misfit(`schedule names '${name}', which is neither a commit nor a step graph after the first`);
    if (phase >= period) misfit(`schedule runs '${name}' at a position that never comes`);
    if (table.chunk % period)
      misfit(`schedule runs '${name}' every ${period} tokens, which does not divide the chunk`);
    scheduled.add(name);
  }
  for (const graph of table.graphs) {
    if (graph.kind !== "step" || graph === first) continue;
    if (!scheduled.has(graph.name)) misfit(`step graph '${graph.name}' is not in the schedule`);
    if (table.graphs.some((each) => each.kind === "extend"))
      misfit("an extend graph would jump over tokens of another step graph");
  }
}
