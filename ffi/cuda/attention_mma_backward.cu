// Attention backward on the tensor cores of sm_80 and later, by mma.sync. With p the probabilities,
//   dv = p^T dout,  ds = p (dout v^T - delta),  dq = ds k / sqrt(HS),  dk = ds^T q / sqrt(HS),
// where delta = rowsum(dout out) and p comes again from q k^T and lse (Dao 2023,
// arXiv:2307.08691).
//
// The main kernel has a tile of keys a block and goes over the queries from the diagonal on. It
// makes the scores and ds transposed, keys as rows, for then they are in the registers where the
// products for dv and dk want them; only dq needs ds by way of shared memory, and sums over blocks:
// by atomics in float32, rounded by a kernel of its own. Where that sum must have one order, a
// kernel with a tile of queries a block makes dq instead, from products computed again.
#include "cuda/attention.cuh"
#include "cuda/attention_pointwise.cuh"
#include "cuda/attention_tile.cuh"

namespace llmc::cuda {
namespace attention {
namespace {

// Rows of a warp in tiles of 16; as in the forward pass, HS 128 has registers for half of them.
template <int kHS>
constexpr int kM = kHS == 64 ? 2 : 1;
// Rows of a block's own tile: keys in KeysBackward, queries in QueriesBackward.
template <int kHS>
constexpr int kOwn = kWarps * 16 * kM<kHS>;
// Rows of the tiles that it goes over.
template <int kHS>
constexpr int kOther = kHS == 64 ? 64 : 32;
// As many of them as a warp has scores of at once.
constexpr int kAtOnce = 32;

template <typename T, int kHS>
struct KeysShared {
  Tile<T, kOwn<kHS>, kHS> k, v;  // in the end, dk and dv
  Tile<T, kOther<kHS>, kHS> q[2], dout[2];
  alignas(16) float lse[2][kOther<kHS>], delta[2][kOther<kHS>];
};
template <typename T, int kHS>
using DsTile = Tile<T, kOwn<kHS>, kOther<kHS>>;  // a key a row
template <typename T, int kHS>
struct KeysSharedWithDs : KeysShared<T, kHS> {
  DsTile<T, kHS> ds;
};

// In the functions for transposed scores, keys are rows and queries columns.

// p = exp(scores - lse), times log2(e) as the scores are; lse: of the first query of them.
template <int kM, int kN>
__device__ inline void Probabilities(float (&s)[kM][kN][4], float scale, const float* lse) {
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    auto& pair = *reinterpret_cast<const float2*>(lse + ColumnOf(n, 0));
    float shift[2] = {pair.x * kLog2E, pair.y * kLog2E};
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        s[m][n][i] = ptx::Exp2(fmaf(s[m][n][i], scale, -shift[i % 2]));
  }
}

// No probability for the keys after a query; `ahead`: first key minus first query.
template <int kM, int kN>
__device__ inline void MaskTransposed(float (&p)[kM][kN][4], int ahead) {
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (ahead + RowOf(m, i) > ColumnOf(n, i)) p[m][n][i] = 0;
}

// ds = p (dp - delta), where dp is.
template <int kM, int kN>
__device__ inline void ScoreGradients(float (&dp)[kM][kN][4], const float (&p)[kM][kN][4],
                                      const float* delta) {
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    auto& pair = *reinterpret_cast<const float2*>(delta + ColumnOf(n, 0));
    float row_sum[2] = {pair.x, pair.y};
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) dp[m][n][i] = p[m][n][i] * (dp[m][n][i] - row_sum[i % 2]);
  }
}

