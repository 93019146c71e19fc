// The optimizer's kernels as kernels_test.cc tests the others: AdamW and the norm of gradients.
#include "tests/harness.h"

namespace llmc {

void TestOptimizer(Driver& driver);

namespace {

template <typename G>
Gradient GradientOf(const Array<G>& grad, int64_t size) {
  return {grad.data(), size, std::is_same_v<G, BF16>};
}

// Tensors of these sizes, some of them decaying.
template <typename G>
void TestAdamW(Driver& driver, const std::vector<int64_t>& sizes) {
  Random random;
  const AdamWHyper h{3e-4f, 0.7f, 0.9f, 0.95f, 1e-8f, 1 / (1 - 0.729f), 1 / (1 - 0.857375f)};
  struct Inputs {
    Array<float> param, m, v;
    Array<G> grad;
  };
  std::vector<Inputs> inputs;
  for (int64_t size : sizes) {
    inputs.push_back({random.Numbers<float>(size), random.Numbers<float>(size, 0.1),
                      random.Numbers<float>(size, 0.01), random.Numbers<G>(size)});
    for (int64_t i = 0; i < size; ++i) inputs.back().v[i] = std::fabs(inputs.back().v[i]);
  }

  Shape shape{{"tensors", static_cast<int64_t>(sizes.size())}};
  driver.OnEach(Types<G>(), "adamw", shape, [&](auto& kernels, const Check& check) {
    std::vector<Output<float>> param, m, v;
    for (const Inputs& in : inputs) {
      param.emplace_back(in.param);
      m.emplace_back(in.m);
      v.emplace_back(in.v);
    }
    auto decay = [](size_t leaf) { return leaf % 2 ? 0.1f : 0.f; };
    check.Twice([&](Threads& threads, int call) {
      std::vector<AdamWLeaf> leaves;
      for (size_t i = 0; i < sizes.size(); ++i)
        leaves.push_back({param[i].data(call), m[i].data(call), v[i].data(call),
                          GradientOf(inputs[i].grad, sizes[i]), decay(i)});
      kernels.adamw(threads, leaves.size(), leaves.data(), h);
    });
    for (size_t leaf = 0; leaf < sizes.size(); ++leaf) {
      const Inputs& in = inputs[leaf];
      std::vector<Want> want_param, want_m, want_v;
      for (int64_t i = 0; i < sizes[leaf]; ++i) {
        const double grad = Value(in.grad[i]) * h.scale;
        want_m.push_back(MovingAverage(h.beta1, in.m[i], grad, /*operations=*/2));
        want_v.push_back(MovingAverage(h.beta2, in.v[i], grad * grad, /*operations=*/4));
        want_param.push_back(AdamWParam(in.param[i], m[leaf].data()[i], v[leaf].data()[i],
                                        decay(leaf), h));
      }
      check("m", m[leaf], want_m);
      check("v", v[leaf], want_v);
      check("param", param[leaf], want_param);
    }
  });
}

template <typename G>
void TestSumOfSquares(Driver& driver, const std::vector<int64_t>& sizes) {
  Random random;
  std::vector<Array<G>> tensors;
  std::vector<Gradient> grads;
  int64_t n = 0;
  double sum = 0;
  for (int64_t size : sizes) {
    n += size;
    tensors.push_back(random.Numbers<G>(size));
    grads.push_back(GradientOf(tensors.back(), size));
    for (int64_t i = 0; i < size; ++i) sum += std::pow(Value(tensors.back()[i]), 2);
  }
  // at most 2^15 / 16 floats are added up before it goes on in double, all of one sign
  const int64_t in_float = std::min<int64_t>(n, 2048);
  std::vector<Want> want{{sum, 6 * kU * std::sqrt(in_float + 1.) * sum}};

  Shape shape{{"tensors", static_cast<int64_t>(sizes.size())}, {"n", n}};
  driver.OnEach(Types<G>(), "sum_of_squares", shape, [&](auto& kernels, const Check& check) {
    Output<double> result(1);
    check.Twice([&](Threads& threads, int call) {
      *result.data(call) = kernels.sum_of_squares(threads, grads.size(), grads.data());
    });
    check("result", result, want);
  });
}

template <typename G>
void TestOptimizerOn(Driver& driver) {
  TestAdamW<G>(driver, {1, 7, 48, 32768, 70001});
  TestSumOfSquares<G>(driver, {1, 7, 48, 32768, 70001});
  for (int64_t size : {1, 7, 48, 100}) TestSumOfSquares<G>(driver, {size});
}

}  // namespace

void TestOptimizer(Driver& driver) {
  TestOptimizerOn<float>(driver);
  TestOptimizerOn<BF16>(driver);
}

}  // namespace llmc
