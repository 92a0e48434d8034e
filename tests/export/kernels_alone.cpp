// Every kernel over made-up numbers, without ONNX Runtime: what it prints has to be the same at every level of
// instructions and on every processor, and no sanitizer may complain. Widths and chunks fill no vector on purpose.
#include <cstdio>
#include <cstdlib>
#include <initializer_list>

#include "kernels.h"

namespace LEVEL {
extern const Kernels kernels;
}

namespace {

const Kernels& kernels = LEVEL::kernels;
unsigned state = 1;

float* numbers(long count, float size = 1) {
  auto* made =
      static_cast<float*>(std::malloc(count * sizeof(float)));  // no more than asked for: sanitizers watch its end
  for (long i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    made[i] = size * (static_cast<float>((state >> 8) & 0xffff) / 32768 - 1);
  }
  return made;
}

void show(const char* name, const float* from, long count) {
  for (long i = 0; i < count; ++i) std::printf("%s %.6e\n", name, from[i]);
}

constexpr long B = 2, H = 3, d = 12, D = H * d, C = 10, kTaps = 4;

MemoryCall a_call(long tokens, bool silu, bool fold, bool momentum, float bound, long depth) {
  MemoryCall call{};
  MemoryShape& s = call.shape;
  s = {B,
       tokens,
       H,
       d,
       C,
       kTaps,
       depth,
       {},
       silu,
       bound,
       0.5f,
       momentum ? 3 : 2,
       0,
       momentum ? 1 : -1,
       momentum ? 2 : 1};
  for (long l = 0; l <= depth; ++l) s.widths[l] = l == 0 || l == depth ? d : 2 * d;
  call.fold = fold;
  call.queries = numbers(B * tokens * D);
  call.keys_values_gates = numbers(B * tokens * (2 * D + s.gates * H));
  call.conv_state = numbers(B * (kTaps - 1) * 3 * D);
  call.conv = numbers(kTaps * 3 * D);
  for (int gate = 0; gate < s.gates; ++gate) call.bias[gate] = numbers(H);
  call.scale = numbers(B * H);
  call.writes = numbers(B * H * C, 0.1f);
  call.momentum_scale = numbers(B * H);
  call.momentum_decay = numbers(B * H);
  call.momentum_writes = numbers(B * H * C, 0.1f);
  for (long l = 0; l < depth; ++l) {
    const long in = s.widths[l], out = s.widths[l + 1];
    call.memory[l] = numbers(B * H * in * out, depth > 2 ? 0.6f : 0.3f);  // deep ones would answer next to nothing
    call.momentum[l] = numbers(B * H * in * out, 0.1f);
    call.inputs[l] = numbers(C * B * H * in);
    call.errors[l] = numbers(C * B * H * out);
    if (depth > 1) call.start[l] = numbers(H * in * out, 0.3f);
    call.new_memory[l] = numbers(B * H * in * out);
    call.new_momentum[l] = numbers(B * H * in * out);
    call.new_inputs[l] = numbers(tokens * B * H * in);
    call.new_errors[l] = numbers(tokens * B * H * out);
  }
  call.outputs = numbers(B * tokens * D);
  call.surprise = numbers(B * H * tokens);
  call.new_conv_state = numbers(B * (kTaps - 1) * 3 * D);
  call.new_scale = numbers(B * H);
  call.new_writes = numbers(B * H * C);
  call.new_momentum_scale = numbers(B * H);
  call.new_momentum_decay = numbers(B * H);
  call.new_momentum_writes = numbers(B * H * C);
  return call;
}

void matrices(const MemoryCall& call) {
  const MemoryShape& s = call.shape;
  for (long l = 0; l < s.depth; ++l) {
    show("memory", call.new_memory[l], B * H * s.widths[l] * s.widths[l + 1]);
    show("momentum", call.new_momentum[l], B * H * s.widths[l] * s.widths[l + 1]);
  }
}

void a_memory(long tokens, long first, long second, bool padded, MemoryCall call) {
  const std::int64_t position[B] = {first, second}, length[B] = {tokens, tokens > 1 ? tokens - 1 : 1};
  call.position = position;
  call.length = padded ? length : nullptr;
  for (long lane = 0; lane < B * H; ++lane) kernels.memory(call, lane / H, lane % H);
  show("outputs", call.outputs, B * tokens * D);
  show("surprise", call.surprise, B * H * tokens);
  show("conv_state", call.new_conv_state, B * (kTaps - 1) * 3 * D);
  show("writes", call.new_writes, B * H * C);
  if (call.fold) return matrices(call);
  for (long l = 0; l < call.shape.depth; ++l) {
    show("inputs", call.new_inputs[l], tokens * B * H * call.shape.widths[l]);
    show("errors", call.new_errors[l], tokens * B * H * call.shape.widths[l + 1]);
  }
  for (long lane = 0; lane < B * H; ++lane) kernels.commit(call, lane / H, lane % H);
  matrices(call);
}

void a_read(long tokens) {
  const MemoryCall like = a_call(tokens, true, false, true, 1, 2);
  ReadCall call{};
  call.shape = like.shape;
  call.queries = like.queries;
  call.conv_state = numbers(B * (kTaps - 1) * D);
  call.conv = like.conv;
  for (long l = 0; l < call.shape.depth; ++l) call.memory[l] = like.memory[l];
  call.outputs = like.outputs;
  call.new_conv_state = numbers(B * (kTaps - 1) * D);
  for (long lane = 0; lane < B * H; ++lane) kernels.read(call, lane / H, lane % H);
  show("read", call.outputs, B * tokens * D);
  show("read conv_state", call.new_conv_state, B * (kTaps - 1) * D);
}

void an_attention(long past, long window, long persistent, long first, long second) {
  const std::int64_t position[B] = {first, second};
  const bool sliding = window > 0;
  const int kinds = sliding ? 1 : 2;
  const long row = sliding ? 3 * D : D, positions = (past + 2) * C;
  AttentionCall call{};
  call.batch = B, call.heads = H, call.width = d, call.chunk = C;
  call.past = past, call.window = window, call.persistent = persistent, call.positions = positions;
  call.kinds = kinds;
  call.position = position;
  call.queries = numbers(B * row);
  call.queries_row = row;
  const float* keys_values = sliding ? call.queries + D : numbers(B * kinds * 2 * D);
  for (int kind = 0; kind < kinds; ++kind) call.keys_values[kind] = keys_values + kind * 2 * D;
  call.keys_values_row = sliding ? 3 * D : kinds * 2 * D;
  call.value_offset = D;
  call.persistent_key = numbers(H * persistent * d);
  call.persistent_value = numbers(H * persistent * d);
  call.cosine = numbers(2 * positions * d);
  call.sine = numbers(2 * positions * d);
  call.key = numbers(B * H * past * C * d);
  call.value = numbers(B * H * past * C * d);
  call.out = numbers(B * D);
  for (int kind = 0; kind < kinds; ++kind) {
    call.row_key[kind] = numbers(C * B * H * d);
    call.row_value[kind] = numbers(C * B * H * d);
    call.new_key[kind] = numbers(B * H * d);
    call.new_value[kind] = numbers(B * H * d);
  }
  for (long lane = 0; lane < B * H; ++lane) kernels.attention(call, lane / H, lane % H);
  show("attention", call.out, B * D);
  for (int kind = 0; kind < kinds; ++kind) show("key", call.new_key[kind], B * H * d);
}

void a_product(long rows) {
  LinearCall call{};
  call.rows = rows, call.inputs = 37, call.outputs = 29;
  call.x = numbers(rows * call.inputs);
  call.weight = numbers(call.outputs * call.inputs);
  call.out = numbers(rows * call.outputs);
  if (rows > kDirectRows) {
    call.transposed = static_cast<float*>(std::malloc(call.inputs * kernels.linear_padded(rows) * sizeof(float)));
    kernels.linear_transpose(call, 0, 20);
    kernels.linear_transpose(call, 20, call.inputs);
  }
  kernels.linear(call, 0, call.outputs);
  show("product", call.out, rows * call.outputs);
}

void a_block_product(long rows, int bits, bool least, bool gated) {
  BlockCall call{};
  call.rows = rows, call.inputs = 77, call.outputs = 30, call.bits = bits, call.gated = gated;
  const long blocks = (call.inputs + kBlockSize - 1) / kBlockSize, bytes = kBlockSize * bits / 8;
  call.x = numbers(rows * call.inputs);
  auto* codes = static_cast<std::uint8_t*>(std::malloc(call.outputs * blocks * bytes));
  auto* scales = static_cast<std::uint16_t*>(std::malloc(2 * call.outputs * blocks * sizeof(std::uint16_t)));
  for (long i = 0; i < call.outputs * blocks * bytes; ++i)
    codes[i] = static_cast<std::uint8_t>((state = state * 1664525u + 1013904223u) >> 16);
  for (long i = 0; i < 2 * call.outputs * blocks; ++i)  // float16 up to 0.03, subnormal ones among them
    scales[i] = static_cast<std::uint16_t>((state = state * 1664525u + 1013904223u) >> 16) % 0x2800;
  call.codes = codes;
  call.scales = scales;
  if (least) call.least = scales + call.outputs * blocks;
  if (gated) call.norm = numbers(call.inputs), call.epsilon = 1e-5f;
  const long width = call.outputs / (gated ? 2 : 1);
  call.added = gated ? nullptr : numbers(rows * width);
  call.out = numbers(rows * width);
  call.rounded = std::malloc(kernels.block_bytes(call));
  kernels.block_round(call, 0, rows);
  kernels.block_products(call, 0, 7);
  kernels.block_products(call, 7, width);
  show("block product", call.out, rows * width);
}

void a_window(long tokens, long window, long sinks, long first, long second, bool whole) {
  constexpr long kChunk = 6, kHeads = 4, kKeys = 2, kPast = 3, kSpan = kPast * kChunk;
  const std::int64_t position[B] = {first, second};
  WindowCall call{};
  call.batch = B, call.tokens = tokens, call.heads = kHeads, call.kv_heads = kKeys, call.width = d;
  call.chunk = kChunk, call.past = kPast, call.window = window, call.sinks = sinks;
  call.positions = kSpan + (tokens > 2 * kChunk ? tokens : 2 * kChunk);
  call.position = position;
  call.projected = numbers(B * tokens * (kHeads + 2 * kKeys) * d);
  if (sinks) call.query_gain = numbers(d), call.key_gain = numbers(d), call.epsilon = 1e-5f;
  call.cosine = numbers(2 * call.positions * d);
  call.sine = numbers(2 * call.positions * d);
  call.key = numbers(B * kKeys * kSpan * d);
  call.value = numbers(B * kKeys * kSpan * d);
  call.sink_key = numbers(B * kKeys * sinks * d);
  call.sink_value = numbers(B * kKeys * sinks * d);
  call.row_key = numbers(kChunk * B * kKeys * d);
  call.row_value = numbers(kChunk * B * kKeys * d);
  call.out = numbers(B * tokens * kHeads * d);
  const long kept = whole ? kSpan : tokens;
  call.new_key = numbers(B * kKeys * kept * d);
  call.new_value = numbers(B * kKeys * kept * d);
  call.new_sink_key = numbers(B * kKeys * sinks * d);
  call.new_sink_value = numbers(B * kKeys * sinks * d);
  if (whole)
    for (long b = 0; b < B; ++b)
      for (long k = 0; k < kKeys; ++k)
        for (long part = 0; part * kWindowTokens < tokens; ++part) kernels.window_chunks(call, b, k, part);
  else
    for (long lane = 0; lane < B * kHeads; ++lane) kernels.window_tokens(call, lane / kHeads, lane % kHeads);
  show("window", call.out, B * tokens * kHeads * d);
  show("window key", call.new_key, B * kKeys * kept * d);
  show("window sinks", call.new_sink_value, B * kKeys * sinks * d);
}

}  // namespace

