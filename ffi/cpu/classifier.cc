// classifier (llmc_jax/ops/classifier.py), from logits to losses and their gradient:
//   losses = logsumexp(logits[:V]) - logits[target]
//   dlogits = (softmax(logits[:V]) - onehot(target)) * dloss, 0 in the columns from V on
// A row with target < 0 is ignored: loss and gradient 0. dlogits may be the logits' own memory:
// each element is read before it is written. One thread takes a row.
#include <vector>

#include "common/buffer.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace llmc {
namespace {

// The gradient of one row, from its largest logit and the sum of the exponentials.
void RowGradient(const float* logits, float max, float factor, int64_t V, float* dlogits) {
  RowExp(logits, max, factor, V, dlogits);
}

void RowGradient(const float* logits, float max, float factor, int64_t V, BF16* dlogits) {
  constexpr int64_t kChunk = 256;
  float chunk[kChunk];
  for (int64_t start = 0; start < V; start += kChunk) {
    int64_t n = std::min(kChunk, V - start);
    RowExp(logits + start, max, factor, n, chunk);
    for (int64_t i = 0; i < n; ++i) Store(chunk[i], &dlogits[start + i]);
  }
}

template <typename T>
void Row(const float* logits, int32_t target, float dloss, int64_t V, int64_t Vp, float* loss,
         T* dlogits) {
  if (target < 0) {
    *loss = 0;
    std::fill_n(dlogits, Vp, T{});
    return;
  }
  float max = RowMax(logits, V);
  float sum = RowSumExp(logits, max, V);
  float target_logit = logits[target];
  *loss = std::log(sum) + max - target_logit;
  RowGradient(logits, max, dloss / sum, V, dlogits);
  // Not by adding to the element just written: in bfloat16 that would round twice.
  Store((Exp(target_logit - max) / sum - 1) * dloss, &dlogits[target]);
  std::fill(dlogits + V, dlogits + Vp, T{});
}

ffi::Error ClassifierForward(ffi::ThreadPool pool, F32 logits, S32 targets, F32 dlosses,
                             F32Out losses, AnyOut dlogits, int64_t V) {
  int64_t N = targets.element_count(), Vp = logits.dimensions().back();
  LLMC_RETURN_IF_ERROR(
      CheckShape("llmc_classifier_forward", "logits", logits.dimensions(), {N, Vp}));
  if (V > Vp)
    return InvalidArgument("llmc_classifier_forward: V is " + std::to_string(V) +
                           " and logits have " + std::to_string(Vp) + " columns");
  for (int64_t row = 0; row < N; ++row)
    if (targets.typed_data()[row] >= V)
      return InvalidArgument("llmc_classifier_forward: target " +
                             std::to_string(targets.typed_data()[row]) + " of row " +
                             std::to_string(row) + " is not below V = " + std::to_string(V));
  return WithFloatType("llmc_classifier_forward", dlogits->element_type(), [&](auto zero) {
    using T = decltype(zero);
    ParallelFor(pool, N, [&](int64_t row) {
      Row(logits.typed_data() + row * Vp, targets.typed_data()[row], dlosses.typed_data()[row], V,
          Vp, losses->typed_data() + row, Data<T>(dlogits) + row * Vp);
    });
    return ffi::Error::Success();
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_classifier_forward, ClassifierForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<F32>()  // logits (B*T,Vp)
                                  .Arg<S32>()  // targets (B,T)
                                  .Arg<F32>()  // dlosses (B,T)
                                  .Ret<F32>()  // losses (B,T)
                                  .Ret<Any>()  // dlogits (B*T,Vp)
                                  .Attr<int64_t>("V"));

}  // namespace llmc
