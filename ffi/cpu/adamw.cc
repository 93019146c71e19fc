// Handlers of adamw and global_norm: see adamw.h.
#include <cmath>
#include <vector>

#include "cpu/handler.h"

namespace llmc {
namespace {

// Leaf i of the k-th of several lists of n float32 arrays, of `size` elements.
const float* Leaf(Checker& check, const ffi::RemainingArgs& args, size_t n, size_t k, size_t i,
                  int64_t size) {
  auto buffer = args.get<F32>(k * n + i);
  if (!buffer.has_value()) {
    check.Fail("leaf " + std::to_string(i) + ": " + buffer.error().message());
    return nullptr;
  }
  int64_t count = buffer->element_count();
  check.Require(size == count, "leaf " + std::to_string(i) + " has " + std::to_string(count) +
                                   " elements in one list and " + std::to_string(size) +
                                   " in another, expected the same in all");
  return buffer->typed_data();
}

// The array `index`, which is the gradient of leaf i.
Gradient GradientOf(Checker& check, const ffi::RemainingArgs& args, size_t index, size_t i) {
  auto buffer = args.get<Any>(index);
  if (!buffer.has_value()) {
    check.Fail("leaf " + std::to_string(i) + ": " + buffer.error().message());
    return {};
  }
  check.FloatType(("gradient of leaf " + std::to_string(i)).c_str(), *buffer);
  return {buffer->untyped_data(), static_cast<int64_t>(buffer->element_count()),
          buffer->element_type() == ffi::BF16};
}

// params, m, v are updated in place: XLA gives a result the memory of its argument.
float* InPlace(Checker& check, ffi::RemainingRets& rets, size_t i, const float* argument) {
  auto result = rets.get<F32>(i);
  float* data = result.has_value() ? (*result)->typed_data() : nullptr;
  check.Require(data == argument, "result " + std::to_string(i) + " is not in place");
  return data;
}

ffi::Error AdamWUpdate(ffi::ThreadPool pool, F32 lr, F32 scale, S32 step, ffi::RemainingArgs args,
                       ffi::RemainingRets rets, ffi::Span<const float> weight_decay, float beta1,
                       float beta2, float eps) {
  Checker check("llmc_adamw");
  size_t n = weight_decay.size();
  check.Require(args.size() == 4 * n && rets.size() == 3 * n,
                std::to_string(args.size()) + " arrays and " + std::to_string(n) +
                    " weight decays, expected params, grads, m and v of as many leaves");
  std::vector<AdamWLeaf> leaves(n);
  for (size_t i = 0; check.ok() && i < n; ++i) {
    AdamWLeaf& leaf = leaves[i];
    leaf.grad = GradientOf(check, args, n + i, i);
    const float* param = Leaf(check, args, n, 0, i, leaf.grad.size);
    const float* m = Leaf(check, args, n, 2, i, leaf.grad.size);
    const float* v = Leaf(check, args, n, 3, i, leaf.grad.size);
    leaf.param = InPlace(check, rets, i, param);
    leaf.m = InPlace(check, rets, n + i, m);
    leaf.v = InPlace(check, rets, 2 * n + i, v);
    leaf.weight_decay = weight_decay[i];
  }
  return Run(check, pool, [&](Threads& threads) {
    if (!std::isfinite(scale.typed_data()[0])) return;  // no update
    float t = static_cast<float>(step.typed_data()[0]);
    AdamWHyper hyper = {lr.typed_data()[0],
                        scale.typed_data()[0],
                        beta1,
                        beta2,
                        eps,
                        1 / (1 - std::pow(beta1, t)),
                        1 / (1 - std::pow(beta2, t))};
    ActiveKernels().adamw(threads, n, leaves.data(), hyper);
  });
}

ffi::Error GlobalNorm(ffi::ThreadPool pool, ffi::RemainingArgs args, F32Out norm) {
  Checker check("llmc_global_norm");
  std::vector<Gradient> grads(args.size());
  for (size_t i = 0; i < args.size(); ++i) grads[i] = GradientOf(check, args, i, i);
  return Run(check, pool, [&](Threads& threads) {
    double sum = ActiveKernels().sum_of_squares(threads, grads.size(), grads.data());
    norm->typed_data()[0] = static_cast<float>(std::sqrt(sum));
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_adamw, AdamWUpdate,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<F32>()       // lr ()
                                  .Arg<F32>()       // scale ()
                                  .Arg<S32>()       // step ()
                                  .RemainingArgs()  // params, grads (float32 or bfloat16), m, v
                                  .RemainingRets()  // params, m, v: in place of the arguments
                                  .Attr<ffi::Span<const float>>("weight_decay")
                                  .Attr<float>("beta1")
                                  .Attr<float>("beta2")
                                  .Attr<float>("eps"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_global_norm, GlobalNorm,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()  // any number of arrays, float32 or bfloat16
                                  .Ret<F32>());     // norm ()

}  // namespace llmc
