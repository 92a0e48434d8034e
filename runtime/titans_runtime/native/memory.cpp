// One head of one stream: from projected queries, keys, values and gate logits to outputs and the state that changes.
//
// What `titans_core.memory` spells as about a hundred and fifty tensor operations, done while the head's matrices are
// in the caches: every elementwise pass there is a loop over at most a chunk's rows here, and the coefficients, there
// products of triangles, are the recurrences themselves (dual.py has both forms).
#include <cmath>

#include "memory.h"
#include "products.h"
#include "scratch.h"

namespace TITANS_ISA {
namespace {

// One slice of channels through the causal convolution, SiLU and, for queries and keys, to unit length.
struct Slice {
  const float* rows;  // T rows of `width` channels, `row` apart
  Index row;
  const float* conv_state;  // taps - 1 rows, `conv_state_row` apart
  Index conv_state_row;
  const float* conv;  // taps rows, `conv_row` apart
  Index conv_row;
  float* new_conv_state;  // laid out like conv_state
};

void convolve(const MemoryShape& s, const Slice& in, bool unit, float* out) {
  constexpr float kEpsilon = 1e-6f;
  for (Index t = 0; t < s.tokens; ++t) {
    float* to = out + t * s.width;
    for (Index i = 0; i < s.width; i += kLanes) {
      const Index count = s.width - i < kLanes ? s.width - i : kLanes;
      Vec x{};
      for (Index tap = 0; tap < s.taps; ++tap) {
        const Index from = t + tap - (s.taps - 1);
        const float* row = from < 0 ? in.conv_state + (from + s.taps - 1) * in.conv_state_row : in.rows + from * in.row;
        x += get(row + i, count) * get(in.conv + tap * in.conv_row + i, count);
      }
      x *= sigmoid(x);
      put(to + i, x, count);
    }
    if (unit) {
      const Vec rate = all(1.0f / std::sqrt(dot(s.width, to, to) + kEpsilon));
      map(s.width, to, [&](Vec x) { return x * rate; }, to);
    }
  }
}

void keep_conv_state(const MemoryShape& s, const Slice& in, Index real) {
  for (Index row = 0; row < s.taps - 1; ++row) {
    const Index from = real + row - (s.taps - 1);
    const float* source = from < 0 ? in.conv_state + (from + s.taps - 1) * in.conv_state_row : in.rows + from * in.row;
    std::memcpy(in.new_conv_state + row * in.conv_state_row, source, s.width * sizeof(float));
  }
}

void activate(Index count, bool silu, const float* z, float* to) {
  if (silu)
    map(count, to, [](Vec x) { return x * sigmoid(x); }, z);
  else
    map(count, to, [](Vec x) { return x * normal(x).cumulative; }, z);
}

// The activation at z, and in place of z its derivative there.
void activate_and_slope(Index count, bool silu, float* z, float* to) {
  for (Index i = 0; i < count; i += kLanes) {
    const Index some = count - i < kLanes ? count - i : kLanes;
    const Vec x = get(z + i, some);
    Vec y, slope;
    if (silu) {
      const Vec gate = sigmoid(x);
      y = x * gate;
      slope = gate * (1.0f + x * (1.0f - gate));
    } else {
      const Normal at = normal(x);
      y = x * at.cumulative;
      slope = at.cumulative + x * at.density;
    }
    put(to + i, y, some);
    put(z + i, slope, some);
  }
}

void scale_row(Index count, float* row, float by) {
  map(count, row, [&](Vec x) { return x * by; }, row);
}

float largest(float a, float b) { return a > b || a != a ? a : b; }  // NaN is passed on, as clamp does

// What T tokens weigh in the memory that each of them reads, and what the last real one leaves.
struct Coefficients {
  float *rows, *scale, *momentum_scale, *start_scale;  // [T, stride], and [T] each
  float *writes, *momentum_writes;                     // [n], as after the last real token
  Index stride;
  float last_scale, last_momentum_scale, last_momentum_decay;
};

// `w` and `momentum_w` are working memory, `[stride]`.
void work_out(const MemoryCall& call, Index b, Index h, Index before, Index real, float* w, float* momentum_w,
              Coefficients& to) {
  const MemoryShape& s = call.shape;
  const Index dim = s.heads * s.width, row = 2 * dim + s.gates * s.heads, lane = b * s.heads + h;
  std::memset(w, 0, to.stride * sizeof(float));
  std::memset(momentum_w, 0, to.stride * sizeof(float));
  float keeps = 1, f = 0, m = 1;
  if (!call.fold) {
    std::memcpy(w, call.writes + lane * s.chunk, before * sizeof(float));
    keeps = call.scale[lane];
    if (s.momentum >= 0) {
      std::memcpy(momentum_w, call.momentum_writes + lane * s.chunk, before * sizeof(float));
      f = call.momentum_scale[lane];
      m = call.momentum_decay[lane];
    }
  }
  for (Index t = 0; t < s.tokens; ++t) {
    const float* logits = call.keys_values_gates + (b * s.tokens + t) * row + 2 * dim + h;
    const auto gate = [&](int index) { return logits[index * s.heads] + call.bias[index][h]; };
    const float keep = s.forget < 0 ? 1.0f : sigmoid1(-gate(s.forget));
    const float theta = s.max_step * sigmoid1(gate(s.step));
    const Index seen = before + t;
    keeps *= keep;
    if (s.momentum >= 0) {
      const float eta = sigmoid1(gate(s.momentum));
      scale_row(seen, momentum_w, eta);
      momentum_w[seen] = theta;
      m *= eta;
      f = keep * f + m;
      map(seen + 1, w, [&](Vec old, Vec push) { return keep * old + push; }, w, momentum_w);
    } else {
      scale_row(seen, w, keep);
      w[seen] = theta;
    }
    std::memcpy(to.rows + t * to.stride, w, to.stride * sizeof(float));
    to.scale[t] = keeps;
    to.start_scale[t] = 1 - keeps;
    to.momentum_scale[t] = f;
    if (t == real - 1) {
      std::memcpy(to.writes, w, to.stride * sizeof(float));
      std::memcpy(to.momentum_writes, momentum_w, to.stride * sizeof(float));
      to.last_scale = keeps;
      to.last_momentum_scale = f;
      to.last_momentum_decay = m;
    }
  }
}

// `from` as state, over `rows` rows; none is what a stream has at the beginning of a chunk.
void keep_coefficients(const MemoryCall& call, Index lane, Index rows, const Coefficients& from) {
  const MemoryShape& s = call.shape;
  const auto keep = [&](float* to, const float* values) {
    std::memcpy(to + lane * s.chunk, values, rows * sizeof(float));
    std::memset(to + lane * s.chunk + rows, 0, (s.chunk - rows) * sizeof(float));
  };
  call.new_scale[lane] = from.last_scale;
  keep(call.new_writes, from.writes);
  if (s.momentum >= 0) {
    call.new_momentum_scale[lane] = from.last_momentum_scale;
    call.new_momentum_decay[lane] = from.last_momentum_decay;
    keep(call.new_momentum_writes, from.momentum_writes);
  }
}

// The gradient rows of every token at the memory as it stood at the last commit (memory_network.py, `write`).
// a[l] `[T, w[l]]`, e[l] `[T, w[l + 1]]`; slopes as e. `transposed` is working memory for a matrix.
void write(const MemoryCall& call, Index lane, const float* values, float* const* a, float* const* e, float* surprise,
           float* const* slopes, float* transposed) {
  const MemoryShape& s = call.shape;
  const Index T = s.tokens;
  for (Index l = 0; l < s.depth; ++l) {
    const Index in = s.widths[l], out = s.widths[l + 1];
    const bool last = l == s.depth - 1;
    float* z = last ? e[l] : slopes[l];
    product(T, out, in, {a[l], in, 1}, call.memory[l] + lane * in * out, out, z, out, nullptr, false);
    if (!last) activate_and_slope(T * out, s.silu, z, a[l + 1]);
  }
  float* miss = e[s.depth - 1];
  map(T * s.width, miss, [](Vec z, Vec v) { return z - v; }, miss, values);
  for (Index t = 0; t < T; ++t) {
    const float square = dot(s.width, miss + t * s.width, miss + t * s.width);
    surprise[t] = square;
    const float rate = s.bound > 0 ? 1.0f / largest(std::sqrt(square) / s.bound, 0.5f) : 2.0f;
    scale_row(s.width, miss + t * s.width, rate);
  }
  for (Index l = s.depth - 1; l > 0; --l) {
    const Index in = s.widths[l], out = s.widths[l + 1];
    const float* matrix = call.memory[l] + lane * in * out;
    float* below = e[l - 1];
    if (T == 1) {
      for (Index i = 0; i < in; ++i) below[i] = dot(out, matrix + i * out, e[l]);
    } else {
      transpose(in, out, matrix, out, transposed, in);
      product(T, in, out, {e[l], out, 1}, transposed, in, below, in, nullptr, false);
    }
    map(T * in, below, [](Vec x, Vec slope) { return x * slope; }, below, slopes[l - 1]);
    if (s.bound > 0)
      for (Index t = 0; t < T; ++t) {
        const float norm = std::sqrt(dot(in, below + t * in, below + t * in));
        scale_row(in, below + t * in, 1.0f / largest(norm / s.bound, 1.0f));
      }
  }
}

// out `[T, w[l + 1]]` -= (G * (x A^T)) Delta over the stored rows and the new ones.
void subtract_writes(const MemoryCall& call, Index lane, Index l, Index before, const Coefficients& g, const float* x,
                     const float* a, const float* e, float* out, Index out_row, float* transposed, float* scores) {
  const MemoryShape& s = call.shape;
  const Index T = s.tokens, in = s.widths[l], to = s.widths[l + 1], lanes = s.batch * s.heads;
  constexpr Index kRows = 12;  // a token sees what is before it: blocks of rows, each as long as its last
  const float *stored = nullptr, *errors = nullptr;
  if (before) {
    stored = call.inputs[l] + lane * in;
    errors = call.errors[l] + lane * to;
  }
  if (T == 1) {
    for (Index i = 0; i < before; ++i) {
      if (i + kFetchRows < before) fetch(stored + (i + kFetchRows) * lanes * in, in);
      fetch(errors + i * lanes * to, to);
      scores[i] = -g.rows[i] * dot(in, x, stored + i * lanes * in);
    }
    scores[before] = -g.rows[before] * dot(in, x, a);
  } else {
    const Index row = g.stride;
    if (before) transpose(before, in, stored, lanes * in, transposed, row);
    transpose(T, in, a, in, transposed + before, row);
    for (Index t = 0; t < T; t += kRows) {
      const Index rows = T - t < kRows ? T - t : kRows, seen = before + t + rows;
      product(rows, Scratch::rounded(seen), in, {x + t * in, in, 1}, transposed, row, scores + t * row, row, nullptr,
              false);
      for (Index r = t; r < t + rows; ++r)
        map(
            seen, scores + r * row, [](Vec dots, Vec weight) { return -(dots * weight); }, scores + r * row,
            g.rows + r * row);
    }
  }
  if (before) product(T, to, before, {scores, g.stride, 1}, errors, lanes * to, out, out_row, nullptr, true);
  for (Index t = 0; t < T; t += kRows) {
    const Index rows = T - t < kRows ? T - t : kRows;
    product(rows, to, t + rows, {scores + t * g.stride + before, g.stride, 1}, e, to, out + t * out_row, out_row,
            nullptr, true);
  }
}

// W <- b W + (1 - b) W_start + f S - A^T (g Delta), S <- m S - A^T (n Delta) for one matrix and T rows, which are a_row
// and e_row apart.
void fold(const MemoryCall& call, Index lane, Index l, const Coefficients& g, Index T, const float* a, Index a_row,
          const float* e, Index e_row, float* weighed) {
  const MemoryShape& s = call.shape;
  const float b = g.last_scale;
  const Index in = s.widths[l], out = s.widths[l + 1], place = lane * in * out;
  const float *w = call.memory[l] + place, *p = s.momentum < 0 ? nullptr : call.momentum[l] + place;
  const auto add = [&](const float* weights, float* to) {
    for (Index t = 0; t < T; ++t) map(out, weighed + t * out, [&](Vec x) { return x * -weights[t]; }, e + t * e_row);
    product(in, out, T, {a, 1, a_row}, weighed, out, to, out, nullptr, true);
  };
  const float* start = call.start[l] ? call.start[l] + lane % s.heads * in * out : nullptr;
  float *new_w = call.new_memory[l] + place, *new_p = p ? call.new_momentum[l] + place : nullptr;
  const float f = g.last_momentum_scale, m = g.last_momentum_decay;
  for (Index i = 0; i < in * out; i += kLanes) {  // all at once: each is read once
    const Index some = in * out - i < kLanes ? in * out - i : kLanes;
    Vec kept = b * get(w + i, some);
    if (start) kept += (1 - b) * get(start + i, some);
    if (p) {
      const Vec push = get(p + i, some);
      kept += f * push;
      put(new_p + i, m * push, some);
    }
    put(new_w + i, kept, some);
  }
  if (p) add(g.momentum_writes, new_p);
  add(g.writes, new_w);
}

}  // namespace

bool memory(const MemoryCall& call, Index b, Index h) {
  const MemoryShape& s = call.shape;
  const Index T = s.tokens, dim = s.heads * s.width, lane = b * s.heads + h;
  const Index projected_row = 2 * dim + s.gates * s.heads;
  const Index before = call.fold ? 0 : call.position[b] % s.chunk;
  const Index real = call.length ? call.length[b] : T;
  const Index stride = Scratch::rounded(before + T);
  Index widest = 0, rows = 0;
  for (Index l = 0; l <= s.depth; ++l) {
    widest = s.widths[l] > widest ? s.widths[l] : widest;
    rows += s.widths[l] + 16;
  }
  const Count t = T;
  const Count largest = Count{widest} * (widest > stride ? widest : stride);
  if (!scratch().need(3 * t * s.width + 4 * t * rows + 2 * t * stride + 4 * stride + 3 * t + 3 * largest +
                      2 * t * widest + 1024))
    return false;
  const Index largest_matrix = static_cast<Index>(largest);

  float* part[3];
  for (float*& piece : part) piece = scratch().take(T * s.width);
  Coefficients g{};
  g.stride = stride;
  g.rows = scratch().take(T * stride);
  g.scale = scratch().take(T);
  g.momentum_scale = scratch().take(T);
  g.start_scale = scratch().take(T);
  g.writes = scratch().take(stride);
  g.momentum_writes = scratch().take(stride);
  float *w = scratch().take(stride), *momentum_w = scratch().take(stride);
  float *a[kMaxDepth], *e[kMaxDepth], *slopes[kMaxDepth];
  for (Index l = 0; l < s.depth; ++l) {
    a[l] = l == 0 ? part[1] : scratch().take(T * s.widths[l]);
    e[l] = scratch().take(T * s.widths[l + 1]);
    slopes[l] = scratch().take(T * s.widths[l + 1]);
  }
  float *transposed = scratch().take(largest_matrix), *scores = scratch().take(T * stride);
  float* hidden[2] = {scratch().take(T * widest), scratch().take(T * widest)};
  if (!scratch().enough()) return false;

  for (int i = 0; i < 3; ++i) {
    const float* source =
        i == 0 ? call.queries + b * T * dim : call.keys_values_gates + b * T * projected_row + (i - 1) * dim;
    const Index offset = b * (s.taps - 1) * 3 * dim + i * dim + h * s.width;
    const Slice slice{source + h * s.width,
                      i == 0 ? dim : projected_row,
                      call.conv_state + offset,
                      3 * dim,
                      call.conv + i * dim + h * s.width,
                      3 * dim,
                      call.new_conv_state + offset};
    convolve(s, slice, i < 2, part[i]);
    keep_conv_state(s, slice, real);
  }
  const float *queries = part[0], *values = part[2];

  work_out(call, b, h, before, real, w, momentum_w, g);
  write(call, lane, values, a, e, call.surprise + lane * T, slopes, transposed);

  const float* x = queries;
  for (Index l = 0; l < s.depth; ++l) {
    const Index in = s.widths[l], out = s.widths[l + 1];
    const bool last = l == s.depth - 1;
    float* to = last ? call.outputs + b * T * dim + h * s.width : hidden[l % 2];
    const Index to_row = last ? dim : out;
    product(T, out, in, {x, in, 1}, call.memory[l] + lane * in * out, out, to, to_row, g.scale, false);
    if (s.momentum >= 0)
      product(T, out, in, {x, in, 1}, call.momentum[l] + lane * in * out, out, to, to_row, g.momentum_scale, true);
    if (call.start[l])
      product(T, out, in, {x, in, 1}, call.start[l] + h * in * out, out, to, to_row, g.start_scale, true);
    subtract_writes(call, lane, l, before, g, x, a[l], e[l], to, to_row, transposed, scores);
    if (!last) activate(T * out, s.silu, to, to);
    x = to;
  }

  if (call.fold) {
    for (Index l = 0; l < s.depth; ++l) fold(call, lane, l, g, T, a[l], s.widths[l], e[l], s.widths[l + 1], transposed);
    g.last_scale = g.last_momentum_decay = 1;
    g.last_momentum_scale = 0;
    keep_coefficients(call, lane, 0, g);
    return true;
  }
  keep_coefficients(call, lane, before + real, g);
  for (Index l = 0; l < s.depth; ++l)
    for (Index t = 0; t < T; ++t) {
      const Index row = t * s.batch * s.heads + lane, in = s.widths[l], out = s.widths[l + 1];
      std::memcpy(call.new_inputs[l] + row * in, a[l] + t * in, in * sizeof(float));
      std::memcpy(call.new_errors[l] + row * out, e[l] + t * out, out * sizeof(float));
    }
  return true;
}

bool commit(const MemoryCall& call, Index b, Index h) {
  const MemoryShape& s = call.shape;
  const Index lanes = s.batch * s.heads, lane = b * s.heads + h;
  Index widest = 0;
  for (Index l = 0; l <= s.depth; ++l) widest = s.widths[l] > widest ? s.widths[l] : widest;
  if (!scratch().need(2 * Count{s.chunk} * widest + 2 * s.chunk + 64)) return false;
  float *weighed = scratch().take(s.chunk * widest), *inputs = scratch().take(s.chunk * widest);
  Coefficients g{};
  g.writes = scratch().take(s.chunk);
  g.momentum_writes = scratch().take(s.chunk);
  if (!scratch().enough()) return false;
  std::memcpy(g.writes, call.writes + lane * s.chunk, s.chunk * sizeof(float));
  g.last_scale = call.scale[lane];
  if (s.momentum >= 0) {
    std::memcpy(g.momentum_writes, call.momentum_writes + lane * s.chunk, s.chunk * sizeof(float));
    g.last_momentum_scale = call.momentum_scale[lane];
    g.last_momentum_decay = call.momentum_decay[lane];
  }
  for (Index l = 0; l < s.depth; ++l) {
    const Index in = s.widths[l], out = s.widths[l + 1];
    for (Index t = 0; t < s.chunk; ++t) {  // one behind the other, as they are used again and again
      if (t + kFetchRows < s.chunk) fetch(call.inputs[l] + ((t + kFetchRows) * lanes + lane) * in, in);
      fetch(call.errors[l] + (t * lanes + lane) * out, out);
      std::memcpy(inputs + t * in, call.inputs[l] + (t * lanes + lane) * in, in * sizeof(float));
    }
    fold(call, lane, l, g, s.chunk, inputs, in, call.errors[l] + lane * out, lanes * out, weighed);
  }
  g.last_scale = g.last_momentum_decay = 1;
  g.last_momentum_scale = 0;
  keep_coefficients(call, lane, 0, g);
  return true;
}

bool read(const ReadCall& call, Index b, Index h) {
  const MemoryShape& s = call.shape;
  const Index T = s.tokens, dim = s.heads * s.width, lane = b * s.heads + h,
              offset = b * (s.taps - 1) * dim + h * s.width;
  Index widest = 0;
  for (Index l = 0; l <= s.depth; ++l) widest = s.widths[l] > widest ? s.widths[l] : widest;
  if (!scratch().need(Count{T} * (s.width + 2 * widest) + 64)) return false;
  float* queries = scratch().take(T * s.width);
  float* hidden[2] = {scratch().take(T * widest), scratch().take(T * widest)};
  if (!scratch().enough()) return false;
  const Slice slice{call.queries + b * T * dim + h * s.width,
                    dim,
                    call.conv_state + offset,
                    dim,
                    call.conv + h * s.width,
                    3 * dim,
                    call.new_conv_state + offset};
  convolve(s, slice, true, queries);
  keep_conv_state(s, slice, call.length ? call.length[b] : T);
  const float* x = queries;
  for (Index l = 0; l < s.depth; ++l) {
    const Index in = s.widths[l], out = s.widths[l + 1];
    const bool last = l == s.depth - 1;
    float* to = last ? call.outputs + b * T * dim + h * s.width : hidden[l % 2];
    product(T, out, in, {x, in, 1}, call.memory[l] + lane * in * out, out, to, last ? dim : out, nullptr, false);
    if (!last) activate(T * out, s.silu, to, to);
    x = to;
  }
  return true;
}

}  // namespace TITANS_ISA
