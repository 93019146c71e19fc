// The classifier, as kernels_test.cc tests the other kernels, and the logits of generation.
#include "tests/harness.h"

namespace llmc {

void TestClassifier(Driver& driver);

namespace {

template <typename T, typename W>
void TestLogits(Driver& driver, int64_t N, int64_t C, int64_t Vp) {
  Random random;
  auto lnf = random.Numbers<T>(N * C);
  auto wte = random.Numbers<W>(Vp * C);
  Matrix x = MatrixOf(lnf, N, C);
  Matrix want = WithWeights<T, W>(MatrixOf(wte, Vp, C),
                                  [&](const Matrix& w) { return Product(x, w); });

  Shape shape{{"N", N}, {"C", C}, {"Vp", Vp}};
  driver.OnEach(Types<T, W>(), "logits", shape, [&](auto& kernels, const Check& check) {
    Output<float> logits(N * Vp);
    check.Twice([&](Threads& threads, int call) {
      On<T, W>(kernels).logits(threads, N, C, Vp, lnf.data(), wte.data(), logits.data(call));
    });
    check("logits", logits, want.data);
  });
}

// Logits that reach +-`size` times the usual; every fourth row is ignored.
template <typename T, typename W>
void TestClassifier(Driver& driver, int64_t N, int64_t C, int64_t V, int64_t Vp,
                    double size = 1) {
  Random random;
  auto lnf = random.Numbers<T>(N * C, size);
  auto wte = random.Numbers<W>(Vp * C);  // also the rows that pad it, which take no part
  auto targets = Tokens(random, N, V);
  Array<float> dlosses(N);
  for (int64_t n = 0; n < N; ++n) {
    if (n % 4 == 1) targets[n] = -1;
    Assign(random.Uniform(0.5, 1.5) / N, &dlosses[n]);
  }
  targets[0] = static_cast<int32_t>(V - 1);
  Matrix x = MatrixOf(lnf, N, C), w = MatrixOf(wte, Vp, C);
  auto want = Classifier<T>(x, w, V, targets.data(), dlosses.data());
  if (!std::is_same_v<T, W>) {
    auto rounded = Classifier<T>(x, RoundedTo<T>(w), V, targets.data(), dlosses.data());
    want = {Between(want.losses, rounded.losses), Between(want.dlnf, rounded.dlnf),
            Between(want.dwte, rounded.dwte)};
  }

  Shape shape{{"N", N}, {"C", C}, {"V", V}, {"Vp", Vp}};
  driver.OnEach(Types<T, W>(), "classifier", shape, [&](auto& kernels, const Check& check) {
    Output<float> losses(N), losses_alone(N), dwte(Vp * C);
    Output<T> dlnf(N * C);
    const int64_t at_once = N > 512 ? N / 3 : N;
    Array<T> powers(at_once * Vp);
    check.Twice([&](Threads& threads, int call) {
      On<T, W>(kernels).classifier(threads, N, C, V, Vp, lnf.data(), wte.data(), targets.data(),
                                   dlosses.data(), losses.data(call), dlnf.data(call),
                                   dwte.data(call), powers.data(), at_once);
      On<T, W>(kernels).classifier(threads, N, C, V, Vp, lnf.data(), wte.data(), targets.data(),
                                   nullptr, losses_alone.data(call), nullptr, nullptr,
                                   nullptr, at_once);
    });
    check("losses", losses, want.losses.data);
    check("losses alone", losses_alone, want.losses.data);
    check("dlnf", dlnf, want.dlnf.data);
    check("dwte", dwte, want.dwte.data);
  });
}

template <typename T, typename W>
void TestAll(Driver& driver) {
  for (int64_t C : {48, 7, 12})
    for (int64_t N : {1, 5, 16})  // few_rows.h
      TestLogits<T, W>(driver, N, C, /*Vp=*/4 * C + 3);
  TestLogits<T, W>(driver, /*N=*/30, /*C=*/48, /*Vp=*/200);
  TestClassifier<T, W>(driver, /*N=*/1, /*C=*/7, /*V=*/5, /*Vp=*/8);
  TestClassifier<T, W>(driver, /*N=*/63, /*C=*/12, /*V=*/101, /*Vp=*/128, /*size=*/40);
  TestClassifier<T, W>(driver, /*N=*/1100, /*C=*/12, /*V=*/101, /*Vp=*/128);
  TestClassifier<T, W>(driver, /*N=*/20, /*C=*/7, /*V=*/5000, /*Vp=*/5008);  // two pieces
  TestClassifier<T, W>(driver, /*N=*/3, /*C=*/48, /*V=*/50257, /*Vp=*/50304);
}

}  // namespace

void TestClassifier(Driver& driver) {
  TestAll<float, float>(driver);
  TestAll<BF16, BF16>(driver);
  TestAll<BF16, float>(driver);
}

}  // namespace llmc
