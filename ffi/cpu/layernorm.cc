// layernorm (llmc_jax/ops/layernorm.py):
//   out = norm * weight + bias, norm = (inp - mean) * rstd
//   dinp = rstd * (dnorm - mean(dnorm) - norm * mean(dnorm * norm)), dnorm = dout * weight
//   dweight = sum(dout * norm), dbias = sum(dout), over the rows
// One thread takes a block of rows. The sums over rows are made per block and then over blocks,
// in an order that does not depend on the threads.
#include <vector>

#include "common/buffer.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace llmc {
namespace {

constexpr int64_t kBlockRows = 16;

LLMC_CLONES void RowStatistics(const float* x, int64_t C, float eps, float* mean, float* rstd) {
  float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < C; ++i) sum += x[i];
  float m = sum / C;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < C; ++i) squares += (x[i] - m) * (x[i] - m);
  *mean = m;
  *rstd = 1 / std::sqrt(squares / C + eps);
}

// x becomes dinp of the row whose gradient is dy; dweight and dbias grow by the row's share.
LLMC_CLONES void RowBackward(float* x, const float* dy, const float* weight, int64_t C, float mean,
                             float rstd, float* dweight, float* dbias) {
  float dnorm_sum = 0, dnorm_norm_sum = 0;
#pragma omp simd reduction(+ : dnorm_sum, dnorm_norm_sum)
  for (int64_t i = 0; i < C; ++i) {
    float norm = (x[i] - mean) * rstd, dnorm = dy[i] * weight[i];
    dnorm_sum += dnorm;
    dnorm_norm_sum += dnorm * norm;
    dweight[i] += dy[i] * norm;
    dbias[i] += dy[i];
  }
  float dnorm_mean = dnorm_sum / C, dnorm_norm_mean = dnorm_norm_sum / C;
#pragma omp simd
  for (int64_t i = 0; i < C; ++i) {
    float norm = (x[i] - mean) * rstd;
    x[i] = rstd * (dy[i] * weight[i] - dnorm_mean - norm * dnorm_norm_mean);
  }
}

template <typename T>
void LoadRow(const T* in, int64_t C, float* out) {
  for (int64_t i = 0; i < C; ++i) out[i] = ToFloat(in[i]);
}

template <typename T>
void StoreRow(const float* in, int64_t C, T* out) {
  for (int64_t i = 0; i < C; ++i) Store(in[i], &out[i]);
}

template <typename T>
void Forward(ffi::ThreadPool& pool, int64_t N, int64_t C, const T* inp, const float* weight,
             const float* bias, float eps, T* out, float* mean, float* rstd) {
  ParallelFor(pool, (N + kBlockRows - 1) / kBlockRows, [&](int64_t block) {
    std::vector<float> x(C);
    for (int64_t row = block * kBlockRows; row < std::min(N, (block + 1) * kBlockRows); ++row) {
      LoadRow(inp + row * C, C, x.data());
      RowStatistics(x.data(), C, eps, &mean[row], &rstd[row]);
      for (int64_t i = 0; i < C; ++i)
        Store((x[i] - mean[row]) * rstd[row] * weight[i] + bias[i], &out[row * C + i]);
    }
  });
}

template <typename T>
void Backward(ffi::ThreadPool& pool, int64_t N, int64_t C, const float* mean, const float* rstd,
              const T* dout, const T* inp, const float* weight, T* dinp, float* dweight,
              float* dbias) {
  int64_t blocks = (N + kBlockRows - 1) / kBlockRows;
  std::vector<float> partial(blocks * 2 * C, 0.f);  // each block's dweight, dbias
  ParallelFor(pool, blocks, [&](int64_t block) {
    float* share = &partial[block * 2 * C];
    std::vector<float> x(C), dy(C);
    for (int64_t row = block * kBlockRows; row < std::min(N, (block + 1) * kBlockRows); ++row) {
      LoadRow(inp + row * C, C, x.data());
      LoadRow(dout + row * C, C, dy.data());
      RowBackward(x.data(), dy.data(), weight, C, mean[row], rstd[row], share, share + C);
      StoreRow(x.data(), C, dinp + row * C);
    }
  });
  std::fill_n(dweight, C, 0.f);
  std::fill_n(dbias, C, 0.f);
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t i = 0; i < C; ++i) {
      dweight[i] += partial[block * 2 * C + i];
      dbias[i] += partial[block * 2 * C + C + i];
    }
}

ffi::Error LayerNormForward(ffi::ThreadPool pool, Any inp, F32 weight, F32 bias, AnyOut out,
                            F32Out mean, F32Out rstd, float eps) {
  int64_t C = weight.element_count(), N = mean->element_count();
  if (inp.element_count() != size_t(N * C) || inp.dimensions().back() != C)
    return InvalidArgument("llmc_layernorm_forward: inp is " + ShapeString(inp.dimensions()) +
                           " and weight " + ShapeString(weight.dimensions()) +
                           ", expected (B,T,C) and (C)");
  LLMC_RETURN_IF_ERROR(CheckShape("llmc_layernorm_forward", "bias", bias.dimensions(), {C}));
  return WithFloatType("llmc_layernorm_forward", inp.element_type(), [&](auto zero) {
    using T = decltype(zero);
    Forward(pool, N, C, Data<T>(inp), weight.typed_data(), bias.typed_data(), eps, Data<T>(out),
            mean->typed_data(), rstd->typed_data());
    return ffi::Error::Success();
  });
}

ffi::Error LayerNormBackward(ffi::ThreadPool pool, F32 mean, F32 rstd, Any dout, Any inp,
                             F32 weight, F32 /*bias*/, AnyOut dinp, F32Out dweight, F32Out dbias,
                             float /*eps*/) {
  int64_t C = weight.element_count(), N = mean.element_count();
  if (inp.element_count() != size_t(N * C) || dout.element_count() != size_t(N * C) ||
      dout.element_type() != inp.element_type())
    return InvalidArgument("llmc_layernorm_backward: dout is " + ShapeString(dout.dimensions()) +
                           ", inp " + ShapeString(inp.dimensions()) + " and weight " +
                           ShapeString(weight.dimensions()) +
                           ", expected (B,T,C) twice in one type and (C)");
  return WithFloatType("llmc_layernorm_backward", inp.element_type(), [&](auto zero) {
    using T = decltype(zero);
    Backward(pool, N, C, mean.typed_data(), rstd.typed_data(), Data<T>(dout), Data<T>(inp),
             weight.typed_data(), Data<T>(dinp), dweight->typed_data(), dbias->typed_data());
    return ffi::Error::Success();
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_layernorm_forward, LayerNormForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Any>()  // inp (B,T,C)
                                  .Arg<F32>()  // weight (C)
                                  .Arg<F32>()  // bias (C)
                                  .Ret<Any>()  // out (B,T,C)
                                  .Ret<F32>()  // mean (B,T)
                                  .Ret<F32>()  // rstd (B,T)
                                  .Attr<float>("eps"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_layernorm_backward, LayerNormBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<F32>()  // mean (B,T)
                                  .Arg<F32>()  // rstd (B,T)
                                  .Arg<Any>()  // dout (B,T,C)
                                  .Arg<Any>()  // inp (B,T,C)
                                  .Arg<F32>()  // weight (C)
                                  .Arg<F32>()  // bias (C)
                                  .Ret<Any>()  // dinp (B,T,C)
                                  .Ret<F32>()  // dweight (C)
                                  .Ret<F32>()  // dbias (C)
                                  .Attr<float>("eps"));

}  // namespace llmc