int main() {
  for (const bool silu : {false, true})
    for (const long depth : {1, 2, 4}) {
      a_memory(C, 0, 0, false, a_call(C, silu, true, depth != 2, depth == 4 ? 0.0f : 0.7f, depth));
      a_memory(1, 4, 9, false, a_call(1, silu, false, depth != 1, 1, depth));
      a_memory(7, 2, 3, false, a_call(7, silu, false, true, 1, depth));
      a_memory(C, 0, 1, true, a_call(C, silu, false, true, 0.5f, depth));  // padded over the chunk's end
    }
  a_read(1);
  a_read(C);
  for (const long position : {0, 3, 9, 10, 23, 40}) {
    an_attention(2, 14, 3, position, position + 5);
    an_attention(1, 4, 0, position, 0);
    an_attention(0, 0, 3, position, position + 1);
  }
  for (const long rows : {1, 2, 3, 4, 5, 16, 17, 33}) a_product(rows);
  for (const long rows : {1, 2, 3, 4, 5, 16, 17, 33})
    for (const int bits : {4, 8})
      for (const bool gated : {false, true}) a_block_product(rows, bits, rows % 2 == 0, gated);
  for (const long position : {0, 3, 5, 6, 17, 40}) {
    a_window(1, 14, 3, position, position + 5, false);
    a_window(6, 19, 0, position, 0, false);
    a_window(6, 14, 3, position / 6 * 6, 0, true);
    a_window(72, 8, 2, position / 6 * 6, 6, true);
  }
  float *from = numbers(62), to[31];
  kernels.gate(from, 31, to);
  show("gate", to, 31);
  std::printf("finite %d\n", kernels.finite(from, 62));
  from[61] = 1.0f / 0.0f;
  std::printf("finite %d\n", kernels.finite(from, 62));
}
