// attention (llmc_jax/ops/attention.py): causal, on packed qkv, for each batch b and head h
//   out = softmax(q k^T / sqrt(HS)) v, lse = logsumexp of the scaled scores
//   dscores = att * (datt - sum_d(dout * out)) / sqrt(HS), att = e^(scores - lse), datt = dout v^T
//   dq = dscores k, dk = dscores^T q, dv = att^T dout
// Tiles of queries by tiles of keys with an online softmax (Milakov & Gimelshein 2018,
// arXiv:1805.02867; FlashAttention): nothing of size T x T. One thread takes a head, in float;
// no sums cross threads, so results do not depend on them.
#include <vector>

#include "common/buffer.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace llmc {
namespace {

constexpr int64_t kTile = 64;  // queries and keys in a tile: its scores are 16 KiB

struct Sizes {
  int64_t B, T, C, NH, HS;
};

// Reads the head's (T,HS) slice of a packed tensor whose rows are `stride` apart.
template <typename T>
std::vector<float> Load(const T* in, int64_t rows, int64_t HS, int64_t stride, float scale = 1) {
  std::vector<float> out(rows * HS);
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t d = 0; d < HS; ++d) out[t * HS + d] = ToFloat(in[t * stride + d]) * scale;
  return out;
}

std::vector<float> Transpose(const std::vector<float>& in, int64_t rows, int64_t columns) {
  std::vector<float> out(in.size());
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) out[j * rows + i] = in[i * columns + j];
  return out;
}

template <typename T>
void Save(const std::vector<float>& in, int64_t rows, int64_t HS, int64_t stride, T* out) {
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t d = 0; d < HS; ++d) Store(in[t * HS + d], &out[t * stride + d]);
}

// tile (queries, kTile) = q k^T for queries from i and keys from j; q (T,HS), k_transposed (HS,T).
void Scores(const Sizes& s, const std::vector<float>& q, const std::vector<float>& k_transposed,
            int64_t i, int64_t queries, int64_t j, int64_t keys, float* tile) {
  std::fill_n(tile, queries * kTile, 0.f);
  MatmulAdd(queries, keys, s.HS, &q[i * s.HS], s.HS, 1, &k_transposed[j], s.T, tile, kTile);
}

// Keys of the tile from j that the query at position t sees.
int64_t Visible(int64_t t, int64_t j, int64_t keys) { return std::min(keys, t - j + 1); }

template <typename T>
void HeadForward(const Sizes& s, const T* qkv, T* out, float* lse) {
  auto q = Load(qkv, s.T, s.HS, 3 * s.C, 1 / std::sqrt(float(s.HS)));
  auto k_transposed = Transpose(Load(qkv + s.C, s.T, s.HS, 3 * s.C), s.T, s.HS);
  auto v = Load(qkv + 2 * s.C, s.T, s.HS, 3 * s.C);
  std::vector<float> acc(s.T * s.HS, 0.f);
  std::vector<float> tile(kTile * kTile);
  for (int64_t i = 0; i < s.T; i += kTile) {
    int64_t queries = std::min(kTile, s.T - i);
    float max[kTile], sum[kTile] = {};  // of each query, over the keys so far
    std::fill_n(max, kTile, -std::numeric_limits<float>::infinity());
    for (int64_t j = 0; j <= i; j += kTile) {
      int64_t keys = std::min(kTile, s.T - j);
      Scores(s, q, k_transposed, i, queries, j, keys, tile.data());
      for (int64_t r = 0; r < queries; ++r) {
        float *row = &tile[r * kTile], *acc_row = &acc[(i + r) * s.HS];
        int64_t visible = Visible(i + r, j, keys);
        float new_max = std::max(max[r], RowMax(row, visible));
        float rescale = Exp(max[r] - new_max);
        RowExp(row, new_max, 1, visible, row);
        std::fill(row + visible, row + kTile, 0.f);
        float row_sum = 0;
        for (int64_t c = 0; c < visible; ++c) row_sum += row[c];
        sum[r] = sum[r] * rescale + row_sum;
        max[r] = new_max;
        for (int64_t d = 0; d < s.HS; ++d) acc_row[d] *= rescale;
      }
      MatmulAdd(queries, s.HS, keys, tile.data(), kTile, 1, &v[j * s.HS], s.HS, &acc[i * s.HS],
                s.HS);
    }
    for (int64_t r = 0; r < queries; ++r) {
      for (int64_t d = 0; d < s.HS; ++d) acc[(i + r) * s.HS + d] /= sum[r];
      lse[i + r] = max[r] + std::log(sum[r]);
    }
  }
  Save(acc, s.T, s.HS, s.C, out);
}

