// Handler of adamw: see adamw.cu.
#include <vector>

#include "cuda/handler.h"

namespace llmc {
namespace {

// The leaves of params, grads, m and v, and the results in the places of params, m and v.
class Trees {
 public:
  Trees(Checker& check, const ffi::RemainingArgs& args, const ffi::RemainingRets& rets, size_t n)
      : check_(check), args_(args), rets_(rets), n_(n) {}

  // Leaf i of list k, of as many elements as the parameter.
  const void* Leaf(size_t k, size_t i, ffi::DataType type, int64_t size) {
    auto buffer = args_.get<Any>(k * n_ + i);
    if (!buffer.has_value()) return Fail(i, buffer.error().message());
    if (buffer->element_type() != type)
      return Fail(i, "list " + std::to_string(k) + " of params, grads, m, v has " +
                         TypeString(buffer->element_type()) + ", expected " + TypeString(type));
    int64_t count = buffer->element_count();
    if (count != size)
      return Fail(i, "it has " + std::to_string(count) + " elements in one list and " +
                         std::to_string(size) + " in another, expected the same in all");
    return buffer->untyped_data();
  }
  // The gradient of leaf i, in float32 or bfloat16.
  cuda::Gradient Grad(size_t i, int64_t size) {
    auto buffer = args_.get<Any>(n_ + i);
    bool half = buffer.has_value() && buffer->element_type() == ffi::BF16;
    return {Leaf(1, i, half ? ffi::BF16 : ffi::F32, size), size, half};
  }
  // The memory of leaf i of the k-th result, which XLA put in the place of `argument`.
  void* InPlace(size_t k, size_t i, const void* argument) {
    auto result = rets_.get<Any>(k * n_ + i);
    void* data = result.has_value() ? (*result)->untyped_data() : nullptr;
    check_.Require(data == argument, "result " + std::to_string(k * n_ + i) +
                                         " is not written in place");
    return data;
  }

 private:
  std::nullptr_t Fail(size_t i, const std::string& message) {
    check_.Fail("leaf " + std::to_string(i) + ": " + message);
    return nullptr;
  }

  Checker& check_;
  const ffi::RemainingArgs& args_;
  const ffi::RemainingRets& rets_;
  size_t n_;
};

ffi::Error AdamW(StreamArgument stream, F32 lr, F32 scale, S32 step, ffi::RemainingArgs args,
                 ffi::RemainingRets rets, ffi::Span<const float> weight_decay, float beta1,
                 float beta2, float eps) {
  Checker check("llmc_cuda_adamw");
  size_t n = weight_decay.size();
  check.Shape("lr", lr, {});
  check.Shape("scale", scale, {});
  check.Shape("step", step, {});
  check.Require(args.size() == 4 * n && rets.size() == 3 * n,
                std::to_string(args.size()) + " arrays and " + std::to_string(n) +
                    " weight decays, expected params, grads, m and v of as many leaves");
  Trees trees(check, args, rets, n);
  std::vector<cuda::AdamWLeaf> leaves(n);
  Type type = Type::kF32;
  for (size_t i = 0; check.ok() && i < n; ++i) {
    auto first = args.get<Any>(0), param = args.get<Any>(i);
    if (!first.has_value() || !param.has_value()) {
      check.Fail("leaf " + std::to_string(i) + " is no array");
      break;
    }
    check.FloatType("params", *first);
    type = TypeOf(*first);
    cuda::AdamWLeaf& leaf = leaves[i];
    const int64_t size = param->element_count();
    leaf.weight_decay = weight_decay[i];
    leaf.grad = trees.Grad(i, size);
    leaf.param = trees.InPlace(0, i, trees.Leaf(0, i, first->element_type(), size));
    leaf.m = static_cast<float*>(trees.InPlace(1, i, trees.Leaf(2, i, ffi::F32, size)));
    leaf.v = static_cast<float*>(trees.InPlace(2, i, trees.Leaf(3, i, ffi::F32, size)));
  }
  return Run(check, [&] {
    cuda::AdamWHyper hyper = {lr.typed_data(), scale.typed_data(), step.typed_data(), beta1,
                              beta2,           eps};
    return cuda::AdamW(ToStream(stream), type, static_cast<int>(n), leaves.data(), hyper);
  });
}

}  // namespace

LLMC_CUDA_HANDLER(llmc_cuda_adamw, AdamW,
                  BindStream()
                      .Arg<F32>()       // lr ()
                      .Arg<F32>()       // scale ()
                      .Arg<S32>()       // step ()
                      .RemainingArgs()  // params, grads (float32 or bfloat16), m, v
                      .RemainingRets()  // params, m, v: in place of the arguments
                      .Attr<ffi::Span<const float>>("weight_decay")
                      .Attr<float>("beta1")
                      .Attr<float>("beta2")
                      .Attr<float>("eps"));

}  // namespace llmc
