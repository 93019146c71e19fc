// The fused classifier against the cross-entropy and its derivative.
#include "tests/cuda_harness.h"

namespace llmc::cuda::test {
namespace {

struct Shape {
  int64_t N;
  int V, Vp;
};

template <typename T>
struct Problem {
  Shape s;
  Buffer<T> logits;
  Buffer<float> dlosses;
  std::vector<int> targets;
  std::vector<double> losses, dlogits;

  Problem(Shape s, std::mt19937& random)
      : s(s),
        logits(s.N * s.Vp, random, 5),
        dlosses(s.N, random),
        targets(s.N),
        losses(s.N),
        dlogits(s.N * s.Vp) {
    for (int64_t n = 0; n < s.N; ++n) {
      targets[n] = n % 4 == 3 ? -1 : static_cast<int>(random() % s.V);
      if (n % 4 == 0) targets[n] = s.V - 1;
      // whatever a product with padding gave
      for (int i = s.V; i < s.Vp; ++i) logits[n * s.Vp + i] = FromFloat<T>(n % 2 ? NAN : 100.0f);
      Row(n);
    }
  }

  void Row(int64_t n) {
    int target = targets[n];
    if (target < 0) return;
    double total = 0, largest = -INFINITY;
    auto x = [&](int i) { return logits.Value(n * s.Vp + i); };
    for (int i = 0; i < s.V; ++i) largest = std::max(largest, x(i));
    for (int i = 0; i < s.V; ++i) total += std::exp(x(i) - largest);
    losses[n] = std::log(total) + largest - x(target);
    for (int i = 0; i < s.V; ++i)
      dlogits[n * s.Vp + i] =
          (std::exp(x(i) - largest) / total - (i == target)) * dlosses.Value(n);
  }
};

template <typename T>
void TestClassifier(Shape s, std::mt19937& random) {
  std::string name = "classifier of " + std::to_string(s.N) + " x " + std::to_string(s.V) + ", " +
                     std::to_string(sizeof(T)) + " bytes";
  Problem<T> p(s, random);
  InEverySchedule(name, [&] {
    Buffer<float> losses(s.N);
    Expect(name, ClassifierLosses(nullptr, kType<T>, s.N, s.V, s.Vp, p.targets.data(),
                                  p.logits.data(), losses.data()));
    Expect(name + ", losses only", losses, p.losses, 1e-4);
    Buffer<T> logits(p.logits);
    Buffer<float> again(s.N);
    Expect(name, ClassifierForward(nullptr, kType<T>, s.N, s.V, s.Vp, p.targets.data(),
                                   p.dlosses.data(), logits.data(), again.data()));
    Expect(name + ", losses", again, p.losses, 1e-4);
    Expect(name + ", dlogits", logits, p.dlogits, 4 * kEpsilon<T> + 1e-5);
  });
}

// A target that does not exist gives NaN and reads nothing that is not there.
void TestTargetOutOfRange() {
  Buffer<float> logits(8), losses(1);
  for (int i = 0; i < 8; ++i) logits[i] = 0;
  std::vector<int> targets = {1 << 30};
  Expect("classifier", ClassifierLosses(nullptr, Type::kF32, 1, 8, 8, targets.data(),
                                        logits.data(), losses.data()));
  if (!std::isnan(losses[0])) Fail("classifier", "a target that does not exist gave a loss");
}

}  // namespace

void TestClassifier() {
  std::mt19937 random(0);
  for (Shape s : {Shape{1, 1, 1}, {2, 11, 11}, {5, 60, 64}, {4, 999, 1000}, {4, 16380, 16387}}) {
    TestClassifier<float>(s, random);
    TestClassifier<bf16>(s, random);
  }
  TestTargetOutOfRange();
  Shape gpt2 = {1, 50257, 50304};  // in float32 a row fits in the shared memory of a Hopper only
  for (int architecture : {80, 86, 90}) {
    emulator::SetArchitecture(architecture);
    TestClassifier<float>(gpt2, random);
    TestClassifier<bf16>(gpt2, random);
  }
  emulator::SetArchitecture(90);
}

}  // namespace llmc::cuda::test
