// Handlers of adamw and global_norm: see adamw.h.
#include <cmath>
#include <numeric>
#include <optional>
#include <vector>

#include "cpu/handler.h"

namespace llmc {
namespace {

// The number of rows of C elements in a buffer (..., C).
int64_t RowsOf(const Any& buffer, int64_t C) { return C ? buffer.element_count() / C : 0; }

// Argument `index`, float32 and of `size` elements, as the gradient of leaf i has.
const float* Leaf(Checker& check, const ffi::RemainingArgs& args, size_t index, size_t i,
                  int64_t size) {
  auto buffer = args.get<F32>(index);
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

// The gradient of leaf i, of which argument `index` is the first array: one as `arrays` says, or
// two, its factors. Moves `index` on to the next gradient's.
Gradient GradientOf(Checker& check, const ffi::RemainingArgs& args, size_t& index, int64_t arrays,
                    size_t i) {
  const std::string name = "gradient of leaf " + std::to_string(i);
  auto array = [&]() -> std::optional<Any> {
    auto buffer = args.get<Any>(index++);
    if (buffer.has_value()) {
      check.FloatType(name.c_str(), *buffer);
      return *buffer;
    }
    check.Fail(name + ": " + buffer.error().message());
    return std::nullopt;
  };
  auto first = array();
  if (!first) return {};
  const bool half = first->element_type() == ffi::BF16;
  const auto elements = static_cast<int64_t>(first->element_count());
  check.Require(arrays == 1 || arrays == 2,
                name + ": " + std::to_string(arrays) + " arrays, expected 1, or 2 factors");
  if (arrays == 1) return {first->untyped_data(), elements, half};
  auto inp = array();
  if (!inp || !check.ok()) return {};
  check.SameType((name + ", its second factor,").c_str(), *inp, *first);
  const int64_t OC = check.Size(name.c_str(), *first, 3, 2);
  const int64_t C = check.Size(name.c_str(), *inp, 3, 2);
  const int64_t N = RowsOf(*first, OC), rows = RowsOf(*inp, C);
  check.Require(N == rows, name + ": its factors have " + std::to_string(N) + " and " +
                               std::to_string(rows) + " rows, expected as many");
  return {first->untyped_data(), OC * C, half, inp->untyped_data(), N, C};
}

// params, m, v are updated in place: XLA gives a result the memory of its argument.
float* InPlace(Checker& check, ffi::RemainingRets& rets, size_t i, const float* argument) {
  auto result = rets.get<F32>(i);
  float* data = result.has_value() ? (*result)->typed_data() : nullptr;
  check.Require(data == argument, "result " + std::to_string(i) + " is not in place");
  return data;
}

ffi::Error AdamWUpdate(ffi::ThreadPool pool, F32 lr, F32 scale, S32 step, ffi::RemainingArgs args,
                       ffi::RemainingRets rets, ffi::Span<const float> weight_decay,
                       ffi::Span<const int64_t> arrays, float beta1, float beta2, float eps) {
  Checker check("llmc_adamw");
  check.Shape("lr", lr, {});
  check.Shape("scale", scale, {});
  check.Shape("step", step, {});
  const size_t n = weight_decay.size();
  const size_t of_grads = std::accumulate(arrays.begin(), arrays.end(), size_t{0});
  check.Require(arrays.size() == n && args.size() == 3 * n + of_grads && rets.size() == 3 * n,
                std::to_string(args.size()) + " arrays and " + std::to_string(n) +
                    " weight decays, expected params, grads, m and v of as many leaves");
  std::vector<AdamWLeaf> leaves(n);
  size_t next = n;
  for (size_t i = 0; check.ok() && i < n; ++i) {
    AdamWLeaf& leaf = leaves[i];
    leaf.grad = GradientOf(check, args, next, arrays[i], i);
    const float* param = Leaf(check, args, i, i, leaf.grad.size);
    const float* m = Leaf(check, args, n + of_grads + i, i, leaf.grad.size);
    const float* v = Leaf(check, args, 2 * n + of_grads + i, i, leaf.grad.size);
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

ffi::Error GlobalNorm(ffi::ThreadPool pool, ffi::RemainingArgs args, F32Out norm,
                      ffi::Span<const int64_t> arrays) {
  Checker check("llmc_global_norm");
  check.Shape("norm", *norm, {});
  const size_t given = std::accumulate(arrays.begin(), arrays.end(), size_t{0});
  check.Require(args.size() == given, std::to_string(args.size()) + " arrays, expected " +
                                          std::to_string(given) + " of the gradients");
  std::vector<Gradient> grads(arrays.size());
  size_t next = 0;
  for (size_t i = 0; check.ok() && i < grads.size(); ++i)
    grads[i] = GradientOf(check, args, next, arrays[i], i);
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
                                  .RemainingArgs()  // params, grads, m, v
                                  .RemainingRets()  // params, m, v: in place of the arguments
                                  .Attr<ffi::Span<const float>>("weight_decay")
                                  // of each gradient: 1, or 2 factors; float32 or bfloat16
                                  .Attr<ffi::Span<const int64_t>>("arrays")
                                  .Attr<float>("beta1")
                                  .Attr<float>("beta2")
                                  .Attr<float>("eps"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_global_norm, GlobalNorm,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()  // grads, as above
                                  .Ret<F32>()       // norm ()
                                  .Attr<ffi::Span<const int64_t>>("arrays"));

}  // namespace llmc
