// Handlers of the classifier: see classifier.cu.
#include "cuda/handler.h"

namespace llmc {
namespace {

struct Sizes {
  int64_t N, V, Vp;  // N of targets, of any shape

  Sizes(Checker& check, const Any& logits, const S32& targets, int64_t V)
      : N(check.Size("logits", logits, 2, 0)), V(V), Vp(check.Size("logits", logits, 2, 1)) {
    check.FloatType("logits", logits);
    check.Require(static_cast<int64_t>(targets.element_count()) == N,
                  "targets is " + ShapeString(targets.dimensions()) +
                      ", expected one for each of " + std::to_string(N) + " rows of logits");
    check.Require(0 < V && V <= Vp,
                  "V is " + std::to_string(V) + " and logits " + ShapeString(logits.dimensions()) +
                      ", expected 0 < V <= Vp");
    check.Require(N < int64_t{1} << 31 && Vp < int64_t{1} << 30,
                  "logits is " + ShapeString(logits.dimensions()) +
                      ", expected fewer than 2^31 rows and 2^30 columns");
  }
  int v() const { return static_cast<int>(V); }
  int vp() const { return static_cast<int>(Vp); }
};

void SameShape(Checker& check, const char* name, ffi::Span<const int64_t> shape,
               ffi::Span<const int64_t> expected) {
  check.Require(ShapeString(shape) == ShapeString(expected),
                std::string(name) + " is " + ShapeString(shape) + ", expected " +
                    ShapeString(expected));
}

ffi::Error ClassifierForward(StreamArgument stream, Any logits, S32 targets, F32 dlosses,
                             F32Out losses, AnyOut dlogits, int64_t V) {
  Checker check("llmc_cuda_classifier_forward");
  Sizes s(check, logits, targets, V);
  SameShape(check, "dlosses", dlosses.dimensions(), targets.dimensions());
  SameShape(check, "losses", losses->dimensions(), targets.dimensions());
  check.Shape("dlogits", *dlogits, {s.N, s.Vp});
  check.SameType("dlogits", *dlogits, logits);
  void* in_place = InPlace(check, "dlogits", dlogits, logits);
  return Run(check, [&] {
    return cuda::ClassifierForward(ToStream(stream), TypeOf(logits), s.N, s.v(), s.vp(),
                                   targets.typed_data(), dlosses.typed_data(), in_place,
                                   Out(losses));
  });
}

ffi::Error ClassifierLosses(StreamArgument stream, Any logits, S32 targets, F32Out losses,
                            int64_t V) {
  Checker check("llmc_cuda_classifier_losses");
  Sizes s(check, logits, targets, V);
  SameShape(check, "losses", losses->dimensions(), targets.dimensions());
  return Run(check, [&] {
    return cuda::ClassifierLosses(ToStream(stream), TypeOf(logits), s.N, s.v(), s.vp(),
                                  targets.typed_data(), logits.untyped_data(), Out(losses));
  });
}

}  // namespace

LLMC_CUDA_HANDLER(llmc_cuda_classifier_forward, ClassifierForward,
                  BindStream()
                      .Arg<Any>()  // logits (N,Vp)
                      .Arg<S32>()  // targets, N of them
                      .Arg<F32>()  // dlosses, like targets
                      .Ret<F32>()  // losses, like targets
                      .Ret<Any>()  // dlogits, in the place of logits
                      .Attr<int64_t>("V"));

LLMC_CUDA_HANDLER(llmc_cuda_classifier_losses, ClassifierLosses,
                  BindStream()
                      .Arg<Any>()  // logits (N,Vp)
                      .Arg<S32>()  // targets, N of them
                      .Ret<F32>()  // losses, like targets
                      .Attr<int64_t>("V"));

}  // namespace llmc
