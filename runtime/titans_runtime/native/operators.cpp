// The kernels as operators of ONNX Runtime: what each takes and gives, and nothing about how it is computed.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "allocation.h"
#include "kernels.h"
#include "onnxruntime.h"
#include "decoder_operators.h"

namespace v1 {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace v3 {
extern const Kernels kernels;
}
namespace v4 {
extern const Kernels kernels;
}
#endif

const Kernels& chosen() {
#if defined(__x86_64__)
  static const Kernels& best = []() -> const Kernels& {
    const char* wanted = std::getenv("TITANS_KERNELS");
    const auto allowed = [wanted](const char* level) {
      return !wanted || wanted[0] != 'v' || std::strcmp(level, wanted) <= 0;  // a level is an upper bound
    };
    __builtin_cpu_init();
    if (allowed("v4") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vnni"))
      return v4::kernels;
    if (allowed("v3") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return v3::kernels;
    return v1::kernels;
  }();
  return best;
#else
  return v1::kernels;
#endif
}

namespace {

struct Kernel {
  const Interface* ort;
  MemoryShape shape;
  bool fold, padded, start;
};

// B and T, from the projected queries `[B, T, D]` that come next.
void measure(Arguments& args, MemoryShape& s) {
  std::int64_t sizes[3] = {};
  args.peek(sizes, 3);
  s.batch = sizes[0];
  s.tokens = sizes[1];
  if (args.ok() && sizes[2] != s.heads * s.width)
    args.refuse("a fused operator's queries do not divide into its heads");
}

// The width behind matrix l, `[B, H, w[l], w[l + 1]]`, which comes next.
void measure_matrix(Arguments& args, MemoryShape& s, std::ptrdiff_t l) {
  std::int64_t sizes[4] = {};
  args.peek(sizes, 4);
  s.widths[l + 1] = sizes[3];
  if (args.ok() && (sizes[2] != s.widths[l] || (l == s.depth - 1 && sizes[3] != s.width)))
    args.refuse("a memory's matrix has another width than what it is multiplied with");
}

// The coefficients of a stream inside a chunk, and per matrix of the memory itself, its momentum and its rows.
void take_coefficients(Arguments& args, MemoryCall& call) {
  const MemoryShape& s = call.shape;
  const std::int64_t lanes = s.batch * s.heads;
  call.scale = args.next({lanes});
  call.writes = args.next({lanes, s.chunk});
  if (s.momentum < 0) return;
  call.momentum_scale = args.next({lanes});
  call.momentum_decay = args.next({lanes});
  call.momentum_writes = args.next({lanes, s.chunk});
}

void take_matrices(Arguments& args, MemoryCall& call, bool stored) {
  MemoryShape& s = call.shape;
  const std::int64_t lanes = s.batch * s.heads;
  for (std::ptrdiff_t l = 0; l < s.depth; ++l) {
    measure_matrix(args, s, l);
    const std::int64_t in = s.widths[l], out = s.widths[l + 1];
    call.memory[l] = args.next({lanes, in, out});
    if (s.momentum >= 0) call.momentum[l] = args.next({lanes, in, out});
    if (!stored) continue;
    call.inputs[l] = args.next({s.chunk, lanes, in});
    call.errors[l] = args.next({s.chunk, lanes, out});
  }
}

void take_starts(Arguments& args, MemoryCall& call) {
  const MemoryShape& s = call.shape;
  for (std::ptrdiff_t l = 0; l < s.depth; ++l) call.start[l] = args.next({s.heads, s.widths[l], s.widths[l + 1]});
}

void make_coefficients(Arguments& args, MemoryCall& call) {
  const MemoryShape& s = call.shape;
  const std::int64_t B = s.batch, H = s.heads, C = s.chunk;
  call.new_scale = args.make({B, H});
  call.new_writes = args.make({B, H, C});
  if (s.momentum < 0) return;
  call.new_momentum_scale = args.make({B, H});
  call.new_momentum_decay = args.make({B, H});
  call.new_momentum_writes = args.make({B, H, C});
}

void make_matrices(Arguments& args, MemoryCall& call) {
  const MemoryShape& s = call.shape;
  const std::int64_t B = s.batch, H = s.heads;
  for (std::ptrdiff_t l = 0; l < s.depth; ++l) {
    call.new_memory[l] = args.make({B, H, s.widths[l], s.widths[l + 1]});
    if (s.momentum >= 0) call.new_momentum[l] = args.make({B, H, s.widths[l], s.widths[l + 1]});
  }
}

Status* compute_memory(void* self, Context* context) {
  const Kernel& kernel = *static_cast<Kernel*>(self);
  Arguments args(*kernel.ort, context);
  MemoryCall call{};
  MemoryShape& s = call.shape = kernel.shape;
  call.fold = kernel.fold;
  measure(args, s);
  const std::int64_t B = s.batch, T = s.tokens, H = s.heads, C = s.chunk, D = H * s.width;
  call.queries = args.next({B, T, D});
  call.keys_values_gates = args.next({B, T, 2 * D + s.gates * H});
  call.conv_state = args.next({B, s.taps - 1, 3, D});
  call.conv = args.next({s.taps, 3, D});
  for (int gate = 0; gate < s.gates; ++gate) call.bias[gate] = args.next({H});
  if (!call.fold) take_coefficients(args, call);
  take_matrices(args, call, !call.fold);
  if (kernel.start) take_starts(args, call);
  if (!call.fold) call.position = args.next<std::int64_t>({B});
  if (kernel.padded) call.length = args.next<std::int64_t>({B});
  if (args.ok() && !call.fold)  // what a wrong position would write to lies outside the tensors
    for (std::int64_t b = 0; b < B; ++b) {
      const std::int64_t real = call.length ? call.length[b] : T;
      if (call.position[b] < 0 || real < 1 || real > T || call.position[b] % C + real > C)
        args.refuse("a stream's tokens do not fit into its chunk");
    }
  call.outputs = args.make({B, T, D});
  float* surprise = args.make({B, T});
  call.new_conv_state = args.make({B, s.taps - 1, 3 * D});
  make_coefficients(args, call);
  if (call.fold) {
    make_matrices(args, call);
  } else {
    for (std::ptrdiff_t l = 0; l < s.depth; ++l) {
      call.new_inputs[l] = args.make({T, B, H, s.widths[l]});
      call.new_errors[l] = args.make({T, B, H, s.widths[l + 1]});
    }
  }
  if (!args.ok()) return args.finish();
  call.surprise = static_cast<float*>(allocate(64, B * H * T * sizeof(float)));
  if (!call.surprise) return kernel.ort->status(kFail, kNoMemory);
  const Kernels& kernels = chosen();
  args.over(B * H, [&](std::size_t lane) { return kernels.memory(call, lane / H, lane % H); });
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t t = 0; t < T; ++t) {
      float total = 0;
      for (std::int64_t h = 0; h < H; ++h) total += call.surprise[(b * H + h) * T + t];
      surprise[b * T + t] = total / static_cast<float>(H);
    }
  std::free(call.surprise);
  return args.finish();
}

Status* compute_commit(void* self, Context* context) {
  const Kernel& kernel = *static_cast<Kernel*>(self);
  Arguments args(*kernel.ort, context);
  MemoryCall call{};
  MemoryShape& s = call.shape = kernel.shape;
  std::int64_t sizes[2] = {};
  args.peek(sizes, 2);
  s.batch = sizes[0];
  take_coefficients(args, call);
  take_matrices(args, call, true);
  if (kernel.start) take_starts(args, call);
  make_coefficients(args, call);
  make_matrices(args, call);
  const std::ptrdiff_t H = s.heads;
  const Kernels& kernels = chosen();
  args.over(s.batch * H, [&](std::size_t lane) { return kernels.commit(call, lane / H, lane % H); });
  return args.finish();
}

Status* compute_read(void* self, Context* context) {
  const Kernel& kernel = *static_cast<Kernel*>(self);
  Arguments args(*kernel.ort, context);
  ReadCall call{};
  MemoryShape& s = call.shape = kernel.shape;
  measure(args, s);
  const std::int64_t B = s.batch, T = s.tokens, H = s.heads, D = H * s.width;
  call.queries = args.next({B, T, D});
  call.conv_state = args.next({B, s.taps - 1, D});
  call.conv = args.next({s.taps, 3, D});
  for (std::ptrdiff_t l = 0; l < s.depth; ++l) {
    measure_matrix(args, s, l);
    call.memory[l] = args.next({B, H, s.widths[l], s.widths[l + 1]});
  }
  if (kernel.padded) call.length = args.next<std::int64_t>({B});
  if (args.ok() && call.length)
    for (std::int64_t b = 0; b < B; ++b)
      if (call.length[b] < 1 || call.length[b] > T)
        args.refuse("a stream has another number of tokens than were given");
  call.outputs = args.make({B, T, D});
  call.new_conv_state = args.make({B, s.taps - 1, D});
  const Kernels& kernels = chosen();
  args.over(B * H, [&](std::size_t lane) { return kernels.read(call, lane / H, lane % H); });
  return args.finish();
}

struct AttentionKernel {
  const Interface* ort;
  std::int64_t heads, chunk, past, window, persistent;
};

Status* compute_attention(void* self, Context* context) {
  const AttentionKernel& kernel = *static_cast<AttentionKernel*>(self);
  Arguments args(*kernel.ort, context);
  AttentionCall call{};
  const bool sliding = kernel.window > 0;
  std::int64_t sizes[3] = {};
  args.peek(sizes, 3);  // [B, 1, D], or of a sliding window [B, 1, 3 D]
  const std::int64_t B = sizes[0], H = kernel.heads, C = kernel.chunk, D = sizes[2] / (sliding ? 3 : 1), d = D / H;
  if (args.ok() && (sizes[1] != 1 || d < 2 || sizes[2] != d * H * (sliding ? 3 : 1) || d % 2))
    args.refuse("a fused attention's queries do not divide into its heads");
  call.batch = B;
  call.heads = H;
  call.width = d;
  call.chunk = C;
  call.past = kernel.past;
  call.window = kernel.window;
  call.persistent = kernel.persistent;
  call.positions = (kernel.past + 2) * C;
  call.queries = args.next({B, sizes[2]});
  call.queries_row = sizes[2];
  if (sliding) {
    call.kinds = 1;
    call.keys_values[0] = call.queries + D;
    call.keys_values_row = 3 * D;
    call.value_offset = D;
  } else {
    args.peek(sizes, 3);  // [B, kinds, 2 D]
    call.kinds = static_cast<int>(sizes[1]);
    if (args.ok() && (sizes[1] < 1 || sizes[1] > kMaxKinds)) args.refuse("a fused attention has other kinds of keys");
    const float* keys_values = args.next({B, sizes[1], 2, D});
    for (int kind = 0; args.ok() && kind < call.kinds; ++kind) call.keys_values[kind] = keys_values + kind * 2 * D;
    call.keys_values_row = call.kinds * 2 * D;
    call.value_offset = D;
  }
  if (kernel.persistent) {
    call.persistent_key = args.next({H, kernel.persistent, d});
    call.persistent_value = args.next({H, kernel.persistent, d});
  }
  call.cosine = args.next({2, call.positions, d});
  call.sine = args.next({2, call.positions, d});
  if (kernel.past) {
    call.key = args.next({B, H, kernel.past, C, d});
    call.value = args.next({B, H, kernel.past, C, d});
  }
  for (int kind = 0; args.ok() && kind < call.kinds; ++kind) {
    call.row_key[kind] = args.next({C, B, H, d});
    call.row_value[kind] = args.next({C, B, H, d});
  }
  call.position = args.next<std::int64_t>({B});
  for (std::int64_t b = 0; args.ok() && b < B; ++b)
    if (call.position[b] < 0) args.refuse("a stream's position is below 0");
  call.out = args.make({B, 1, D});
  for (int kind = 0; args.ok() && kind < call.kinds; ++kind) {
    call.new_key[kind] = args.make({1, B, H, d});
    call.new_value[kind] = args.make({1, B, H, d});
  }
  const Kernels& kernels = chosen();
  args.over(B * H, [&](std::size_t lane) { return kernels.attention(call, lane / H, lane % H); });
  return args.finish();
}

struct PlainKernel {
  const Interface* ort;
};

// `[B, T, 2 n]` to `[B, T, n]`.
Status* compute_gate(void* self, Context* context) {
  Arguments args(*static_cast<PlainKernel*>(self)->ort, context);
  std::int64_t sizes[3] = {};
  args.peek(sizes, 3);
  const std::int64_t rows = sizes[0] * sizes[1], n = sizes[2] / 2;
  const float* from = args.next({rows, 2, n});
  float* to = args.make({sizes[0], sizes[1], n});
  const Kernels& kernels = chosen();
  args.over(rows, [&](std::size_t row) {
    kernels.gate(from + row * 2 * n, n, to + row * n);
    return true;
  });
  return args.finish();
}

// `[B, T, k]` and `[m, k]` to `[B, T, m]`.
Status* compute_linear(void* self, Context* context) {
  const Interface& ort = *static_cast<PlainKernel*>(self)->ort;
  Arguments args(ort, context);
  std::int64_t sizes[3] = {}, matrix[2] = {};
  args.peek(sizes, 3);
  LinearCall call{};
  call.rows = sizes[0] * sizes[1];
  call.inputs = sizes[2];
  call.x = args.next({call.rows, call.inputs});
  args.peek(matrix, 2);
  call.outputs = matrix[0];
  if (args.ok() && matrix[1] != call.inputs) args.refuse("a fused product's matrix has another width than its rows");
  call.weight = args.next({call.outputs, call.inputs});
  call.out = args.make({sizes[0], sizes[1], call.outputs});
  if (!args.ok()) return args.finish();
  const Kernels& kernels = chosen();
  if (call.rows > kDirectRows) {
    const std::size_t bytes = kernels.linear_padded(call.rows) * call.inputs * sizeof(float);
    call.transposed = static_cast<float*>(allocate(64, bytes));
    if (!call.transposed) return ort.status(kFail, kNoMemory);
    constexpr std::ptrdiff_t kPart = 128;
    args.over((call.inputs + kPart - 1) / kPart, [&](std::size_t part) {
      const std::ptrdiff_t first = part * kPart, last = first + kPart;
      kernels.linear_transpose(call, first, last < call.inputs ? last : call.inputs);
      return true;
    });
  }
  constexpr std::int64_t kBlock = 48;  // rows of the matrix, a multiple of the kernel's height
  const std::int64_t blocks = (call.outputs + kBlock - 1) / kBlock;
  args.over(blocks, [&](std::size_t block) {
    const std::ptrdiff_t first = block * kBlock, last = first + kBlock;
    kernels.linear(call, first, last < call.outputs ? last : call.outputs);
    return true;
  });
  std::free(call.transposed);
  return args.finish();
}

// ---------------------------------------------------------------- registration

Status* create_memory(const Operator*, const Interface* ort, const Info* info, void** to) {
  Making<Kernel> making(ort, info);
  if (!making.ok()) return making.finish(to);
  MemoryShape& s = making.kernel->shape;
  s.heads = making.number("heads");
  s.width = s.widths[0] = making.number("width");
  s.chunk = making.number("chunk");
  s.taps = making.number("taps");
  s.depth = making.number("depth");
  s.silu = making.number("silu") != 0;
  s.gates = static_cast<int>(making.number("gates"));
  s.forget = static_cast<int>(making.number("forget"));
  s.momentum = static_cast<int>(making.number("momentum"));
  s.step = static_cast<int>(making.number("step"));
  making.kernel->fold = making.number("fold") != 0;
  making.kernel->padded = making.number("padded") != 0;
  making.kernel->start = making.number("start", 0) != 0;  // graphs from before there was a choice do not have it
  making.attribute("bound", &s.bound);
  making.attribute("max_step", &s.max_step);
  if (making.kernel->fold && making.kernel->padded) making.refuse("a whole chunk has no padding");
  if (s.heads < 1 || s.widths[0] < 1 || s.chunk < 1 || s.taps < 2 || s.depth < 1 || s.depth > kMaxDepth ||
      s.gates < 1 || s.gates > 3 || s.forget >= s.gates || s.momentum >= s.gates || s.step < 0 || s.step >= s.gates)
    making.refuse("a fused operator has attributes that no memory has");
  return making.finish(to);
}

Status* create_attention(const Operator*, const Interface* ort, const Info* info, void** to) {
  Making<AttentionKernel> making(ort, info);
  if (!making.ok()) return making.finish(to);
  AttentionKernel& kernel = *making.kernel;
  kernel.heads = making.number("heads");
  kernel.chunk = making.number("chunk");
  kernel.past = making.number("past");
  kernel.window = making.number("window");
  kernel.persistent = making.number("persistent");
  if (kernel.heads < 1 || kernel.chunk < 1 || kernel.past < 0 || kernel.window < 0 || kernel.persistent < 0 ||
      (kernel.window > 0) != (kernel.past > 0) || kernel.window > kernel.past * kernel.chunk)
    making.refuse("a fused operator has attributes that no attention has");
  return making.finish(to);
}

Status* create_plain(const Operator*, const Interface* ort, const Info* info, void** to) {
  return Making<PlainKernel>(ort, info).finish(to);
}

int input_type(const Operator*, std::size_t) { return kAny; }
int input_kind(const Operator*, std::size_t) { return kVariadic; }
std::size_t input_count(const Operator*) { return 1; }
int output_type(const Operator*, std::size_t) { return kFloat; }
int output_kind(const Operator*, std::size_t) { return kVariadic; }
std::size_t output_count(const Operator*) { return 1; }
const char* provider(const Operator*) { return nullptr; }  // the CPU's
int on_cpu(const Operator*, std::size_t) { return 0; }
int one(const Operator*) { return 1; }
int no(const Operator*) { return 0; }
void* no_create(const Operator*, const Interface*, const Info*) { return nullptr; }
void no_compute(void*, Context*) {}
void destroy(void* kernel) { std::free(kernel); }

using Create = Status* (*)(const Operator*, const Interface*, const Info*, void**);

constexpr Operator an_operator(const char* (*name)(const Operator*), Create create,
                               Status* (*compute)(void*, Context*)) {
  return {kOperatorRecord, no_create,    name,       provider, input_type, input_count,
          output_type,     output_count, no_compute, destroy,  input_kind, output_kind,
          on_cpu,          one,          no,         one,      one,        create,
          compute};
}

const Operator kOperators[] = {
    an_operator([](const Operator*) { return "Memory"; }, create_memory, compute_memory),
    an_operator([](const Operator*) { return "MemoryCommit"; }, create_memory, compute_commit),
    an_operator([](const Operator*) { return "MemoryRead"; }, create_memory, compute_read),
    an_operator([](const Operator*) { return "TokenAttention"; }, create_attention, compute_attention),
    an_operator([](const Operator*) { return "GatedUnit"; }, create_plain, compute_gate),
    an_operator([](const Operator*) { return "Linear"; }, create_plain, compute_linear),
    an_operator([](const Operator*) { return "BlockLinear"; }, create_blocks, compute_blocks),
    an_operator([](const Operator*) { return "RMSNorm"; }, create_norm, compute_norm),
    an_operator([](const Operator*) { return "WindowAttention"; }, create_window, compute_window),
    an_operator([](const Operator*) { return "WindowPrefill"; }, create_window, compute_window_chunks),
};

}  // namespace

#ifdef TITANS_FAIL_ALLOC
std::atomic<long> titans_requests, titans_refused;
#endif

#define TITANS_EXPORT extern "C" __attribute__((visibility("default")))

// The instruction set that was chosen: v1 is the plain machine, v3 AVX2, v4 AVX-512.
TITANS_EXPORT const char* titans_isa() { return chosen().isa; }

// Whether `count` numbers are all finite: 0 times any other is NaN.
TITANS_EXPORT int titans_finite(const float* numbers, std::size_t count) { return chosen().finite(numbers, count); }

// What `SessionOptions.register_custom_ops_library` calls.
TITANS_EXPORT Status* RegisterCustomOps(Options* options, const InterfaceBase* base) {
  const Interface* ort = interface = base->get(kInterface);
  if (!ort) return base->get(1)->status(kFail, "fused operators need ONNX Runtime 1.17 or newer");
  static Domain* domain = nullptr;  // outlives every session; made once for each process
  static Status* failed = [ort] {
    Status* status = ort->new_domain("ai.titans", &domain);
    for (const Operator& op : kOperators)
      if (!status) status = ort->add(domain, &op);
    return status;
  }();
  if (failed) return ort->status(kFail, "the fused operators could not be made known");
  return ort->add(options, domain);
}

#ifdef TITANS_FAIL_ALLOC
// Refuse the n-th request for memory from now on; 0 refuses none. Returns how many there were since the last call.
TITANS_EXPORT long titans_refuse(long n) {
  const long seen = titans_requests.exchange(0);
  titans_refused = n;
  return seen;
}
#endif