// Adds ds k to the rows of dq_sum from `query` on. A warp has 32 queries and 32 columns.
template <typename T, int kHS, typename Lanes, typename DsLanes>
__device__ inline void AddDq(KeysSharedWithDs<T, kHS>& shared, const Lanes& lanes,
                             const DsLanes& ds_lanes, Head<float*> dq_sum, int query, int rows) {
  constexpr int kParts = kOther<kHS> / 32;
  static_assert(kParts * (kHS / 32) == kWarps, "all of dq");
  int part = Warp() % kParts * 32, column = Warp() / kParts * 32;
  auto ds = ds_lanes.AtPiece(part / 8);
  auto k = lanes.AtPiece(column / 8);
  float dq[2][4][4];
  SetZero(dq);
#pragma unroll
  for (int i = 0; i < kOwn<kHS> / 16; ++i) {
    uint32_t a[2][4];
    LoadATransposed(a, ds, &shared.ds, i);
    AddTimes<T>(dq, a, k, &shared.k, i);
  }
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int t = query + part + RowOf(m, 2 * half);
      if (t >= rows) continue;
      float* sum = dq_sum.At(t, column + ColumnOf(0, 0));
#pragma unroll
      for (int n = 0; n < 4; ++n)
        ptx::AtomicAdd2(sum + 8 * n, dq[m][n][2 * half], dq[m][n][2 * half + 1]);
    }
}

// dk and dv of a tile of keys; adds its part to dq_sum, unscaled, if kWithDq.
template <typename T, int kHS, bool kWithDq>
__global__ void __launch_bounds__(kThreads, 2)
    KeysBackward(Shape shape, float scale, const float* lse, const T* dout, const T* qkv,
                 const float* delta, T* dqkv, float* dq_sum) {
  constexpr int kM = attention::kM<kHS>, kKeys = kOwn<kHS>, kQueries = kOther<kHS>;
  constexpr int kN = kAtOnce / 8;
  using Shared = std::conditional_t<kWithDq, KeysSharedWithDs<T, kHS>, KeysShared<T, kHS>>;
  auto& shared = SharedMemory<Shared>();
  Lanes<Tile<T, kOther<kHS>, kHS>> lanes(&shared);
  Lanes<DsTile<T, kHS>> ds_lanes(&shared);
  Place<kHS> at(shape);
  // The first tile has the most to do, and comes first.
  int first = at.tile * kKeys, rows = shape.T;
  int row = Warp() * 16 * kM, key = first + row;
  auto own = lanes.AtRow(row);
  auto q = at.Packed(qkv, 0), k = at.Packed(qkv, 1), v = at.Packed(qkv, 2), d = at.Merged(dout);

  // Queries after the last are zeros, and so are their lse and delta: they add nothing.
  auto copy_queries = [&](int query, int stage) {
    CopyRows(shared.q[stage], q, query, rows);
    CopyRows(shared.dout[stage], d, query, rows);
    int i = threadIdx.x % kQueries, t = query + i;
    const float* from = at.PerRow(threadIdx.x < kQueries ? lse : delta) + t;
    float* to = threadIdx.x < kQueries ? &shared.lse[stage][i] : &shared.delta[stage][i];
    if (threadIdx.x < 2 * kQueries) ptx::CopyAsync4(to, from, t < rows);
    ptx::CopyAsyncCommit();
  };
  CopyRows(shared.k, k, first, rows);
  CopyRows(shared.v, v, first, rows);
  copy_queries(first, 0);

  float dk[kM][kHS / 8][4], dv[kM][kHS / 8][4];
  SetZero(dk);
  SetZero(dv);
  for (int query = first, stage = 0; query < rows; query += kQueries, stage ^= 1) {
    ptx::CopyAsyncWait<0>();
    __syncthreads();
    // The other stage is free: all threads have passed the barrier since they read it.
    if (query + kQueries < rows) copy_queries(query + kQueries, stage ^ 1);
#pragma unroll 1
    for (int part = 0; part < kQueries; part += kAtOnce) {
      auto other = lanes.AtTile(stage).AtRow(part);
      auto own_ds = ds_lanes.AtRow(row).AtPiece(part / 8);
      int ahead = key - query - part;  // first key of the warp minus first query
      if (ahead >= kAtOnce) {          // no query sees a key
        if constexpr (kWithDq) {
          float none[kM][kN][4];
          SetZero(none);
          StoreAccumulator<T>(own_ds, &shared.ds, none, 1);
        }
        continue;
      }
      float s[kM][kN][4], ds[kM][kN][4];
      uint32_t a[kM][4];
      SetZero(s);
#pragma unroll
      for (int i = 0; i < kHS / 16; ++i) {
        LoadA(a, own, &shared.k, i);
        AddTimesTransposed<T>(s, a, other, shared.q, i);
      }
      Probabilities(s, scale * kLog2E, &shared.lse[stage][part]);
      if (ahead > -16 * kM) MaskTransposed(s, ahead);
#pragma unroll
      for (int i = 0; i < kAtOnce / 16; ++i) {
        ToA<T>(a, s, i);
        AddTimes<T>(dv, a, other, shared.dout, i);
      }
      SetZero(ds);
#pragma unroll
      for (int i = 0; i < kHS / 16; ++i) {
        LoadA(a, own, &shared.v, i);
        AddTimesTransposed<T>(ds, a, other, shared.dout, i);
      }
      ScoreGradients(ds, s, &shared.delta[stage][part]);
#pragma unroll
      for (int i = 0; i < kAtOnce / 16; ++i) {
        ToA<T>(a, ds, i);
        AddTimes<T>(dk, a, other, shared.q, i);
      }
      if constexpr (kWithDq) StoreAccumulator<T>(own_ds, &shared.ds, ds, 1);
    }
    if constexpr (kWithDq) {
      __syncthreads();
      AddDq<T, kHS>(shared, lanes, ds_lanes, at.Merged(dq_sum), query, rows);
    }
  }

  __syncthreads();
  StoreAccumulator<T>(own, &shared.k, dk, scale);
  StoreAccumulator<T>(own, &shared.v, dv, 1);
  __syncwarp();
  WriteRows<kM>(shared.k, row, at.Packed(dqkv, 1), first, rows);
  WriteRows<kM>(shared.v, row, at.Packed(dqkv, 2), first, rows);
}

