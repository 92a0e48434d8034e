// N rows of x times a matrix in blocks of 4 or 8 bits. A single row costs what reading the matrix costs; many rows cost
// the products of bytes, of which a processor makes two to four times as many as of float32.
//
// A unit is what one vector of bytes holds: two blocks with AVX-512, one with AVX2. The codes of 4 bits unpack to the
// even numbers of a block and then the odd ones, so x is laid out so as well; sums do not care.
#include "blocks.h"

#include <cmath>
#include <type_traits>

#include "kernels.h"
#include "scratch.h"
#include "simd.h"

namespace TITANS_ISA {

// x / rms(x) * gain
void norm(const float* x, const float* gain, Index count, float epsilon, float* to) {
  const float rate = 1.0f / std::sqrt(dot(count, x, x) / static_cast<float>(count) + epsilon);
  map(count, to, [&](Vec v, Vec scale) { return v * rate * scale; }, x, gain);
}

namespace {

constexpr Index kTile = 4;  // rows of W that are unpacked together
constexpr Index kHalf = kBlockSize / 2;
constexpr Index kUnitBlocks = kLanes > 8 ? 2 : 1, kUnit = kUnitBlocks * kBlockSize;
constexpr Index kGroup = kBlockRows, kVectors = kGroup / kLanes;  // rows of x that lie side by side, in vectors
constexpr float kSteps = 127;
typedef std::int8_t Code;

Index blocks_of(Index inputs) { return (inputs + kBlockSize - 1) / kBlockSize; }
Index units_of(Index inputs) { return (inputs + kUnit - 1) / kUnit; }
constexpr Index padded(Index count, Index to) { return (count + to - 1) / to * to; }

// One float16, numbers below its normal ones too, which a multiplication might take for zero.
inline float widened(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16, size = half & 0x7fff;
  const float low = static_cast<float>(size) * 0x1p-24f;
  std::uint32_t bits = size >= 0x7c00 ? 0x7f800000 | size << 13 : (size << 13) + (112u << 23);
  if (size < 0x400) std::memcpy(&bits, &low, sizeof bits);
  bits |= sign;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// `count` of them, at most a vector's, the rest 0.
inline Vec widened(const std::uint16_t* from, Index count) {
#if defined(__AVX512F__)
  const __mmask16 some = count < kLanes ? static_cast<__mmask16>((1u << count) - 1) : static_cast<__mmask16>(0xffff);
  return (Vec)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(some, from));
#else
  float wide[kLanes] = {};
  for (Index i = 0; i < kLanes && i < count; ++i) wide[i] = widened(from[i]);
  return load(wide);
#endif
}

// ---------------------------------------------------------------- one unit of bytes

// Unsigned codes of a unit, and the sums of each lane's four products with bytes of x.
struct Codes {
#if defined(__AVX512F__)
  __m512i bytes;
#elif defined(__AVX2__)
  __m256i bytes;
#else
  std::uint8_t bytes[kUnit];
#endif
};

template <int BITS>
inline Codes unpacked(const std::uint8_t* from) {
  Codes to;
#if defined(__AVX512F__)
  if (BITS == 8) {
    to.bytes = _mm512_loadu_si512(from);
  } else {  // each block's half vector twice, and the upper half bytes of the second moved down
    const __m512i packed = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    const __m512i twice = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3), packed);
    const __m512i moved = _mm512_srlv_epi64(twice, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4));
    to.bytes = _mm512_and_si512(moved, _mm512_set1_epi8(15));
  }
#elif defined(__AVX2__)
  if (BITS == 8) {
    to.bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  } else {
    const __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    to.bytes = _mm256_and_si256(_mm256_srlv_epi64(twice, _mm256_setr_epi64x(0, 0, 4, 4)), _mm256_set1_epi8(15));
  }
#else
  for (Index i = 0; i < kHalf; ++i) {
    to.bytes[i] = BITS == 8 ? from[i] : from[i] & 15;
    to.bytes[kHalf + i] = BITS == 8 ? from[kHalf + i] : from[i] >> 4;
  }
