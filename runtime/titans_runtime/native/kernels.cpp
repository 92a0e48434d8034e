// The small kernels, and the table of all of them for one instruction set.
#include "kernels.h"

#include "simd.h"

namespace TITANS_ISA {

bool memory(const MemoryCall&, Index, Index);
bool commit(const MemoryCall&, Index, Index);
bool read(const ReadCall&, Index, Index);
bool attention(const AttentionCall&, Index, Index);
Index linear_padded(Index);
void linear_transpose(const LinearCall&, Index, Index);
void linear(const LinearCall&, Index, Index);
std::size_t block_bytes(const BlockCall&);
bool block_round(const BlockCall&, Index, Index);
void block_products(const BlockCall&, Index, Index);
void norm(const float*, const float*, Index, float, float*);
bool window_tokens(const WindowCall&, Index, Index);
bool window_chunks(const WindowCall&, Index, Index, Index);

namespace {

void gate(const float* from, Index count, float* to) {
  map(count, to, [](Vec x, Vec value) { return x * sigmoid(x) * value; }, from, from + count);
}

bool finite(const float* numbers, Index count) {
  Vec sums[4] = {};
  Index i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes)
    for (Index v = 0; v < 4; ++v) sums[v] += load(numbers + i + v * kLanes) * 0.0f;
  for (; i < count; i += kLanes) sums[0] += load_some(numbers + i, count - i < kLanes ? count - i : kLanes) * 0.0f;
  return sum(sums[0] + sums[1] + sums[2] + sums[3]) == 0;
}

}  // namespace

#define TITANS_NAME_(isa) #isa
#define TITANS_NAME(isa) TITANS_NAME_(isa)
extern const Kernels kernels;
const Kernels kernels{TITANS_NAME(TITANS_ISA), memory, commit,      read,        attention,      gate, linear_padded,
                      linear_transpose,        linear, block_bytes, block_round, block_products, norm, window_tokens,
                      window_chunks,           finite};

}  // namespace TITANS_ISA
