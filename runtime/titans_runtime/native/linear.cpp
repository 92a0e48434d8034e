// Few rows times a large matrix. What it costs is reading the matrix, so that is done once and in order: a thread reads
// whole rows of it, one after the other, or six at a time where there are enough rows of x to keep the units busy.
//
// On two cores that read 34 to 41 GB/s in a plain sum: one row of x 34 to 39 GB/s, two 36, and sixteen 150 to 170
// GFLOP/s, at 1024 and 4096 columns.
#include "linear.h"

#include "kernels.h"
#include "simd.h"

namespace TITANS_ISA {
namespace {

template <int N>
void direct(const LinearCall& call, Index first, Index last) {
  constexpr int kStreams = N == 1 ? 4 : N == 2 ? 2 : 1;  // independent sums of one product
  const Index k = call.inputs, step = kStreams * kLanes;
  for (Index m = first; m < last; ++m) {
    const float* w = call.weight + m * k;
    Vec sums[N][kStreams] = {};
    Index i = 0;
    for (; i + step <= k; i += step)
#pragma GCC unroll 8
      for (int s = 0; s < kStreams; ++s) {
        const Vec part = load(w + i + s * kLanes);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) sums[n][s] += part * load(call.x + n * k + i + s * kLanes);
      }
    for (; i < k; i += kLanes) {
      const Index some = k - i < kLanes ? k - i : kLanes;
      const Vec part = get(w + i, some);
      for (int n = 0; n < N; ++n) sums[n][0] += part * get(call.x + n * k + i, some);
    }
    for (int n = 0; n < N; ++n) {
      Vec total = sums[n][0];
      for (int s = 1; s < kStreams; ++s) total += sums[n][s];
      call.out[n * call.outputs + m] = sum(total);
    }
  }
}

constexpr Index kHeight = 6, kWidth = 2 * kLanes;

template <int ROWS>
void panel(const LinearCall& call, Index m, Index n, Index padded) {
  Vec sums[ROWS][2] = {};
  const float *w = call.weight + m * call.inputs, *x = call.transposed + n;
  // Where the next rows begin, which is on other pages: the processor foresees the rest. Without, 145 GFLOP/s instead
  // of 161.
  constexpr Index kBeginning = 64;
  if (n == 0)
    for (Index r = 0; r < ROWS; ++r) fetch(w + (ROWS + r) * call.inputs, kBeginning);
  for (Index k = 0; k < call.inputs; ++k) {
    const Vec a = load(x + k * padded), b = load(x + k * padded + kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const Vec weight = all(w[r * call.inputs + k]);
      sums[r][0] += weight * a;
      sums[r][1] += weight * b;
    }
  }
  float columns[ROWS][kWidth];
  for (int r = 0; r < ROWS; ++r) {
    store(columns[r], sums[r][0]);
    store(columns[r] + kLanes, sums[r][1]);
  }
  const Index some = call.rows - n < kWidth ? call.rows - n : kWidth;
  for (Index c = 0; c < some; ++c)
    for (int r = 0; r < ROWS; ++r) call.out[(n + c) * call.outputs + m + r] = columns[r][c];
}

}  // namespace

Index linear_padded(Index rows) { return (rows + kWidth - 1) / kWidth * kWidth; }

void linear_transpose(const LinearCall& call, Index first, Index last) {
  const Index padded = linear_padded(call.rows);
  for (Index i = first; i < last; ++i) {
    for (Index n = 0; n < call.rows; ++n) call.transposed[i * padded + n] = call.x[n * call.inputs + i];
    for (Index n = call.rows; n < padded; ++n) call.transposed[i * padded + n] = 0;
  }
}

void linear(const LinearCall& call, Index first, Index last) {
  switch (call.rows) {
    case 1: return direct<1>(call, first, last);
    case 2: return direct<2>(call, first, last);
    case 3: return direct<3>(call, first, last);
    case 4: return direct<4>(call, first, last);
  }
  const Index padded = linear_padded(call.rows);
  Index m = first;
  for (; m + kHeight <= last; m += kHeight)
    for (Index n = 0; n < call.rows; n += kWidth) panel<kHeight>(call, m, n, padded);
  for (; m < last; ++m)
    for (Index n = 0; n < call.rows; n += kWidth) panel<1>(call, m, n, padded);
}

}  // namespace TITANS_ISA