#endif
  return to;
}

// The codes of a unit whose second block is not there: that one's are 0.
template <int BITS>
inline Codes unpacked_last(const std::uint8_t* from) {
  std::uint8_t whole[kUnit * BITS / 8] = {};
  std::memcpy(whole, from, kBlockSize * BITS / 8);
  return unpacked<BITS>(whole);
}

// sums + what each lane's bytes of w and x make. Codes of 8 bits are (code - 128) where `kSigned`.
#if defined(__AVX512VNNI__)
constexpr bool kSigned = false;
template <int BITS>
inline Ints multiplied(Ints sums, __m512i w, __m512i x) {
  return (Ints)_mm512_dpbusd_epi32((__m512i)sums, w, x);
}
#elif defined(__AVX2__)
constexpr bool kSigned = true;  // 255 * 127 twice is too much for 16 bits, 128 * 127 twice is not
template <int BITS>
inline Ints multiplied(Ints sums, __m256i w, __m256i x) {
  if (BITS == 8) {
    w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
    x = _mm256_sign_epi8(x, w);
    w = _mm256_abs_epi8(w);
  }
  const __m256i pairs = _mm256_maddubs_epi16(w, x);
  return sums + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#else
constexpr bool kSigned = false;
#endif

template <int BITS>
inline Ints multiplied(Ints sums, const Codes& w, const Code* x) {
#if defined(__AVX512VNNI__)
  return multiplied<BITS>(sums, w.bytes, _mm512_loadu_si512(x));
#elif defined(__AVX2__)
  return multiplied<BITS>(sums, w.bytes, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
#else
  for (Index i = 0; i < kUnit; ++i) sums[i / 4 % kLanes] += static_cast<int>(w.bytes[i]) * x[i];
  return sums;
#endif
}

inline Vec floats(Ints x) { return __builtin_convertvector(x, Vec); }

// Of the scales of kLanes blocks those of unit u, each in its blocks' lanes.
inline Vec spread(Vec scales, int u) {
#if defined(__AVX512F__)
  const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  return (Vec)_mm512_permutexvar_ps(_mm512_add_epi32(lanes, _mm512_set1_epi32(2 * u)), (__m512)scales);
#elif defined(__AVX2__)
  return (Vec)_mm256_permutevar8x32_ps((__m256)scales, _mm256_set1_epi32(u));
#else
  return all(scales[u]);
#endif
}

// ---------------------------------------------------------------- x in 8 bits

// Where the parts of a rounded x lie in the working memory. Of few rows, each has its own; of many, sixteen lie side by
// side: four bytes of each, as one lane takes them.
struct Rounded {
  Index blocks, units, groups;
  Code* codes;           // [rows, units, kUnit], or [groups, blocks, 8, 16, 4]
  std::int32_t* middle;  // [rows, units, kLanes], or [groups, blocks, 16]: -middle times the sums of those codes
  float* steps;          // likewise; per lane the step of its block
  float* sums;           // [rows, padded blocks], or [groups, blocks, 16]: of x itself
};

bool single(const BlockCall& call) { return call.rows <= kSingleRows; }

Rounded parts(const BlockCall& call) {
  Rounded to{blocks_of(call.inputs),
             units_of(call.inputs),
             padded(call.rows, kGroup) / kGroup,
             nullptr,
             nullptr,
             nullptr,
             nullptr};
  char* at = static_cast<char*>(call.rounded);
  const Index lanes = single(call) ? call.rows * to.units * kLanes : to.groups * to.blocks * kGroup;
  const Index codes = single(call) ? call.rows * to.units * kUnit : to.groups * to.blocks * kBlockSize * kGroup;
  to.codes = reinterpret_cast<Code*>(at);
  to.middle = reinterpret_cast<std::int32_t*>(at + codes);
  to.steps = reinterpret_cast<float*>(to.middle + lanes);
  to.sums = to.steps + lanes;
  return to;
}

// The place of number i of a block among its codes.
template <int BITS>
constexpr Index place(Index i) {
  return BITS == 8 ? i : i / 2 + i % 2 * kHalf;
}

// One block of x: its codes in the order of W's, its step and its sum.
template <int BITS>
void round_block(const float* x, Index count, Code* codes, float* step, float* sum_of_block) {
  float whole[kBlockSize] = {};
  if (count < kBlockSize) {
    std::memcpy(whole, x, count * sizeof(float));
    x = whole;
  }
  Vec top{}, sums{};
  for (Index i = 0; i < kBlockSize; i += kLanes) {
    const Vec part = load(x + i);
    top = larger(top, magnitude(part));
    sums += part;
  }
  *step = largest(top) / kSteps;
  *sum_of_block = sum(sums);
  const float divisor = *step > 0 ? *step : 1;
  std::int32_t rounded[kBlockSize];
  const Vec magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  for (Index i = 0; i < kBlockSize; i += kLanes) {
    const Ints number = (Ints)(load(x + i) / divisor + magic) - (Ints)magic;
    std::memcpy(rounded + i, &number, sizeof number);
  }
#pragma GCC unroll 32
  for (Index i = 0; i < kBlockSize; ++i) codes[place<BITS>(i)] = static_cast<Code>(rounded[i]);
}

template <int BITS>
constexpr int middle() {
  return BITS == 8 ? (kSigned ? 0 : 128) : 8;
}

template <int BITS>
void round_row(const BlockCall& call, Index row, float* normed) {
  const Rounded to = parts(call);
  const float* x = call.x + row * call.inputs;
  if (call.norm) {
    norm(x, call.norm, call.inputs, call.epsilon, normed);
    x = normed;
  }
  const Index group = row / kGroup, lane = row % kGroup;
  for (Index b = 0; b < to.blocks; ++b) {
    const Index first = b * kBlockSize, count = call.inputs - first < kBlockSize ? call.inputs - first : kBlockSize;
    Code codes[kBlockSize];
    float step, sum;
    round_block<BITS>(x + first, count, codes, &step, &sum);
    if (single(call)) {
      const Index unit = b / kUnitBlocks, lanes = kLanes / kUnitBlocks, inside = b % kUnitBlocks;
      std::memcpy(to.codes + row * to.units * kUnit + first, codes, sizeof codes);
      const Index at = (row * to.units + unit) * kLanes + inside * lanes;
      for (Index l = 0; l < lanes; ++l) {
        int codes_sum = 0;
        for (Index i = l * 4; i < kBlockSize; i += lanes * 4)
          codes_sum += codes[i] + codes[i + 1] + codes[i + 2] + codes[i + 3];
        to.middle[at + l] = -middle<BITS>() * codes_sum;
        to.steps[at + l] = step;
      }
      to.sums[row * padded(to.blocks, kLanes) + b] = sum;
    } else {
      const Index at = group * to.blocks + b;
      int codes_sum = 0;
      for (Index i = 0; i < kBlockSize; ++i) codes_sum += codes[i];
      for (Index s = 0; s < kBlockSize / 4; ++s)
        std::memcpy(to.codes + ((at * 8 + s) * kGroup + lane) * 4, codes + s * 4, 4);
      to.middle[at * kGroup + lane] = -middle<BITS>() * codes_sum;
      to.steps[at * kGroup + lane] = step;
      to.sums[at * kGroup + lane] = sum;
    }
  }
  if (single(call)) {  // what fills the last unit and the last vector
    for (Index b = to.blocks; b < to.units * kUnitBlocks; ++b) {
      std::memset(to.codes + row * to.units * kUnit + b * kBlockSize, 0, kBlockSize);
      const Index at = (row * to.units + b / kUnitBlocks) * kLanes + b % kUnitBlocks * (kLanes / kUnitBlocks);
      for (Index l = 0; l < kLanes / kUnitBlocks; ++l) to.middle[at + l] = 0, to.steps[at + l] = 0;
    }
    for (Index b = to.blocks; b < padded(to.blocks, kLanes); ++b) to.sums[row * padded(to.blocks, kLanes) + b] = 0;
  }
}

// ---------------------------------------------------------------- products

// Four rows of W: codes and scales as they lie, and where the rows after them begin.
struct Tile {
  const std::uint8_t *codes[kTile], *next;
  const std::uint16_t *scales[kTile], *least[kTile];
};

template <int BITS, int N, bool LEAST>
void single_rows(const Rounded& x, const Tile& w, float (*y)[kTile]) {
  constexpr Index kBytes = kUnit * BITS / 8, kUnits = kLanes / kUnitBlocks;
  constexpr float kMiddle = BITS == 8 ? 128 : 8;
  const Index stride = padded(x.blocks, kLanes);
  Vec sums[N][kTile] = {};
  for (Index b = 0; b < x.blocks; b += kLanes) {
    const Index some = x.blocks - b < kLanes ? x.blocks - b : kLanes, first = b / kUnitBlocks;
    Vec scales[kTile];
#pragma GCC unroll 4
    for (int r = 0; r < kTile; ++r) {
      scales[r] = widened(w.scales[r] + b, some);
      if (!LEAST) continue;
      const Vec least = widened(w.least[r] + b, some) + kMiddle * scales[r];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sums[n][r] += least * load(x.sums + n * stride + b);
    }
    const auto unit = [&](Index u, auto unpack) __attribute__((always_inline)) {
      Codes codes[kTile];
#pragma GCC unroll 4
      for (int r = 0; r < kTile; ++r) codes[r] = unpack(w.codes[r] + (first + u) * kBytes);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const Index at = n * x.units + first + u;
        const Vec step = load(x.steps + at * kLanes);
        Ints start;
        std::memcpy(&start, x.middle + at * kLanes, sizeof start);
#pragma GCC unroll 4
        for (int r = 0; r < kTile; ++r) {
          const Ints products = multiplied<BITS>(start, codes[r], x.codes + at * kUnit);
          sums[n][r] += floats(products) * (spread(scales[r], static_cast<int>(u)) * step);
        }
      }
    };
    for (Index u = 0; u < some / kUnitBlocks; ++u) {
#pragma GCC unroll 4
      for (int r = 0; r < kTile; ++r) __builtin_prefetch(w.next + ((first + u) * kTile + r) * kBytes);
      unit(u, [](const std::uint8_t* from) { return unpacked<BITS>(from); });
    }
    if (some % kUnitBlocks)
      unit(some / kUnitBlocks, [](const std::uint8_t* from) { return unpacked_last<BITS>(from); });
  }
  for (int n = 0; n < N; ++n) sum4(sums[n][0], sums[n][1], sums[n][2], sums[n][3], y[n]);
}

template <int BITS, int N>
void single_rows(const Rounded& x, const Tile& w, float (*y)[kTile]) {
  if (w.least[0])
    single_rows<BITS, N, true>(x, w, y);
  else
    single_rows<BITS, N, false>(x, w, y);
}

#if defined(__AVX512F__)
typedef __m512i Bytes;
inline Bytes four(const std::uint8_t* from) {
  std::int32_t x;
  std::memcpy(&x, from, 4);
  return _mm512_set1_epi32(x);
}
inline Bytes bytes(const Code* from) { return _mm512_loadu_si512(from); }
#elif defined(__AVX2__)
typedef __m256i Bytes;
inline Bytes four(const std::uint8_t* from) {
  std::int32_t x;
  std::memcpy(&x, from, 4);
  return _mm256_set1_epi32(x);
}
inline Bytes bytes(const Code* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
#else
typedef const std::uint8_t* Bytes;
inline Bytes four(const std::uint8_t* from) { return from; }
inline const Code* bytes(const Code* from) { return from; }
template <int BITS>
inline Ints multiplied(Ints sums, const std::uint8_t* w, const Code* x) {
  for (Index l = 0; l < kLanes; ++l)
    for (Index i = 0; i < 4; ++i) sums[l] += static_cast<int>(w[i]) * x[l * 4 + i];
  return sums;
}
#endif

// V vectors of rows of x times four rows of W, whose codes are `[kTile, blocks, 32]`.
template <int BITS, int V>
void many_rows(const Rounded& x, Index vector, const std::uint8_t* codes, const float* scales, const float* least,
               Vec (*y)[V]) {
  const Index stride = padded(x.blocks, kLanes);
  Vec sums[kTile][V] = {};
  const Index width = x.blocks * kBlockSize;
  Index at[V];
  for (int v = 0; v < V; ++v)  // where a vector's numbers of block 0 are
    at[v] = (vector + v) / kVectors * x.blocks * kGroup + (vector + v) % kVectors * kLanes;
  for (Index b = 0; b < x.blocks; ++b) {
    Ints products[kTile][V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      Ints start;
      std::memcpy(&start, x.middle + at[v] + b * kGroup, sizeof start);
#pragma GCC unroll 4
      for (int r = 0; r < kTile; ++r) products[r][v] = start;
    }
#pragma GCC unroll 8
    for (Index s = 0; s < kBlockSize / 4; ++s) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        // [groups, blocks, 8, 16, 4]: lanes of block b are (b * 8 + s) * 16 * 4 bytes on
        const Index group = at[v] / kGroup * kGroup, lane = at[v] % kGroup;
        const auto part = bytes(x.codes + ((group + b * kGroup) * 8 + s * kGroup + lane) * 4);
#pragma GCC unroll 4
        for (int r = 0; r < kTile; ++r)
          products[r][v] = multiplied<BITS>(products[r][v], four(codes + r * width + b * kBlockSize + s * 4), part);
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const Vec step = load(x.steps + at[v] + b * kGroup);
#pragma GCC unroll 4
      for (int r = 0; r < kTile; ++r) sums[r][v] += floats(products[r][v]) * (step * scales[r * stride + b]);
      if (!least) continue;
      const Vec sum = load(x.sums + at[v] + b * kGroup);
#pragma GCC unroll 4
      for (int r = 0; r < kTile; ++r) sums[r][v] += sum * least[r * stride + b];
    }
  }
  for (int r = 0; r < kTile; ++r)
    for (int v = 0; v < V; ++v) y[r][v] = sums[r][v];
}

// What becomes of y = x W: row n, and of W rows `m[0]` on, of which `some` are wanted.
inline void put_out(const BlockCall& call, Index n, Index m, Index some, const float* y) {
  const Index width = call.gated ? call.outputs / 2 : call.outputs;
  float* to = call.out + n * width + m;
  for (Index i = 0; i < some; ++i) {
    float value = call.gated ? y[i] * sigmoid1(y[i]) * y[i + kTile / 2] : y[i];
    if (call.added) value += call.added[n * width + m + i];
    to[i] = value;
  }
}

template <int BITS>
void products(const BlockCall& call, Index first, Index last) {
  const Rounded x = parts(call);
  const Index row_bytes = x.blocks * kBlockSize * BITS / 8, stride = padded(x.blocks, kLanes);
  const Index step = call.gated ? kTile / 2 : kTile, half = call.outputs / 2;
  float scales[kTile * kMostBlocks], least[kTile * kMostBlocks];
  alignas(64) std::uint8_t codes[kTile * kMostBlocks * kBlockSize];
  for (Index m = first; m < last; m += step) {
    const Index some = last - m < step ? last - m : step;
    Tile w{};
    w.next = call.codes + (m + 2 * step) * row_bytes;
    for (Index r = 0; r < kTile; ++r) {
      const Index inside = r % step < some ? r % step : some - 1, row = m + inside + (r >= step ? half : 0);
      w.codes[r] = call.codes + row * row_bytes;
      w.scales[r] = call.scales + row * x.blocks;
      w.least[r] = call.least ? call.least + row * x.blocks : nullptr;
    }
    if (single(call)) {
      float y[kSingleRows][kTile];
      switch (call.rows) {
        case 1: single_rows<BITS, 1>(x, w, y); break;
        case 2: single_rows<BITS, 2>(x, w, y); break;
        case 3: single_rows<BITS, 3>(x, w, y); break;
        default: single_rows<BITS, 4>(x, w, y);
      }
      for (Index n = 0; n < call.rows; ++n) put_out(call, n, m, some, y[n]);
      continue;
    }
    for (Index r = 0; r < kTile; ++r) {
      for (Index b = 0; b < x.blocks; b += kLanes) {
        const Index count = x.blocks - b < kLanes ? x.blocks - b : kLanes;
        const Vec scale = widened(w.scales[r] + b, count);
        store(scales + r * stride + b, scale);
        if (call.least)
          store(least + r * stride + b, widened(w.least[r] + b, count) + (BITS == 8 ? 128.0f : 8.0f) * scale);
      }
      const std::uint8_t* from = w.codes[r];
      std::uint8_t* to = codes + r * x.blocks * kBlockSize;
      Index b = 0;
      for (; b + kUnitBlocks <= x.blocks; b += kUnitBlocks) {
        const Codes unit = unpacked<BITS>(from + b * kBlockSize * BITS / 8);
        std::memcpy(to + b * kBlockSize, &unit.bytes, kUnit);
      }
      if (b < x.blocks) {
        const Codes unit = unpacked_last<BITS>(from + b * kBlockSize * BITS / 8);
        std::memcpy(to + b * kBlockSize, &unit.bytes, kBlockSize);
      }
    }
    const Index vectors = (call.rows + kLanes - 1) / kLanes;
    const auto few = [&](auto count, Index vector) {
      constexpr int V = decltype(count)::value;
      Vec y[kTile][V];
      many_rows<BITS, V>(x, vector, codes, scales, call.least ? least : nullptr, y);
      for (int v = 0; v < V; ++v)
        for (Index l = 0; l < kLanes; ++l) {
          const Index n = (vector + v) * kLanes + l;
          if (n >= call.rows) break;
          const float row[kTile] = {y[0][v][l], y[1][v][l], y[2][v][l], y[3][v][l]};
          put_out(call, n, m, some, row);
        }
    };
    Index vector = 0;
    for (; vector + 2 <= vectors; vector += 2) few(std::integral_constant<int, 2>(), vector);
    if (vector < vectors) few(std::integral_constant<int, 1>(), vector);
  }
}

}  // namespace

std::size_t block_bytes(const BlockCall& call) {
  const Index blocks = blocks_of(call.inputs), units = units_of(call.inputs),
              groups = padded(call.rows, kGroup) / kGroup;
  const Index lanes = single(call) ? call.rows * units * kLanes : groups * blocks * kGroup;
  const Index codes = single(call) ? call.rows * units * kUnit : groups * blocks * kBlockSize * kGroup;
  const Index sums = single(call) ? call.rows * padded(blocks, kLanes) : lanes;
  return codes + (2 * lanes + sums) * sizeof(float);
}

bool block_round(const BlockCall& call, Index first, Index last) {
  if (call.norm && !scratch().need(Count{call.inputs} + 64)) return false;
  float* normed = call.norm ? scratch().take(call.inputs) : nullptr;
  if (call.norm && !scratch().enough()) return false;
  for (Index row = first; row < last; ++row)
    if (call.bits == 4)
      round_row<4>(call, row, normed);
    else
      round_row<8>(call, row, normed);
  return true;
}

void block_products(const BlockCall& call, Index first, Index last) {
  if (call.bits == 4)
    products<4>(call, first, last);
  else
    products<8>(call, first, last);
}

}  // namespace TITANS_ISA
