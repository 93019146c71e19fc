// Attention backward on the tensor cores of sm_90, HS 64. With p the probabilities,
//   dv = p^T dout,  ds = p (dout v^T - delta),  dq = ds k / sqrt(HS),  dk = ds^T q / sqrt(HS),
// where delta = rowsum(dout out) and p comes again from q k^T and lse (Shah et al. 2024,
// arXiv:2407.08608).
//
// A block has a tile of 128 keys, 64 for each of two warpgroups, and goes over the queries from the
// diagonal on, 64 at a time. Scores and ds are made transposed, keys as rows, for then they are in
// the registers where the products for dv and dk want them. Only dq needs ds of both warpgroups, by
// way of shared memory; they make it in turn, one for each tile of queries, and add it in float32
// to a sum over blocks that a kernel of its own rounds. The first tile of queries is before the
// second half of the keys, and the first warpgroup alone has it.
//
// The sum, dq_sum (B,NH,tiles of 64 queries), has a tile's numbers in the order of the registers
// that they come from, so that a warp adds, and later reads, 512 bytes that follow each other.
#include "cuda/attention_hopper.cuh"
#include "cuda/attention_pointwise.cuh"

namespace llmc::cuda {
namespace hopper {
namespace {

constexpr int kHS = 64, kKeys = 128, kOwn = kKeys / kConsumers, kQueries = 64, kStages = 4;
// The second warpgroup passes over the first tile of queries without a wait, and of a barrier that
// is a whole phase behind a wait would see nothing. With four stages, before it waits for a tile in
// the same place there are two that both warpgroups have; for one of them it waits for the first
// warpgroup, and that has waited for all tiles before.
static_assert(kStages >= 4);
static_assert(AttentionDqRows(1) == kQueries);

template <typename T>
struct alignas(1024) BackwardShared {
  Tile<T, kOwn> k[2][kConsumers], v[2][kConsumers];
  Tile<T, kQueries> q[kStages], dout[kStages];
  Tile<T, kOwn> ds[2][kConsumers];  // a key a row
  Tile<T, kOwn> dk[kConsumers], dv[kConsumers];
  alignas(16) float lse[kStages][kQueries], delta[kStages][kQueries];  // lse: times log2(e)
  Room kv_room[2], q_room[kStages];
};

// Barriers of consumers: ds is there, one for each buffer; and one for each consumer on its own.
enum { kDs = 1, kOwnBarrier = kDs + 2 };

// Has the copy engine bring all tiles of the block, and brings lse and delta. By one warp.
template <typename T>
__device__ inline void Bring(BackwardShared<T>& shared, const Shape& shape,
                             const ptx::TensorMap& qkv, const ptx::TensorMap& dout,
                             const float* lse, const float* delta) {
  int lane = threadIdx.x % kWarpSize;
  Ring<2> kv;
  Ring<kStages> q;
  for (Work work(shape); work.Left(); work.Next(), kv.Next()) {
    int first = work.tile * kKeys;
    if (lane == 0) {
      Room& room = shared.kv_room[kv.stage];
      room.WaitUntilEmpty(kv.parity);
      room.Expect(sizeof(shared.k[0]) + sizeof(shared.v[0]));
#pragma unroll
      for (int i = 0; i < kConsumers; ++i) {
        ptx::LoadBox(shared.k[kv.stage][i], qkv, &room.full, 0, shape.NH + work.h,
                     first + i * kOwn, work.b);
        ptx::LoadBox(shared.v[kv.stage][i], qkv, &room.full, 0, 2 * shape.NH + work.h,
                     first + i * kOwn, work.b);
      }
    }
    int64_t head = (int64_t{work.b} * shape.NH + work.h) * shape.T;
    for (int query = first; query < shape.T; query += kQueries, q.Next()) {
      // Queries after the last are zeros, and so are their lse and delta: they add nothing.
      float row_lse[2], row_delta[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        int t = query + lane + i * kWarpSize;
        row_lse[i] = t < shape.T ? lse[head + t] * kLog2E : 0;
        row_delta[i] = t < shape.T ? delta[head + t] : 0;
      }
      Room& room = shared.q_room[q.stage];
      room.WaitUntilEmpty(q.parity);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        shared.lse[q.stage][lane + i * kWarpSize] = row_lse[i];
        shared.delta[q.stage][lane + i * kWarpSize] = row_delta[i];
      }
      __syncwarp();
      if (lane == 0) {
        room.Expect(sizeof(shared.q[0]) + sizeof(shared.dout[0]));
        ptx::LoadBox(shared.q[q.stage], qkv, &room.full, 0, work.h, query, work.b);
        ptx::LoadBox(shared.dout[q.stage], dout, &room.full, 0, work.h, query, work.b);
      }
    }
  }
}

// d = a b^T: of keys or values, and queries or dout.
template <typename T>
__device__ inline void StartTimesTransposed(float (&d)[32], const Tile<T, kOwn>& own,
                                            const Tile<T, kQueries>& other) {
  uint64_t a = ptx::Operand(ptx::SharedAddress(own)), b = ptx::Operand(ptx::SharedAddress(other));
#pragma unroll
  for (int i = 0; i < 4; ++i)
    ptx::Product<T, false, false>(d, a + i * ptx::kNextColumns, b + i * ptx::kNextColumns, i > 0);
  ptx::ProductCommit();
}

// d += a b.
template <typename T>
__device__ inline void StartTimes(float (&d)[32], const uint32_t (&a)[4][4],
                                  const Tile<T, kQueries>& other) {
  uint64_t b = ptx::Operand(ptx::SharedAddress(other));
#pragma unroll
  for (int i = 0; i < 4; ++i) ptx::Product<T, true>(d, a[i], b + i * ptx::kNextRows, true);
  ptx::ProductCommit();
}

// dq = ds k, of the first kRows keys.
template <typename T, int kRows>
__device__ inline void StartDq(float (&dq)[32], const Tile<T, kOwn> (&ds)[kConsumers],
                               const Tile<T, kOwn> (&k)[kConsumers]) {
  uint64_t a = ptx::Operand(ptx::SharedAddress(ds)), b = ptx::Operand(ptx::SharedAddress(k));
#pragma unroll
  for (int i = 0; i < kRows / 16; ++i)
    ptx::Product<T, true, true>(dq, a + i * ptx::kNextRows, b + i * ptx::kNextRows, i > 0);
  ptx::ProductCommit();
}

// Numbers of this thread's queries among kSize.
template <int kSize>
struct QueryNumbers {
  float2 at[kSize / 8];

