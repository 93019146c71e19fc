// cached_attention (llmc_jax/ops/cached_attention.py): one token of each text attends to itself and
// to those before it, whose keys and values are in a cache, where its own are written first:
//   out = softmax(q keys[: position + 1]^T / sqrt(HS)) values[: position + 1]
// A task is a head of a text; it reads as much of the cache as there is text.
#pragma once

#include "cpu/few_rows.h"

namespace llmc::LLMC_ISA {

// scores[s] = q keys[s]^T for s < count, -inf up to whole vectors; returns the largest.
template <typename T>
float ScoresOf(int64_t count, int64_t HS, const float* q, const T* keys, float* scores) {
  Vec largest = Broadcast(-__builtin_inff());
  for (int64_t s = 0; s < count; s += kLanes) {
    const int64_t some = Min<int64_t>(kLanes, count - s);
    Vec sums[kLanes] = {};
    for (int64_t i = 0; i < some; ++i) {
      Vec sum{};
      for (int64_t d = 0; d < HS; d += kLanes) {
        const int64_t rest = Min<int64_t>(kLanes, HS - d);
        sum = Load(q + d) * LoadUpTo(keys + (s + i) * HS + d, rest) + sum;
      }
      sums[i] = sum;
    }
    Vec score = SumOfEach(sums);
    for (int64_t i = some; i < kLanes; ++i) score[i] = -__builtin_inff();
    largest = MaxOf(largest, score);
    Store(scores + s, score);
  }
  return Largest(largest);
}

// out = att values / sum(att), four vectors of it at a time.
template <typename T>
void WeightedSum(int64_t count, int64_t HS, const float* att, const T* values, T* out) {
  Vec total{};
  for (int64_t s = 0; s < count; s += kLanes) total += Load(att + s);
  const float scale = 1 / Sum(total);
  constexpr int64_t kWide = 4 * kLanes;
  int64_t d = 0;
  for (; d + kWide <= HS; d += kWide) {
    Vec sum[4] = {};
    for (int64_t s = 0; s < count; ++s)
#pragma GCC unroll 4
      for (int x = 0; x < 4; ++x) sum[x] = att[s] * Load(values + s * HS + d + x * kLanes) + sum[x];
    for (int x = 0; x < 4; ++x) Store(out + d + x * kLanes, sum[x] * scale);
  }
  for (; d < HS; d += kLanes) {
    const int64_t some = Min<int64_t>(kLanes, HS - d);
    Vec sum{};
    for (int64_t s = 0; s < count; ++s) sum = att[s] * LoadUpTo(values + s * HS + d, some) + sum;
    StoreUpTo(out + d, sum * scale, some);
  }
}

// qkv (B,3C), position (B), keys and values (B,NH,S,HS), out (B,C)
template <typename T>
void CachedAttention(Threads& threads, int64_t B, int64_t NH, int64_t S, int64_t HS, const T* qkv,
                     const int32_t* position, T* keys, T* values, T* out) {
  const int64_t C = NH * HS;
  ParallelFor(threads, B * NH, [&](int64_t head) {
    const int64_t b = head / NH, column = head % NH * HS, count = position[b] + 1;
    const T* own = qkv + b * 3 * C + column;
    T *k = keys + head * S * HS, *v = values + head * S * HS;
    __builtin_memcpy(k + (count - 1) * HS, own + C, HS * sizeof(T));
    __builtin_memcpy(v + (count - 1) * HS, own + 2 * C, HS * sizeof(T));

    const int64_t wide = RoundUp(HS, kLanes);
    auto* q = Scratch<float>(Slot::kA, wide + RoundUp(count, kLanes));
    float *att = q + wide, scale = 1 / __builtin_sqrtf(static_cast<float>(HS));
    for (int64_t d = 0; d < HS; d += kLanes)
      Store(q + d, LoadUpTo(own + d, Min<int64_t>(kLanes, HS - d)) * scale);
    const float largest = ScoresOf(count, HS, q, k, att);
    for (int64_t s = 0; s < count; s += kLanes) Store(att + s, Exp(Load(att + s) - largest));
    WeightedSum(count, HS, att, v, out + b * C + column);
  });
}

}  // namespace llmc::LLMC_ISA
