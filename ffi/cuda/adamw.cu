// AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101; llm.c adamw.cuh), of many tensors at once.
//
//   g = scale * grad, m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2,
//   param -= lr * ((m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)
//                  + weight_decay * param)
//
// and nothing where scale is not finite.
//
// Parameters in bfloat16 take the place of a copy in float32: most updates are smaller than half
// the distance to the next such number, so they are rounded up or down by chance, with the
// probabilities that make the mean right (llmc_jax/ops/adamw.py has the same numbers).
//
// A launch takes as many tensors as its arguments have room for. They are cut into chunks that are
// dealt to the blocks one by one across the tensors, so that no block has more than one chunk more
// than another, however the sizes are.
#include "cuda/elements.cuh"

namespace llmc::cuda {
namespace {

constexpr int kThreads = 256;
// Blocks that an SM holds, and all that an H100 does.
template <typename P>
constexpr int kBlocksOfSm = sizeof(P) == 2 ? 3 : 5;
template <typename P>
constexpr int kBlocks = 132 * kBlocksOfSm<P>;
constexpr int kLeavesPerLaunch = 64;  // all that CUDA's 4 KiB of kernel arguments must hold
struct Leaves {
  int count;
  unsigned first;  // number of leaf[0] among all tensors
  AdamWLeaf leaf[kLeavesPerLaunch];
};
static_assert(sizeof(Leaves) + sizeof(AdamWHyper) <= 4096);

struct Factors {
  float lr, scale, beta1, beta2, eps, unbias_m, unbias_v;

  __device__ explicit Factors(const AdamWHyper& h)
      : lr(*h.lr),
        scale(*h.scale),
        beta1(h.beta1),
        beta2(h.beta2),
        eps(h.eps),
        unbias_m(1 / (1 - powf(beta1, static_cast<float>(*h.step)))),
        unbias_v(1 / (1 - powf(beta2, static_cast<float>(*h.step)))) {}

  __device__ void Update(float weight_decay, float grad, float& param, float& m, float& v) const {
    grad *= scale;
    m = beta1 * m + (1 - beta1) * grad;
    v = beta2 * v + (1 - beta2) * grad * grad;
    float step = m * unbias_m / (sqrtf(v * unbias_v) + eps);
    param -= lr * (step + weight_decay * param);
  }
};

// The finaliser of MurmurHash3 (Appleby 2011): every bit of x changes half of the result's.
__device__ inline unsigned Scramble(unsigned x) {
  x = (x ^ x >> 16) * 0x85ebca6bu;
  x = (x ^ x >> 13) * 0xc2b2ae35u;
  return x ^ x >> 16;
}

// `value` to store as element i of a tensor; `seed` is that of the step and the tensor.
template <typename P>
__device__ inline P Round(float value, unsigned seed, int64_t i) {
  if constexpr (std::is_same_v<P, float>) {
    return value;
  } else {
    unsigned noise = Scramble(static_cast<unsigned>(i) + seed) & 0xffffu;
    unsigned bits = (__float_as_uint(value) + noise) & 0xffff0000u;
    return FromFloat<P>(value == value ? __uint_as_float(bits) : value);
  }
}

// Elements i to i + Vector::kSize.
template <typename Vector, typename P>
__device__ inline void UpdateAt(const Factors& factors, const AdamWLeaf& leaf, unsigned seed,
                                int64_t i) {
  constexpr int kSize = Vector::kSize;
  P* params = static_cast<P*>(leaf.param);
  float grad[kSize], m[kSize], v[kSize];
  auto param = Vector::LoadStreaming(params + i);
  if (leaf.grad.half)
    LoadFloats(grad, static_cast<const bf16*>(leaf.grad.data) + i);
  else
    LoadFloats(grad, static_cast<const float*>(leaf.grad.data) + i);
  LoadFloats(m, leaf.m + i);
  LoadFloats(v, leaf.v + i);
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    float value = ToFloat(param.at[k]);
    factors.Update(leaf.weight_decay, grad[k], value, m[k], v[k]);
    param.at[k] = Round<P>(value, seed, i + k);
  }
  param.StoreStreaming(params + i);
  StoreFloats(m, leaf.m + i);
  StoreFloats(v, leaf.v + i);
}

template <typename P>
constexpr int64_t kChunk = kThreads * Vec<P>::kSize;

template <typename P>
__global__ void __launch_bounds__(kThreads, kBlocksOfSm<P>)
    AdamWKernel(Leaves leaves, AdamWHyper hyper) {
  constexpr int kSize = Vec<P>::kSize;
  Factors factors(hyper);
  if (!(fabsf(factors.scale) < INFINITY)) return;  // a step that is skipped
  unsigned step = Scramble(*hyper.step);
  int64_t chunk = blockIdx.x;
  for (int l = 0; l < leaves.count; ++l) {
    const AdamWLeaf& leaf = leaves.leaf[l];
    unsigned seed = Scramble(step + leaves.first + l);
    const int64_t size = leaf.grad.size, chunks = (size + kChunk<P> - 1) / kChunk<P>;
    for (; chunk < chunks; chunk += gridDim.x) {
      int64_t i = chunk * kChunk<P> + threadIdx.x * kSize, end = i + kSize;
      if (leaf.aligned && end <= size) {
        UpdateAt<Vec<P>, P>(factors, leaf, seed, i);
      } else {
        for (; i < end && i < size; ++i) UpdateAt<One<P>, P>(factors, leaf, seed, i);
      }
    }
    chunk -= chunks;
  }
}

template <typename P>
Status Run(Stream stream, int count, const AdamWLeaf* leaves, const AdamWHyper& hyper) {
  for (int begin = 0; begin < count; begin += kLeavesPerLaunch) {
    Leaves part = {};
    part.count = std::min(count - begin, kLeavesPerLaunch);
    part.first = begin;
    int64_t chunks = 0;
    for (int l = 0; l < part.count; ++l) {
      AdamWLeaf& leaf = part.leaf[l] = leaves[begin + l];
      leaf.aligned = Aligned16(leaf.param) && Aligned16(leaf.grad.data) && Aligned16(leaf.m) &&
                     Aligned16(leaf.v);
      chunks += CeilDiv(leaf.grad.size, kChunk<P>);
    }
    if (chunks == 0) continue;
    unsigned blocks = static_cast<unsigned>(std::min<int64_t>(chunks, kBlocks<P>));
    Status status = Launch(Kernel<AdamWKernel<P>>, blocks, kThreads, 0, stream, part, hyper);
    if (!status.ok()) return status;
  }
  return {};
}

}  // namespace

Status AdamW(Stream stream, Type type, int count, const AdamWLeaf* leaves,
             const AdamWHyper& hyper) {
  auto run = type == Type::kBF16 ? Run<bf16> : Run<float>;
  return run(stream, count, leaves, hyper);
}

}  // namespace llmc::cuda