  __device__ void Load(const float (&tile)[kSize]) {
#pragma unroll
    for (int n = 0; n < kSize / 8; ++n)
      at[n] = *reinterpret_cast<const float2*>(&tile[8 * n + ColumnOfThread()]);
  }
  // Of number i of an accumulator.
  __device__ float Of(int i) const { return i % 2 ? at[i / 4].y : at[i / 4].x; }
};

// p = exp(scores - lse), times log2(e) as the scores are.
template <int kSize>
__device__ inline void Probabilities(float (&s)[kSize], float scale,
                                     const QueryNumbers<2 * kSize>& lse) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) s[i] = ptx::Exp2(fmaf(s[i], scale, -lse.Of(i)));
}

// No probability for the keys after a query; `ahead`: first key minus first query.
template <int kSize>
__device__ inline void MaskTransposed(float (&p)[kSize], int ahead) {
  int key = RowOfThread() - ColumnOfThread() + ahead;
#pragma unroll
  for (int i = 0; i < kSize; ++i)
    if (key + i % 4 / 2 * 8 > i / 4 * 8 + i % 2) p[i] = 0;
}

// ds = p (dp - delta), where dp is.
template <int kSize>
__device__ inline void ScoreGradients(float (&dp)[kSize], const float (&p)[kSize],
                                      const QueryNumbers<2 * kSize>& delta) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) dp[i] = p[i] * (dp[i] - delta.Of(i));
}

// Adds dq to a tile of dq_sum, where thread t of a warpgroup has dq[0..3] from number 4 t on, which
// is `sum`, and the next four after those of all threads. Rows after the last query are there too,
// and to them zeros are added.
template <int kSize>
__device__ inline void AddDq(const float (&dq)[kSize], float* sum) {
#pragma unroll
  for (int i = 0; i < kSize; i += 4)
    ptx::AtomicAdd4(sum + i * ptx::kWarpgroup, dq[i], dq[i + 1], dq[i + 2], dq[i + 3]);
}