template <typename T, int kHS>
struct QueriesShared {
  Tile<T, kOwn<kHS>, kHS> q, dout;  // in the end, q is dq
  Tile<T, kOther<kHS>, kHS> k[2], v[2];
};

// dq of a tile of queries.
template <typename T, int kHS>
__global__ void __launch_bounds__(kThreads, 2)
    QueriesBackward(Shape shape, float scale, const float* lse, const T* dout, const T* qkv,
                    const float* delta, T* dqkv) {
  constexpr int kM = attention::kM<kHS>, kQueries = kOwn<kHS>, kKeys = kOther<kHS>;
  constexpr int kN = kAtOnce / 8;
  auto& shared = SharedMemory<QueriesShared<T, kHS>>();
  Lanes<Tile<T, kOther<kHS>, kHS>> lanes(&shared);
  Place<kHS> at(shape);
  // The last tile has the most to do, and comes first.
  int first = (shape.tiles - 1 - at.tile) * kQueries, rows = shape.T;
  int end = min(first + kQueries, rows);
  int row = Warp() * 16 * kM, query = first + row;
  auto own = lanes.AtRow(row);
  auto q = at.Packed(qkv, 0), k = at.Packed(qkv, 1), v = at.Packed(qkv, 2), d = at.Merged(dout);

  auto copy_keys = [&](int key, int stage) {
    CopyRows(shared.k[stage], k, key, rows);
    CopyRows(shared.v[stage], v, key, rows);
    ptx::CopyAsyncCommit();
  };
  CopyRows(shared.q, q, first, rows);
  CopyRows(shared.dout, d, first, rows);
  copy_keys(0, 0);

  float shift[kM][2], row_sum[kM][2];
  for (int m = 0; m < kM; ++m)
    for (int half = 0; half < 2; ++half) {
      int t = query + RowOf(m, 2 * half);
      shift[m][half] = t < rows ? at.PerRow(lse)[t] * kLog2E : 0;
      row_sum[m][half] = t < rows ? at.PerRow(delta)[t] : 0;
    }
  float dq[kM][kHS / 8][4];
  SetZero(dq);
  for (int key = 0, stage = 0; key < end; key += kKeys, stage ^= 1) {
    ptx::CopyAsyncWait<0>();
    __syncthreads();
    if (key + kKeys < end) copy_keys(key + kKeys, stage ^ 1);
#pragma unroll 1
    for (int part = 0; part < kKeys; part += kAtOnce) {
      int ahead = key + part - query;  // first key minus first query of the warp
      if (ahead >= 16 * kM) break;     // no query sees a key
      auto other = lanes.AtTile(stage).AtRow(part);
      float s[kM][kN][4], ds[kM][kN][4];
      uint32_t a[kM][4];
      SetZero(s);
      SetZero(ds);
#pragma unroll
      for (int i = 0; i < kHS / 16; ++i) {
        LoadA(a, own, &shared.q, i);
        AddTimesTransposed<T>(s, a, other, shared.k, i);
        LoadA(a, own, &shared.dout, i);
        AddTimesTransposed<T>(ds, a, other, shared.v, i);
      }
      if (ahead > -kAtOnce) Mask(s, ahead);
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int n = 0; n < kN; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float p = ptx::Exp2(fmaf(s[m][n][i], scale * kLog2E, -shift[m][i / 2]));
            ds[m][n][i] = p * (ds[m][n][i] - row_sum[m][i / 2]);
          }
#pragma unroll
      for (int i = 0; i < kAtOnce / 16; ++i) {
        ToA<T>(a, ds, i);
        AddTimes<T>(dq, a, other, shared.k, i);
      }
    }
  }

  StoreAccumulator<T>(own, &shared.q, dq, scale);
  __syncwarp();
  WriteRows<kM>(shared.q, row, at.Packed(dqkv, 0), first, rows);
}

