// Attention forward on the tensor cores of sm_80 and later, by mma.sync:
//   out = softmax(q k^T / sqrt(HS), causal) v,  lse = log sum exp of the scaled scores.
//
// FlashAttention-2 (Dao 2023, arXiv:2307.08691): a block has a tile of queries, 16 or 32 rows of it
// in a warp's registers, and goes over the keys up to them, 64 at a time; the maximum and the sum
// of a row are kept as it goes, and what was added so far is scaled when the maximum grows. Scores
// become probabilities where the product left them, in registers. While one tile of keys and
// values is used the next is on its way to shared memory.
#include "cuda/attention.cuh"
#include "cuda/attention_tile.cuh"

namespace llmc::cuda {
namespace attention {
namespace {

constexpr int kKeys = 64;

// 32 rows a warp halve what is read from shared memory for a product; at HS 128 the registers are
// enough for 16.
template <int kHS>
constexpr int kM = kHS == 64 ? 2 : 1;
template <int kHS>
constexpr int kQueries = kWarps * 16 * kM<kHS>;

template <typename T, int kHS>
struct Shared {
  Tile<T, kQueries<kHS>, kHS> q;  // in the end, out
  Tile<T, kKeys, kHS> k[2], v[2];
};

// The softmax of a warp's rows so far.
template <int kM, int kN>
struct Softmax {
  float scale;                   // from a score to the exponent of 2
  float max[kM][2], sum[kM][2];  // of the rows g and g + 8; sum: of this lane's columns

  __device__ explicit Softmax(float scale) : scale(scale) {
    for (int m = 0; m < kM; ++m)
      for (int half = 0; half < 2; ++half) max[m][half] = -INFINITY, sum[m][half] = 0;
  }

  // Makes the scores s probabilities, and scales out to the new maximum.
  template <int kOutN>
  __device__ void Update(float (&s)[kM][kN][4], float (&out)[kM][kOutN][4]) {
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float largest = max[m][half];
#pragma unroll
        for (int n = 0; n < kN; ++n)
          largest = fmaxf(largest, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
        largest = OverRow(largest, [](float x, float y) { return fmaxf(x, y); });
        float shrink = ptx::Exp2((max[m][half] - largest) * scale);
        max[m][half] = largest;
        float shift = -largest * scale, more = 0;
#pragma unroll
        for (int n = 0; n < kN; ++n)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            s[m][n][i] = ptx::Exp2(fmaf(s[m][n][i], scale, shift));
            more += s[m][n][i];
          }
        sum[m][half] = sum[m][half] * shrink + more;
#pragma unroll
        for (int n = 0; n < kOutN; ++n)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) out[m][n][i] *= shrink;
      }
  }

  // Divides out by the sums; lse of the row [m][half].
  template <int kOutN>
  __device__ void Finish(float (&out)[kM][kOutN][4], float (&lse)[kM][2]) {
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float total = OverRow(sum[m][half], [](float x, float y) { return x + y; });
        lse[m][half] = max[m][half] * scale / kLog2E + logf(total);
        float factor = 1 / total;
#pragma unroll
        for (int n = 0; n < kOutN; ++n)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) out[m][n][i] *= factor;
      }
  }

  // A row of an accumulator is in four lanes.
  template <typename Combine>
  __device__ static float OverRow(float x, const Combine& combine) {
    x = combine(x, __shfl_xor_sync(kAllLanes, x, 1));
    return combine(x, __shfl_xor_sync(kAllLanes, x, 2));
  }
};

template <typename T, int kHS>
__global__ void __launch_bounds__(kThreads, 2)
    Forward(Shape shape, float scale, const T* qkv, T* out, float* lse) {
  constexpr int kM = attention::kM<kHS>, kQueries = attention::kQueries<kHS>, kK = kHS / 16;
  auto& shared = SharedMemory<Shared<T, kHS>>();
  Lanes<Tile<T, kKeys, kHS>> lanes(&shared);
  Place<kHS> at(shape);
  // The last tile has the most to do, and comes first.
  int first = (shape.tiles - 1 - at.tile) * kQueries, rows = shape.T;
  int end = min(first + kQueries, rows);
  int row = Warp() * 16 * kM, query = first + row;
  auto own = lanes.AtRow(row);
  auto q = at.Packed(qkv, 0), k = at.Packed(qkv, 1), v = at.Packed(qkv, 2);

  auto copy_keys = [&](int key, int stage) {
    CopyRows(shared.k[stage], k, key, rows);
    CopyRows(shared.v[stage], v, key, rows);
    ptx::CopyAsyncCommit();
  };
  CopyRows(shared.q, q, first, rows);
  copy_keys(0, 0);

  uint32_t a[kK][kM][4];
  float sum[kM][kHS / 8][4];
  SetZero(sum);
  Softmax<kM, kKeys / 8> softmax(scale * kLog2E);
  for (int key = 0, stage = 0; key < end; key += kKeys, stage ^= 1) {
    ptx::CopyAsyncWait<0>();
    __syncthreads();
    if (key == 0) {
#pragma unroll
      for (int i = 0; i < kK; ++i) LoadA(a[i], own, &shared.q, i);
    }
    // The other stage is free: all threads have passed the barrier since they read it.
    if (key + kKeys < end) copy_keys(key + kKeys, stage ^ 1);
    if (key >= query + 16 * kM) continue;  // all of it after this warp's queries
    auto staged = lanes.AtTile(stage);
    float s[kM][kKeys / 8][4];
    SetZero(s);
#pragma unroll
    for (int i = 0; i < kK; ++i) AddTimesTransposed<T>(s, a[i], staged, shared.k, i);
    if (key + kKeys - 1 > query) Mask(s, key - query);
    softmax.Update(s, sum);
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) {
      uint32_t p[kM][4];
      ToA<T>(p, s, i);
      AddTimes<T>(sum, p, staged, shared.v, i);
    }
  }

  float row_lse[kM][2];
  softmax.Finish(sum, row_lse);
  for (int m = 0; m < kM; ++m)
    for (int half = 0; half < 2; ++half) {
      int t = query + RowOf(m, 2 * half);
      if (Lane() % 4 == 0 && t < rows) at.PerRow(lse)[t] = row_lse[m][half];
    }
  StoreAccumulator<T>(own, &shared.q, sum, 1);
  __syncwarp();
  WriteRows<kM>(shared.q, row, at.Merged(out), first, rows);
}

}  // namespace
}  // namespace attention

Status AttentionForwardMma(Stream stream, Type type, AttentionSizes sizes, const void* qkv,
                           void* out, float* lse) {
  return ForTypeAndHeadSize(type, sizes.HS, [&](auto zero, auto head_size) {
    using T = decltype(zero);
    constexpr int kHS = head_size;
    attention::Shape shape(sizes, attention::kQueries<kHS>);
    return Launch(Kernel<attention::Forward<T, kHS>>, sizes.B * sizes.NH * shape.tiles,
                  attention::kThreads, sizeof(attention::Shared<T, kHS>), stream, shape,
                  1 / std::sqrt(static_cast<float>(kHS)), static_cast<const T*>(qkv),
                  static_cast<T*>(out), lse);
  });
}

}  // namespace llmc::cuda