// A warpgroup's part of all tiles of the block; me: which it is.
template <typename T>
__device__ inline void Compute(BackwardShared<T>& shared, const Shape& shape, float scale, int me,
                               const ptx::TensorMap& dqkv, float* dq_sum, int dq_rows) {
  int thread = threadIdx.x % ptx::kWarpgroup;
  Ring<2> kv;
  Ring<kStages> ring, last;
  float s[32], dp[32], dk[32], dv[32], dq[32];
  uint32_t p[4][4], ds[4][4];

  int turn = 0;  // whose it is to make dq
  for (Work work(shape); work.Left(); work.Next(), kv.Next()) {
    int first = work.tile * kKeys;
    float* head_dq = dq_sum + (int64_t{work.b} * shape.NH + work.h) * dq_rows * kHS + 4 * thread;
    auto &k = shared.k[kv.stage], &v = shared.v[kv.stage];
#pragma unroll
    for (int i = 0; i < 32; ++i) dk[i] = dv[i] = 0;
    shared.kv_room[kv.stage].WaitUntilFull(kv.parity);
    // `diagonal`: of the first tile of queries, which the second half of the keys comes after.
    auto add_queries = [&](int query, auto diagonal) {
      constexpr bool kDiagonal = decltype(diagonal)::value;
      auto &q = shared.q[ring.stage], &dout = shared.dout[ring.stage];
      QueryNumbers<kQueries> lse, delta;
      shared.q_room[ring.stage].WaitUntilFull(ring.parity);
      ptx::ProductFence(s, dp);
      StartTimesTransposed<T>(s, k[me], q);
      StartTimesTransposed<T>(dp, v[me], dout);
      lse.Load(shared.lse[ring.stage]);
      delta.Load(shared.delta[ring.stage]);
      if constexpr (!kDiagonal) {
        ptx::ProductWait<2>(dv, dk, p, ds);
        if (query > first + kQueries) shared.q_room[last.stage].Release();
      }
      ptx::ProductWait<1>(s);
      Probabilities(s, scale * kLog2E, lse);
      int ahead = first + me * kOwn - query;
      if (ahead > -kOwn) MaskTransposed(s, ahead);
      Round<T>(p, s);
      ptx::ProductFence(dv, p);
      StartTimes<T>(dv, p, dout);
      ptx::ProductWait<1>(dp);
      ScoreGradients(dp, s, delta);
      Round<T>(ds, dp);
      // The buffer was read for dq two tiles ago, which is over: whoever made it came to the
      // barrier of the last tile after that. Before the product, whose registers nobody may touch.
      StoreRounded(shared.ds[turn][me], ds);
      ptx::FenceProxyAsync();
      ptx::ProductFence(dk, ds);
      StartTimes<T>(dk, ds, q);
      if (kDiagonal || turn == me) {
        if constexpr (kDiagonal)
          ptx::NamedBarrierSync(kOwnBarrier + me, ptx::kWarpgroup);
        else
          ptx::NamedBarrierSync(kDs + turn, kConsumers * ptx::kWarpgroup);
        ptx::ProductFence(dq);
        StartDq<T, kDiagonal ? kOwn : kKeys>(dq, shared.ds[turn], k);
        ptx::ProductWait<0>(dq, dv, dk, p, ds);
        AddDq(dq, head_dq + query * kHS);
      } else {
        ptx::NamedBarrierArrive(kDs + turn, kConsumers * ptx::kWarpgroup);
      }
    };
    if (me == 0) add_queries(first, std::true_type{});
    shared.q_room[ring.stage].Release();
    ring.Next();
    for (int query = first + kQueries; query < shape.T; query += kQueries, turn ^= 1) {
      add_queries(query, std::false_type{});
      last = ring;
      ring.Next();
    }
    ptx::ProductWait<0>(dv, dk, p, ds);
    if (first + kQueries < shape.T) shared.q_room[last.stage].Release();
    shared.kv_room[kv.stage].Release();

    // The tiles before these may still be read.
    if (thread == 0) ptx::StoreWait();
    ptx::NamedBarrierSync(kOwnBarrier + me, ptx::kWarpgroup);
    Round<T>(ds, dk, scale);
    StoreRounded(shared.dk[me], ds);
    Round<T>(p, dv);
    StoreRounded(shared.dv[me], p);
    ptx::FenceProxyAsync();
    ptx::NamedBarrierSync(kOwnBarrier + me, ptx::kWarpgroup);
    if (thread == 0) {
      int row = first + me * kOwn;
      ptx::StoreBox(dqkv, shared.dk[me], 0, shape.NH + work.h, row, work.b);
      ptx::StoreBox(dqkv, shared.dv[me], 0, 2 * shape.NH + work.h, row, work.b);
      ptx::StoreCommit();
    }
  }
  // Shared memory must outlive what reads it.
  if (thread == 0) ptx::StoreWait();
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    Backward(Shape shape, float scale, const __grid_constant__ ptx::TensorMap qkv,
             const __grid_constant__ ptx::TensorMap dout,
             const __grid_constant__ ptx::TensorMap dqkv, const float* lse, const float* delta,
             float* dq_sum, int dq_rows) {
#if LLMC_HOPPER
  auto& shared = SharedMemory<BackwardShared<T>>();
  if (threadIdx.x == 0) {
    ptx::Prefetch(qkv);
    ptx::Prefetch(dout);
    ptx::Prefetch(dqkv);
    for (Room& room : shared.kv_room) room.Init(kConsumerWarps);
    for (Room& room : shared.q_room) room.Init(kConsumerWarps);
    ptx::FenceBarrierInit();
  }
  __syncthreads();
  int warpgroup = ptx::Warpgroup();
  if (warpgroup == 0) {
    ptx::FewerRegisters<kProducerRegisters>();
    if (threadIdx.x < kWarpSize) Bring(shared, shape, qkv, dout, lse, delta);
  } else {
    ptx::MoreRegisters<kConsumerRegisters>();
    Compute(shared, shape, scale, warpgroup - 1, dqkv, dq_sum, dq_rows);
  }
#else
  __trap();
#endif
}

// dq = scale dq_sum, into dqkv: a tile of queries of a head by a warpgroup.
template <typename T>
__global__ void __launch_bounds__(ptx::kWarpgroup)
    RoundDq(Shape shape, float scale, const float* dq_sum,
            const __grid_constant__ ptx::TensorMap dqkv) {
#if LLMC_HOPPER
  auto& tile = SharedMemory<Tile<T, kQueries>>();
  if (threadIdx.x == 0) ptx::Prefetch(dqkv);
  int query = blockIdx.x % shape.tiles * kQueries, head = blockIdx.x / shape.tiles;
  const float* sum = dq_sum + int64_t{blockIdx.x} * kQueries * kHS + 4 * threadIdx.x;
  float d[32];
#pragma unroll
  for (int i = 0; i < 32; i += 4) {
    auto four = Vec<float>::LoadStreaming(sum + i * ptx::kWarpgroup);
#pragma unroll
    for (int j = 0; j < 4; ++j) d[i + j] = four.at[j];
  }
  uint32_t dq[4][4];
  Round<T>(dq, d, scale);
  StoreRounded(tile, dq);
  ptx::FenceProxyAsync();
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::StoreBox(dqkv, tile, 0, head % shape.NH, query, head / shape.NH);
    ptx::StoreCommit();
    ptx::StoreWait();  // shared memory must outlive what reads it
  }
#else
  __trap();
#endif
}