template <typename T, int kHS>
Status Backward(Stream stream, AttentionSizes sizes, bool deterministic, const T* out,
                const float* lse, const T* dout, const T* qkv, T* dqkv, float* delta,
                float* dq_sum) {
  Shape shape(sizes, kOwn<kHS>);
  int64_t blocks = sizes.B * sizes.NH * shape.tiles;
  float scale = 1 / std::sqrt(static_cast<float>(kHS));
  if (deterministic) dq_sum = nullptr;
  Status status = StartDelta<T, kHS>(stream, sizes, out, dout, delta, dq_sum);
  if (!status.ok()) return status;
  if (deterministic) {
    status = Launch(Kernel<KeysBackward<T, kHS, false>>, blocks, kThreads,
                    sizeof(KeysShared<T, kHS>), stream, shape, scale, lse, dout, qkv, delta, dqkv,
                    dq_sum);
    if (!status.ok()) return status;
    return Launch(Kernel<QueriesBackward<T, kHS>>, blocks, kThreads,
                  sizeof(QueriesShared<T, kHS>), stream, shape, scale, lse, dout, qkv, delta, dqkv);
  }
  status = Launch(Kernel<KeysBackward<T, kHS, true>>, blocks, kThreads,
                  sizeof(KeysSharedWithDs<T, kHS>), stream, shape, scale, lse, dout, qkv, delta,
                  dqkv, dq_sum);
  if (!status.ok()) return status;
  return StartRoundDq<T, kHS>(stream, sizes, scale, dq_sum, dqkv);
}

}  // namespace
}  // namespace attention

Status AttentionBackwardMma(Stream stream, Type type, AttentionSizes sizes, bool deterministic,
                            const void* out, const float* lse, const void* dout, const void* qkv,
                            void* dqkv, float* delta, float* dq_sum) {
  return ForTypeAndHeadSize(type, sizes.HS, [&](auto zero, auto head_size) {
    using T = decltype(zero);
    return attention::Backward<T, head_size>(
        stream, sizes, deterministic, static_cast<const T*>(out), lse,
        static_cast<const T*>(dout), static_cast<const T*>(qkv), static_cast<T*>(dqkv), delta,
        dq_sum);
  });
}

}  // namespace llmc::cuda
