// The operators of pretrained decoders: products with weights in blocks, a norm by itself, attention over a window and
// its sinks. Included by `operators.cpp` alone.
#pragma once
#include "kernels.h"
#include "onnxruntime.h"

const Kernels& chosen();

namespace {

constexpr std::size_t kMostAxes = 8;

// A number of 32-bit floats at the end of the axes, and how often there are as many.
struct Rows {
  std::int64_t sizes[kMostAxes], count, width;
  std::size_t rank;
};

Rows measure_rows(Arguments& args) {
  Rows rows{{}, 1, 1, 0};
  rows.rank = args.peek_all(rows.sizes, kMostAxes);
  for (std::size_t axis = 0; axis + 1 < rows.rank; ++axis)
    if (__builtin_mul_overflow(rows.count, rows.sizes[axis], &rows.count))
      args.refuse("a fused operator's sizes are too large");
  if (rows.rank) rows.width = rows.sizes[rows.rank - 1];
  return rows;
}

struct BlockKernel {
  const Interface* ort;
  int bits;
  bool least, norm, gated, added;
  float epsilon;
};

// x, codes, scales and then as the attributes say: least numbers, the norm's gain, what is added to the outputs.
Status* compute_blocks(void* self, Context* context) {
  const BlockKernel& kernel = *static_cast<BlockKernel*>(self);
  Arguments args(*kernel.ort, context);
  BlockCall call{};
  call.bits = kernel.bits;
  call.epsilon = kernel.epsilon;
  call.gated = kernel.gated;
  Rows rows = measure_rows(args);
  call.rows = rows.count;
  call.inputs = rows.width;
  const std::int64_t blocks = (call.inputs + kBlockSize - 1) / kBlockSize;
  if (args.ok() && blocks > kMostBlocks) args.refuse("a fused product's rows are too wide");
  call.x = args.next({call.rows, call.inputs});
  std::int64_t sizes[3] = {};
  args.peek(sizes, 3);
  call.outputs = sizes[0];
  if (args.ok() && (sizes[1] != blocks || (kernel.gated && call.outputs % 2)))
    args.refuse("a fused product's matrix has another width than its rows");
  call.codes = args.next<std::uint8_t>({call.outputs, blocks, kBlockSize * call.bits / 8});
  call.scales = args.next<std::uint16_t>({call.outputs, blocks});
  if (kernel.least) call.least = args.next<std::uint16_t>({call.outputs, blocks});
  if (kernel.norm) call.norm = args.next({call.inputs});
  const std::int64_t width = call.outputs / (kernel.gated ? 2 : 1);
  if (kernel.added) call.added = args.next({call.rows, width});
  if (rows.rank) rows.sizes[rows.rank - 1] = width;
  call.out = args.make(rows.sizes, rows.rank);
  if (!args.ok()) return args.finish();
  const Kernels& kernels = chosen();
  const std::size_t rounded = kernels.block_bytes(call);
  call.rounded = allocate(64, rounded);
  if (!call.rounded) return kernel.ort->status(kFail, kNoMemory);
  constexpr std::int64_t kRoundTogether = 16;  // rows; fewer are sooner rounded than handed out
  args.over((call.rows + kRoundTogether - 1) / kRoundTogether, [&](std::size_t part) {
    const std::ptrdiff_t first = part * kRoundTogether, last = first + kRoundTogether;
    return kernels.block_round(call, first, last < call.rows ? last : call.rows);
  });
  constexpr std::int64_t kBlock = 64;  // outputs that one task computes
  args.over((width + kBlock - 1) / kBlock, [&](std::size_t block) {
    const std::ptrdiff_t first = block * kBlock, last = first + kBlock;
    kernels.block_products(call, first, last < width ? last : width);
    return true;
  });
  std::free(call.rounded);
  return args.finish();
}

Status* create_blocks(const Operator*, const Interface* ort, const Info* info, void** to) {
  Making<BlockKernel> making(ort, info);
  if (!making.ok()) return making.finish(to);
  BlockKernel& kernel = *making.kernel;
  kernel.bits = static_cast<int>(making.number("bits"));
  kernel.least = making.number("least", 0) != 0;
  kernel.norm = making.number("norm", 0) != 0;
  kernel.gated = making.number("gated", 0) != 0;
  kernel.added = making.number("added", 0) != 0;
  if (kernel.norm) making.attribute("epsilon", &kernel.epsilon);
  if (kernel.bits != 4 && kernel.bits != 8) making.refuse("a fused operator has attributes that no product has");
  return making.finish(to);
}

struct NormKernel {
  const Interface* ort;
  float epsilon;
};

// `[..., n]` and `[n]` to `[..., n]`.
Status* compute_norm(void* self, Context* context) {
  const NormKernel& kernel = *static_cast<NormKernel*>(self);
  Arguments args(*kernel.ort, context);
  Rows rows = measure_rows(args);
  const float* x = args.next({rows.count, rows.width});
  const float* gain = args.next({rows.width});
  float* out = args.make(rows.sizes, rows.rank);
  const Kernels& kernels = chosen();
  constexpr std::int64_t kTogether = 8;
  args.over((rows.count + kTogether - 1) / kTogether, [&](std::size_t part) {
    for (std::int64_t row = part * kTogether; row < rows.count && row < std::int64_t(part + 1) * kTogether; ++row)
      kernels.norm(x + row * rows.width, gain, rows.width, kernel.epsilon, out + row * rows.width);
    return true;
  });
  return args.finish();
}

Status* create_norm(const Operator*, const Interface* ort, const Info* info, void** to) {
  Making<NormKernel> making(ort, info);
  if (making.ok()) making.attribute("epsilon", &making.kernel->epsilon);
  return making.finish(to);
}

struct WindowKernel {
  const Interface* ort;
  std::int64_t heads, kv_heads, chunk, past, window, sinks;
  bool normed;
  float epsilon;
};

// The inputs up to the sinks, which tokens inside a chunk and whole chunks have in common.
void take_window(Arguments& args, const WindowKernel& kernel, WindowCall& call) {
  std::int64_t sizes[3] = {};
  args.peek(sizes, 3);
  const std::int64_t B = sizes[0], T = sizes[1], H = kernel.heads, K = kernel.kv_heads, d = sizes[2] / (H + 2 * K);
  if (args.ok() && (d < 2 || d % 2 || sizes[2] != d * (H + 2 * K)))
    args.refuse("a fused attention's projections do not divide into its heads");
  call.batch = B;
  call.tokens = T;
  call.heads = H;
  call.kv_heads = K;
  call.width = d;
  call.chunk = kernel.chunk;
  call.past = kernel.past;
  call.window = kernel.window;
  call.sinks = kernel.sinks;
  call.epsilon = kernel.epsilon;
  call.projected = args.next({B, T, sizes[2]});
  if (kernel.normed) {
    call.query_gain = args.next({d});
    call.key_gain = args.next({d});
  }
  std::int64_t table[2] = {};
  args.peek(table, 2);
  call.positions = table[0] / 2;
  call.cosine = args.next({2 * call.positions, d});
  call.sine = args.next({2 * call.positions, d});
  call.key = args.next({B, K, call.past * call.chunk, d});
  call.value = args.next({B, K, call.past * call.chunk, d});
  if (call.sinks) {
    call.sink_key = args.next({B, K, call.sinks, d});
    call.sink_value = args.next({B, K, call.sinks, d});
  }
}

// The positions of the streams. The tables have to reach as far as anything is turned.
void take_positions(Arguments& args, WindowCall& call, std::int64_t furthest) {
  call.position = args.next<std::int64_t>({call.batch});
  for (std::int64_t b = 0; args.ok() && b < call.batch; ++b)
    if (call.position[b] < 0) args.refuse("a stream's position is below 0");
  const std::int64_t sinks = call.sinks + call.window;
  if (args.ok() && call.positions < (furthest > sinks ? furthest : sinks))
    args.refuse("a fused attention's tables have too few places");
}

Status* compute_window(void* self, Context* context) {
  const WindowKernel& kernel = *static_cast<WindowKernel*>(self);
  Arguments args(*kernel.ort, context);
  WindowCall call{};
  take_window(args, kernel, call);
  const std::int64_t B = call.batch, T = call.tokens, K = call.kv_heads, d = call.width, C = call.chunk;
  if (args.ok() && T > C) args.refuse("a fused attention has more tokens than a chunk");
  call.row_key = args.next({C, B, K, d});
  call.row_value = args.next({C, B, K, d});
  take_positions(args, call, (call.past + 2) * C);
  call.out = args.make({B, T, call.heads * d});
  call.new_key = args.make({T, B, K, d});
  call.new_value = args.make({T, B, K, d});
  const Kernels& kernels = chosen();
  const std::ptrdiff_t H = call.heads;
  args.over(B * H, [&](std::size_t lane) { return kernels.window_tokens(call, lane / H, lane % H); });
  return args.finish();
}

Status* compute_window_chunks(void* self, Context* context) {
  const WindowKernel& kernel = *static_cast<WindowKernel*>(self);
  Arguments args(*kernel.ort, context);
  WindowCall call{};
  take_window(args, kernel, call);
  const std::int64_t B = call.batch, T = call.tokens, K = call.kv_heads, d = call.width, span = call.past * call.chunk;
  if (args.ok() && T % call.chunk) args.refuse("a fused attention's tokens are not whole chunks");
  take_positions(args, call, span + T);
  for (std::int64_t b = 0; args.ok() && b < B; ++b)
    if (call.position[b] % call.chunk) args.refuse("a stream's whole chunks begin inside a chunk");
  call.out = args.make({B, T, call.heads * d});
  call.new_key = args.make({B, K, span, d});
  call.new_value = args.make({B, K, span, d});
  if (call.sinks) {
    call.new_sink_key = args.make({B, K, call.sinks, d});
    call.new_sink_value = args.make({B, K, call.sinks, d});
  }
  const Kernels& kernels = chosen();
  const std::ptrdiff_t parts = (T + kWindowTokens - 1) / kWindowTokens;
  args.over(B * K * parts, [&](std::size_t task) {
    const std::ptrdiff_t lane = task / parts;
    return kernels.window_chunks(call, lane / K, lane % K, task % parts);
  });
  return args.finish();
}

Status* create_window(const Operator*, const Interface* ort, const Info* info, void** to) {
  Making<WindowKernel> making(ort, info);
  if (!making.ok()) return making.finish(to);
  WindowKernel& kernel = *making.kernel;
  kernel.heads = making.number("heads");
  kernel.kv_heads = making.number("kv_heads");
  kernel.chunk = making.number("chunk");
  kernel.past = making.number("past");
  kernel.window = making.number("window");
  kernel.sinks = making.number("sinks");
  kernel.normed = making.number("normed") != 0;
  if (kernel.normed) making.attribute("epsilon", &kernel.epsilon);
  if (kernel.heads < 1 || kernel.kv_heads < 1 || kernel.heads % kernel.kv_heads || kernel.chunk < 1 ||
      kernel.past < 1 || kernel.window < 1 || kernel.window > kernel.past * kernel.chunk + 1 || kernel.sinks < 0 ||
      kernel.sinks > kernel.chunk)
    making.refuse("a fused operator has attributes that no attention has");
  return making.finish(to);
}

}  // namespace