template <typename T>
Status Run(Stream stream, AttentionSizes sizes, const T* out, const float* lse, const T* dout,
           const T* qkv, T* dqkv, float* delta, float* dq_sum) {
  Shape shape(sizes, kKeys), dq_shape(sizes, kQueries);
  int NH = shape.NH;
  float scale = 1 / std::sqrt(static_cast<float>(kHS));
  ptx::TensorMap qkv_map, dout_map, dqkv_map;
  Status status = MapRows(&qkv_map, sizes, 3 * NH, 64, qkv);
  if (status.ok()) status = MapRows(&dout_map, sizes, NH, 64, dout);
  if (status.ok()) status = MapRows(&dqkv_map, sizes, 3 * NH, 64, dqkv);
  if (status.ok())
    status = attention::StartDelta<T, kHS>(stream, sizes, out, dout, delta, dq_sum);
  if (status.ok())
    status = Launch(Kernel<Backward<T>>, Blocks(shape), kThreads, sizeof(BackwardShared<T>),
                    stream, shape, scale, qkv_map, dout_map, dqkv_map, lse, delta, dq_sum,
                    AttentionDqRows(sizes.T));
  if (status.ok())
    status = Launch(Kernel<RoundDq<T>>, sizes.B * NH * dq_shape.tiles, ptx::kWarpgroup,
                    sizeof(Tile<T, kQueries>), stream, dq_shape, scale, dq_sum, dqkv_map);
  return status;
}

}  // namespace
}  // namespace hopper

Status AttentionBackwardHopper(Stream stream, Type type, AttentionSizes sizes, const void* out,
                               const float* lse, const void* dout, const void* qkv, void* dqkv,
                               float* delta, float* dq_sum) {
  if (sizes.HS != hopper::kHS || type == Type::kF32)
    return {"no kernel of attention for this type and head size"};
  auto run = [&](auto zero) {
    using T = decltype(zero);
    return hopper::Run<T>(stream, sizes, static_cast<const T*>(out), lse,
                          static_cast<const T*>(dout), static_cast<const T*>(qkv),
                          static_cast<T*>(dqkv), delta, dq_sum);
  };
  return type == Type::kBF16 ? run(bf16{}) : run(f16{});
}

}  // namespace llmc::cuda
