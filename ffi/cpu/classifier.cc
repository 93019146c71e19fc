// Handlers of the classifier: see classifier.h.
#include "cpu/handler.h"

namespace llmc {
namespace {

// Rows that losses alone are made of at once: the more, the less often all weights are read.
constexpr int64_t kRowsOfLosses = 1024;

struct Sizes {
  int64_t B, T, C, V, Vp;

  Sizes(Checker& check, const Any& lnf, const Any& wte, const S32& targets, int64_t V)
      : B(check.Size("lnf", lnf, 3, 0)),
        T(check.Size("lnf", lnf, 3, 1)),
        C(check.Size("lnf", lnf, 3, 2)),
        V(V),
        Vp(check.Size("wte", wte, 2, 0)) {
    check.Shape("wte", wte, {Vp, C});
    check.Shape("targets", targets, {B, T});
    check.Require(0 < V && V <= Vp,
                  "V is " + std::to_string(V) + " and wte " + ShapeString(wte.dimensions()) +
                      ", expected 0 < V <= Vp");
    CheckTargets(check, targets);
  }

 private:
  void CheckTargets(Checker& check, const S32& targets) const {
    for (size_t n = 0; n < targets.element_count(); ++n)
      if (targets.typed_data()[n] >= V)
        return check.Fail("target " + std::to_string(targets.typed_data()[n]) + " of row " +
                          std::to_string(n) + " is not below V = " + std::to_string(V));
  }
};

ffi::Error ClassifierLosses(ffi::ThreadPool pool, Any lnf, Any wte, S32 targets, F32Out losses,
                            int64_t V) {
  Checker check("llmc_classifier_losses");
  Sizes s(check, lnf, wte, targets, V);
  check.Shape("losses", *losses, {s.B, s.T});
  return RunOn(check, pool, lnf.element_type(), wte, [&](Threads& threads, auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    On<T, W>().classifier(threads, s.B * s.T, s.C, s.V, s.Vp, In<T>(lnf), In<W>(wte),
                          targets.typed_data(), nullptr, Out(losses), nullptr, nullptr, nullptr,
                          kRowsOfLosses);
  });
}

ffi::Error ClassifierForward(ffi::ThreadPool pool, Any lnf, Any wte, S32 targets, F32 dlosses,
                             F32Out losses, AnyOut dlnf, F32Out dwte, AnyOut powers, int64_t V) {
  Checker check("llmc_classifier_forward");
  Sizes s(check, lnf, wte, targets, V);
  check.Shape("dlosses", dlosses, {s.B, s.T});
  check.Shape("losses", *losses, {s.B, s.T});
  check.Like("dlnf", *dlnf, lnf, {s.B, s.T, s.C});
  check.Shape("dwte", *dwte, {s.Vp, s.C});
  const int64_t at_once = check.Size("powers", *powers, 2, 0);
  check.Like("powers", *powers, lnf, {at_once, s.Vp});
  return RunOn(check, pool, lnf.element_type(), wte, [&](Threads& threads, auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    On<T, W>().classifier(threads, s.B * s.T, s.C, s.V, s.Vp, In<T>(lnf), In<W>(wte),
                          targets.typed_data(), dlosses.typed_data(), Out(losses),
                          Out<T>(dlnf), Out(dwte), Out<T>(powers), at_once);
  });
}

ffi::Error Logits(ffi::ThreadPool pool, Any lnf, Any wte, F32Out logits) {
  Checker check("llmc_logits");
  int64_t B = check.Size("lnf", lnf, 3, 0), T_ = check.Size("lnf", lnf, 3, 1);
  int64_t C = check.Size("lnf", lnf, 3, 2), Vp = check.Size("wte", wte, 2, 0);
  check.Shape("wte", wte, {Vp, C});
  check.Shape("logits", *logits, {B * T_, Vp});
  return RunOn(check, pool, lnf.element_type(), wte, [&](Threads& threads, auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    On<T, W>().logits(threads, B * T_, C, Vp, In<T>(lnf), In<W>(wte), Out(logits));
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_logits, Logits,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Any>()    // lnf (B,T,C)
                                  .Arg<Any>()    // wte (Vp,C)
                                  .Ret<F32>());  // logits (B*T,Vp)

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_classifier_losses, ClassifierLosses,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Any>()  // lnf (B,T,C)
                                  .Arg<Any>()  // wte (Vp,C)
                                  .Arg<S32>()  // targets (B,T)
                                  .Ret<F32>()  // losses (B,T)
                                  .Attr<int64_t>("V"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_classifier_forward, ClassifierForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Any>()  // lnf (B,T,C)
                                  .Arg<Any>()  // wte (Vp,C)
                                  .Arg<S32>()  // targets (B,T)
                                  .Arg<F32>()  // dlosses (B,T)
                                  .Ret<F32>()  // losses (B,T)
                                  .Ret<Any>()  // dlnf (B,T,C)
                                  .Ret<F32>()  // dwte (Vp,C)
                                  .Ret<Any>()  // powers (rows,Vp), of those worked on at once
                                  .Attr<int64_t>("V"));

}  // namespace llmc
