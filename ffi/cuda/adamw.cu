// AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101; llm.c adamw.cuh), of many tensors at once.
//
//   g = scale * grad, m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2,
//   param -= lr * ((m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)
//                  + weight_decay * param)
//
// A launch takes as many tensors as its arguments have room for. They are cut into chunks that are
// dealt to the blocks one by one across the tensors, so that no block has more than one chunk more
// than another, however the sizes are.
#include "cuda/elements.cuh"

namespace llmc::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 6 * 132;      // all that an H100 holds
constexpr int kLeavesPerLaunch = 64;  // all that CUDA's 4 KiB of kernel arguments must hold
constexpr int kVec = Vec<float>::kSize;
constexpr int kChunk = kThreads * kVec;

struct Leaves {
  int count;
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

// Elements i to i + Vector::kSize.
template <typename Vector>
__device__ inline void UpdateAt(const Factors& factors, const AdamWLeaf& leaf, int64_t i) {
  auto param = Vector::LoadStreaming(leaf.param + i), grad = Vector::LoadStreaming(leaf.grad + i);
  auto m = Vector::LoadStreaming(leaf.m + i), v = Vector::LoadStreaming(leaf.v + i);
#pragma unroll
  for (int k = 0; k < Vector::kSize; ++k)
    factors.Update(leaf.weight_decay, grad.at[k], param.at[k], m.at[k], v.at[k]);
  param.StoreStreaming(leaf.param + i);
  m.StoreStreaming(leaf.m + i);
  v.StoreStreaming(leaf.v + i);
}

__global__ void __launch_bounds__(kThreads, 6) AdamWKernel(Leaves leaves, AdamWHyper hyper) {
  Factors factors(hyper);
  int64_t chunk = blockIdx.x;
  for (int l = 0; l < leaves.count; ++l) {
    const AdamWLeaf& leaf = leaves.leaf[l];
    int64_t chunks = (leaf.size + kChunk - 1) / kChunk;
    for (; chunk < chunks; chunk += gridDim.x) {
      int64_t i = chunk * kChunk + threadIdx.x * kVec, end = i + kVec;
      if (leaf.aligned && end <= leaf.size) {
        UpdateAt<Vec<float>>(factors, leaf, i);
      } else {
        for (; i < end && i < leaf.size; ++i) UpdateAt<One<float>>(factors, leaf, i);
      }
    }
    chunk -= chunks;
  }
}

}  // namespace

Status AdamW(Stream stream, int count, const AdamWLeaf* leaves, const AdamWHyper& hyper) {
  for (int begin = 0; begin < count; begin += kLeavesPerLaunch) {
    Leaves part = {};
    part.count = std::min(count - begin, kLeavesPerLaunch);
    int64_t chunks = 0;
    for (int l = 0; l < part.count; ++l) {
      AdamWLeaf& leaf = part.leaf[l] = leaves[begin + l];
      leaf.aligned = Aligned16(leaf.param) && Aligned16(leaf.grad) && Aligned16(leaf.m) &&
                     Aligned16(leaf.v);
      chunks += CeilDiv(leaf.size, kChunk);
    }
    if (chunks == 0) continue;
    unsigned blocks = static_cast<unsigned>(std::min<int64_t>(chunks, kBlocks));
    Status status = Launch(AdamWKernel, blocks, kThreads, 0, stream, part, hyper);
    if (!status.ok()) return status;
  }
  return {};
}

}  // namespace llmc::cuda
