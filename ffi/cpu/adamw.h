// adamw and global_norm (llmc_jax/ops/adamw.py, global_norm.py), over all tensors in one call:
//   m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, g = scale * grad
//   param -= lr (m_hat / (sqrt(v_hat) + eps) + weight_decay param)
// Both run at the speed of memory, but for gradients in their factors (factors.h). Sums of squares
// are made in chunks of fixed places, so they do not depend on the threads.
#pragma once

#include "cpu/factors.h"

namespace llmc::LLMC_ISA {

constexpr int64_t kChunk = 1 << 15;  // elements in a task
// elements to fetch ahead: where the hardware stops at each page, 5 % slower
constexpr int64_t kAhead = 1024;

// Pieces of a gradient that a task takes: one of what is in its factors.
inline int64_t ChunksOf(const Gradient& grad) { return grad.inp ? 1 : CeilDiv(grad.size, kChunk); }

// Calls body(chunk, leaf, start, count) for every chunk of the leaves, whose gradients are
// grad(leaf), in parallel; `chunk` counts them in order.
template <typename Grad, typename Body>
void ForChunks(Threads& threads, int64_t leaves, const Grad& grad, const Body& body) {
  auto chunks_of = [&](int64_t leaf) { return ChunksOf(grad(leaf)); };
  int64_t chunks = 0;
  for (int64_t leaf = 0; leaf < leaves; ++leaf) chunks += chunks_of(leaf);
  ParallelFor(threads, chunks, [&](int64_t chunk) {
    int64_t leaf = 0, before = 0;
    for (; chunk >= before + chunks_of(leaf); ++leaf) before += chunks_of(leaf);
    int64_t start = (chunk - before) * kChunk;
    body(chunk, leaf, start, Min(kChunk, grad(leaf).size - start));
  });
}

// body(pointer to element `start`), of the type that the gradient has.
template <typename Body>
auto OnElements(const Gradient& grad, int64_t start, const Body& body) {
  return grad.half ? body(static_cast<const BF16*>(grad.data) + start)
                   : body(static_cast<const float*>(grad.data) + start);
}

template <typename G>
double SumOfSquares(const G* x, int64_t count) {
  Vec sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes)
    for (int u = 0; u < 4; ++u) {
      __builtin_prefetch(x + i + u * kLanes + kAhead);
      Vec v = Load(x + i + u * kLanes);
      sums[u] += v * v;
    }
  double sum = 0;
  for (int u = 0; u < 4; ++u) sum += Sum(sums[u]);
  for (; i < count; ++i) sum += ToFloat(x[i]) * ToFloat(x[i]);
  return sum;
}

inline double SumOfSquares(Threads& threads, int64_t leaves, const Gradient* grads) {
  auto grad = [&](int64_t leaf) { return grads[leaf]; };
  int64_t chunks = 0;
  for (int64_t leaf = 0; leaf < leaves; ++leaf) chunks += ChunksOf(grads[leaf]);
  SharedScratch<double> scratch(chunks);
  double* partial = scratch.data();
  ForChunks(threads, leaves, grad,
            [&](int64_t chunk, int64_t leaf, int64_t start, int64_t count) {
              if (grads[leaf].inp)
                partial[chunk] = SquaresOfProduct(grads[leaf]);
              else
                partial[chunk] = OnElements(grads[leaf], start,
                                            [&](const auto* x) { return SumOfSquares(x, count); });
            });
  double total = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partial[chunk];
  return total;
}

template <typename G>
void AdamW(const AdamWLeaf& leaf, const G* grad, int64_t start, int64_t count,
           const AdamWHyper& h) {
  float *param = leaf.param + start, *m = leaf.m + start, *v = leaf.v + start;
  const float decay = h.lr * leaf.weight_decay;
  for (int64_t i = 0; i < count; i += kLanes) {
    int64_t some = Min<int64_t>(kLanes, count - i);
    __builtin_prefetch(grad + i + kAhead);
    __builtin_prefetch(param + i + kAhead);
    __builtin_prefetch(m + i + kAhead);
    __builtin_prefetch(v + i + kAhead);
    Vec p = LoadUpTo(param + i, some), g = LoadUpTo(grad + i, some) * h.scale;
    Vec first = LoadUpTo(m + i, some), second = LoadUpTo(v + i, some);
    first = h.beta1 * first + (1 - h.beta1) * g;
    second = h.beta2 * second + (1 - h.beta2) * g * g;
    Vec root = Sqrt(second * h.unbias2) + h.eps;
    p -= h.lr * (first * h.unbias1 / root) + decay * p;
    StoreUpTo(param + i, p, some);
    StoreUpTo(m + i, first, some);
    StoreUpTo(v + i, second, some);
  }
}

// By the gradients that are not in factors.
inline void AdamWByArrays(Threads& threads, int64_t leaves, const AdamWLeaf* leaf,
                          const AdamWHyper& h) {
  auto grad = [&](int64_t l) { return leaf[l].grad.inp ? Gradient{} : leaf[l].grad; };
  ForChunks(threads, leaves, grad, [&](int64_t, int64_t l, int64_t start, int64_t count) {
    OnElements(leaf[l].grad, start, [&](const auto* x) { AdamW(leaf[l], x, start, count, h); });
  });
}

inline void AdamW(Threads& threads, int64_t leaves, const AdamWLeaf* leaf, const AdamWHyper& h) {
  AdamWByArrays(threads, leaves, leaf, h);
  int64_t largest = 0;  // of those in factors, which are multiplied one after another
  for (int64_t l = 0; l < leaves; ++l)
    if (leaf[l].grad.inp) largest = Max(largest, leaf[l].grad.size);
  SharedScratch<float> scratch(largest);
  for (int64_t l = 0; l < leaves; ++l) {
    if (!leaf[l].grad.inp) continue;
    Multiply(threads, leaf[l].grad, scratch.data());
    AdamWLeaf multiplied = leaf[l];
    multiplied.grad = {scratch.data(), leaf[l].grad.size, /*half=*/false};
    AdamWByArrays(threads, 1, &multiplied, h);
  }
}

}  // namespace llmc::LLMC_ISA
