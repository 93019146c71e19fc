// The kernels of attention's backward that have no products of matrices, before and after those
// that do.
#pragma once

#include "cuda/attention_tile.cuh"

namespace llmc::cuda::attention {

// Delta and RoundDq: a thread has 16 bytes, a block the kPointwise pieces of them that follow each
// other in one sequence, so that it divides in 32 bits.
constexpr int kPointwise = 256;

// Of each file that launches them: nvcc < 13 would register one name for several kernels.
namespace {

// delta = rowsum(dout out), and zeros for dq_sum, if there is one; of a sequence `rows` rows, T or
// more.
template <typename T, int kHS>
__global__ void __launch_bounds__(kPointwise)
    Delta(Shape shape, unsigned blocks, unsigned rows, const T* out, const T* dout, float* delta,
          float* dq_sum) {
  constexpr int kVec = Vec<T>::kSize, kLanes = kHS / kVec;
  unsigned b = blockIdx.x / blocks, piece = blockIdx.x % blocks * kPointwise + threadIdx.x;
  unsigned row = piece / kLanes, t = row / shape.NH, h = row % shape.NH;
  bool valid = t < static_cast<unsigned>(shape.T);
  float sum = 0;
  if (valid) {
    int64_t i = int64_t{b} * shape.T * shape.NH * kHS + int64_t{piece} * kVec;
    auto x = Vec<T>::Load(out + i), dx = Vec<T>::Load(dout + i);
#pragma unroll
    for (int k = 0; k < kVec; ++k) sum += ToFloat(x.at[k]) * ToFloat(dx.at[k]);
  }
  for (int bit = kLanes / 2; bit > 0; bit /= 2) sum += __shfl_xor_sync(kAllLanes, sum, bit);
  if (valid && piece % kLanes == 0) delta[(int64_t{b} * shape.NH + h) * shape.T + t] = sum;
  if (!dq_sum || t >= rows) return;
  float* zeros = dq_sum + int64_t{b} * rows * shape.NH * kHS + int64_t{piece} * kVec;
#pragma unroll
  for (int k = 0; k < kVec; k += 4) Vec<float>{}.Store(zeros + k);
}

// dq = scale dq_sum (B,T,C), into dqkv.
template <typename T, int kHS>
__global__ void __launch_bounds__(kPointwise)
    RoundDq(Shape shape, unsigned blocks, float scale, const float* dq_sum, T* dqkv) {
  constexpr int kVec = Vec<T>::kSize;
  unsigned b = blockIdx.x / blocks, piece = blockIdx.x % blocks * kPointwise + threadIdx.x;
  unsigned C = shape.NH * kHS, pieces = C / kVec, t = piece / pieces;
  if (t >= static_cast<unsigned>(shape.T)) return;
  int64_t row = int64_t{b} * shape.T + t, column = piece % pieces * kVec;
  Vec<T> dq;
#pragma unroll
  for (int k = 0; k < kVec; k += 4) {
    auto sum = Vec<float>::LoadStreaming(dq_sum + row * C + column + k);
#pragma unroll
    for (int j = 0; j < 4; ++j) dq.at[k + j] = FromFloat<T>(sum.at[j] * scale);
  }
  dq.Store(dqkv + row * 3 * C + column);
}

}  // namespace

// For `rows` rows of a sequence.
inline unsigned PointwiseBlocks(const AttentionSizes& sizes, int64_t rows, int vec) {
  return static_cast<unsigned>(CeilDiv(rows * sizes.NH * sizes.HS, vec * kPointwise));
}

template <typename T, int kHS>
Status StartDelta(Stream stream, const AttentionSizes& sizes, const T* out, const T* dout,
                  float* delta, float* dq_sum) {
  int64_t rows = dq_sum ? AttentionDqRows(sizes.T) : sizes.T;
  unsigned blocks = PointwiseBlocks(sizes, rows, Vec<T>::kSize);
  return Launch(Kernel<Delta<T, kHS>>, sizes.B * blocks, kPointwise, 0, stream, Shape(sizes, 1),
                blocks, rows, out, dout, delta, dq_sum);
}

template <typename T, int kHS>
Status StartRoundDq(Stream stream, const AttentionSizes& sizes, float scale, const float* dq_sum,
                    T* dqkv) {
  unsigned blocks = PointwiseBlocks(sizes, sizes.T, Vec<T>::kSize);
  return Launch(Kernel<RoundDq<T, kHS>>, sizes.B * blocks, kPointwise, 0, stream, Shape(sizes, 1),
                blocks, scale, dq_sum, dqkv);
}

}  // namespace llmc::cuda::attention