template <typename T>
void HeadBackward(const Sizes& s, const T* qkv, const T* out, const float* lse, const T* dout,
                  T* dqkv) {
  float scale = 1 / std::sqrt(float(s.HS));
  auto q = Load(qkv, s.T, s.HS, 3 * s.C, scale);  // scaled: dk needs it so, dq is scaled below
  auto k = Load(qkv + s.C, s.T, s.HS, 3 * s.C);
  auto k_transposed = Transpose(k, s.T, s.HS);
  auto v_transposed = Transpose(Load(qkv + 2 * s.C, s.T, s.HS, 3 * s.C), s.T, s.HS);
  auto d_out = Load(dout, s.T, s.HS, s.C);
  std::vector<float> dq(s.T * s.HS, 0.f), dk(s.T * s.HS, 0.f), dv(s.T * s.HS, 0.f);
  std::vector<float> row_sum(s.T, 0.f), att(kTile * kTile), dscores(kTile * kTile);
  for (int64_t t = 0; t < s.T; ++t)
    for (int64_t d = 0; d < s.HS; ++d)
      row_sum[t] += d_out[t * s.HS + d] * ToFloat(out[t * s.C + d]);
  for (int64_t j = 0; j < s.T; j += kTile) {
    int64_t keys = std::min(kTile, s.T - j);
    for (int64_t i = j; i < s.T; i += kTile) {
      int64_t queries = std::min(kTile, s.T - i);
      Scores(s, q, k_transposed, i, queries, j, keys, att.data());
      Scores(s, d_out, v_transposed, i, queries, j, keys, dscores.data());  // datt
      for (int64_t r = 0; r < queries; ++r) {
        float *att_row = &att[r * kTile], *dscores_row = &dscores[r * kTile];
        int64_t visible = Visible(i + r, j, keys);
        RowExp(att_row, lse[i + r], 1, visible, att_row);
        std::fill(att_row + visible, att_row + kTile, 0.f);
        for (int64_t c = 0; c < kTile; ++c)
          dscores_row[c] = att_row[c] * (dscores_row[c] - row_sum[i + r]);
      }
      MatmulAdd(keys, s.HS, queries, att.data(), 1, kTile, &d_out[i * s.HS], s.HS, &dv[j * s.HS],
                s.HS);
      MatmulAdd(keys, s.HS, queries, dscores.data(), 1, kTile, &q[i * s.HS], s.HS, &dk[j * s.HS],
                s.HS);
      MatmulAdd(queries, s.HS, keys, dscores.data(), kTile, 1, &k[j * s.HS], s.HS, &dq[i * s.HS],
                s.HS);
    }
  }
  for (float& x : dq) x *= scale;
  Save(dq, s.T, s.HS, 3 * s.C, dqkv);
  Save(dk, s.T, s.HS, 3 * s.C, dqkv + s.C);
  Save(dv, s.T, s.HS, 3 * s.C, dqkv + 2 * s.C);
}

// The sizes, or an error, from qkv (B,T,3C) and the number of heads.
ffi::Error GetSizes(const char* op, const Any& qkv, int64_t NH, Sizes* s) {
  auto shape = qkv.dimensions();
  if (shape.size() != 3 || NH < 1 || shape[2] % (3 * NH))
    return InvalidArgument(std::string(op) + ": qkv is " + ShapeString(shape) + " with " +
                           std::to_string(NH) + " heads, expected (B,T,3C) with C divisible by NH");
  *s = {shape[0], shape[1], shape[2] / 3, NH, shape[2] / 3 / NH};
  return ffi::Error::Success();
}

ffi::Error AttentionForward(ffi::ThreadPool pool, Any qkv, AnyOut out, F32Out lse, int64_t NH) {
  Sizes s;
  LLMC_RETURN_IF_ERROR(GetSizes("llmc_attention_forward", qkv, NH, &s));
  return WithFloatType("llmc_attention_forward", qkv.element_type(), [&](auto zero) {
    using T = decltype(zero);
    ParallelFor(pool, s.B * s.NH, [&](int64_t head) {
      int64_t row = head / s.NH * s.T, column = head % s.NH * s.HS;
      HeadForward(s, Data<T>(qkv) + row * 3 * s.C + column, Data<T>(out) + row * s.C + column,
                  lse->typed_data() + head * s.T);
    });
    return ffi::Error::Success();
  });
}

ffi::Error AttentionBackward(ffi::ThreadPool pool, Any out, F32 lse, Any dout, Any qkv,
                             AnyOut dqkv, int64_t NH) {
  Sizes s;
  LLMC_RETURN_IF_ERROR(GetSizes("llmc_attention_backward", qkv, NH, &s));
  LLMC_RETURN_IF_ERROR(
      CheckShape("llmc_attention_backward", "dout", dout.dimensions(), {s.B, s.T, s.C}));
  LLMC_RETURN_IF_ERROR(
      CheckShape("llmc_attention_backward", "out", out.dimensions(), {s.B, s.T, s.C}));
  LLMC_RETURN_IF_ERROR(
      CheckShape("llmc_attention_backward", "lse", lse.dimensions(), {s.B, s.NH, s.T}));
  if (dout.element_type() != qkv.element_type() || out.element_type() != qkv.element_type())
    return InvalidArgument("llmc_attention_backward: qkv, out and dout differ in type");
  return WithFloatType("llmc_attention_backward", qkv.element_type(), [&](auto zero) {
    using T = decltype(zero);
    ParallelFor(pool, s.B * s.NH, [&](int64_t head) {
      int64_t row = head / s.NH * s.T, column = head % s.NH * s.HS;
      HeadBackward(s, Data<T>(qkv) + row * 3 * s.C + column, Data<T>(out) + row * s.C + column,
                   lse.typed_data() + head * s.T, Data<T>(dout) + row * s.C + column,
                   Data<T>(dqkv) + row * 3 * s.C + column);
    });
    return ffi::Error::Success();
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_attention_forward, AttentionForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Any>()  // qkv (B,T,3C)
                                  .Ret<Any>()  // out (B,T,C)
                                  .Ret<F32>()  // lse (B,NH,T)
                                  .Attr<int64_t>("NH"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_attention_backward, AttentionBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Any>()  // out (B,T,C)
                                  .Arg<F32>()  // lse (B,NH,T)
                                  .Arg<Any>()  // dout (B,T,C)
                                  .Arg<Any>()  // qkv (B,T,3C)
                                  .Ret<Any>()  // dqkv (B,T,3C)
                                  .Attr<int64_t>("NH"));

}  // namespace llmc
