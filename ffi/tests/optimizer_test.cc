// The optimizer's kernels as kernels_test.cc tests the others: AdamW and the norm of gradients.
#include "tests/harness.h"

namespace llmc {

void TestOptimizer(Driver& driver);

namespace {

// The gradient of one tensor, as the kernels take it and as it is.
template <typename G>
struct TestGradient {
  Array<G> data, inp;
  Gradient shape;  // without the arrays
  std::vector<Want> want;
  Want squares;  // their sum

  Gradient Given() const {
    Gradient given = shape;
    given.data = data.data();
    given.inp = shape.C ? inp.data() : nullptr;
    return given;
  }
};

template <typename G>
TestGradient<G> OfSize(Random& random, int64_t size) {
  TestGradient<G> grad{random.Numbers<G>(size), Array<G>(0), {}, {}, {}};
  grad.shape.size = size;
  grad.shape.half = std::is_same_v<G, BF16>;
  grad.want = MatrixOf(grad.data, 1, size).data;
  grad.squares = Dot(grad.want.data(), grad.want.data(), size);
  return grad;
}

// (OC,C), in its factors (N,OC) and (N,C).
template <typename G>
TestGradient<G> InFactors(Random& random, int64_t N, int64_t OC, int64_t C) {
  TestGradient<G> grad{random.Numbers<G>(N * OC), random.Numbers<G>(N * C), {}, {}, {}};
  grad.shape.size = OC * C;
  grad.shape.half = std::is_same_v<G, BF16>;
  grad.shape.N = N;
  grad.shape.C = C;
  const Matrix dout = MatrixOf(grad.data, N, OC), inp = MatrixOf(grad.inp, N, C);
  grad.want = Product(Transposed(dout), Transposed(inp)).data;
  for (const Want& g : grad.want) grad.squares.value += g.value * g.value;
  const Matrix a = Product(dout, dout), b = Product(inp, inp);
  grad.squares.tolerance = Dot(a.data.data(), b.data.data(), N * N).tolerance;
  return grad;
}

template <typename G>
using TestGradients = std::vector<const TestGradient<G>*>;

// Some of the tensors decay.
template <typename G>
void TestAdamW(Driver& driver, const TestGradients<G>& grads) {
  Random random;
  const AdamWHyper h{3e-4f, 0.7f, 0.9f, 0.95f, 1e-8f, 1 / (1 - 0.729f), 1 / (1 - 0.857375f)};
  struct Inputs {
    Array<float> param, m, v;
  };
  std::vector<Inputs> inputs;
  for (const TestGradient<G>* grad : grads) {
    const int64_t size = grad->shape.size;
    inputs.push_back({random.Numbers<float>(size), random.Numbers<float>(size, 0.1),
                      random.Numbers<float>(size, 0.01)});
    for (int64_t i = 0; i < size; ++i) inputs.back().v[i] = std::fabs(inputs.back().v[i]);
  }

  Shape shape{{"tensors", static_cast<int64_t>(grads.size())}};
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
      for (size_t i = 0; i < grads.size(); ++i)
        leaves.push_back({param[i].data(call), m[i].data(call), v[i].data(call),
                          grads[i]->Given(), decay(i)});
      kernels.adamw(threads, leaves.size(), leaves.data(), h);
    });
    for (size_t leaf = 0; leaf < grads.size(); ++leaf) {
      const Inputs& in = inputs[leaf];
      std::vector<Want> want_param, want_m, want_v;
      for (int64_t i = 0; i < grads[leaf]->shape.size; ++i) {
        const Want& g = grads[leaf]->want[i];
        want_m.push_back(MovingAverage(h.beta1, in.m[i], Scaled(g, h.scale), /*operations=*/2));
        want_v.push_back(
            MovingAverage(h.beta2, in.v[i], Squared(Scaled(g, h.scale)), /*operations=*/4));
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
void TestSumOfSquares(Driver& driver, const TestGradients<G>& tensors) {
  std::vector<Gradient> grads;
  Want sum;
  int64_t n = 0;
  for (const TestGradient<G>* grad : tensors) {
    grads.push_back(grad->Given());
    n += grad->shape.size;
    sum.value += grad->squares.value;
    sum.tolerance += grad->squares.tolerance;
  }
  Shape shape{{"tensors", static_cast<int64_t>(tensors.size())}, {"n", n}};
  driver.OnEach(Types<G>(), "sum_of_squares", shape, [&](auto& kernels, const Check& check) {
    Output<double> result(1);
    check.Twice([&](Threads& threads, int call) {
      *result.data(call) = kernels.sum_of_squares(threads, grads.size(), grads.data());
    });
    check("result", result, {sum});
  });
}

template <typename G>
void TestOptimizerOn(Driver& driver) {
  Random random;
  std::vector<TestGradient<G>> grads;
  for (int64_t size : {1, 7, 48, 100, 32768, 70001}) grads.push_back(OfSize<G>(random, size));
  // one row, tiles not filled, several blocks of the norm's and of the product's
  grads.push_back(InFactors<G>(random, /*N=*/1, /*OC=*/3, /*C=*/7));
  grads.push_back(InFactors<G>(random, /*N=*/63, /*OC=*/48, /*C=*/144));
  grads.push_back(InFactors<G>(random, /*N=*/130, /*OC=*/20, /*C=*/48));
  grads.push_back(InFactors<G>(random, /*N=*/300, /*OC=*/800, /*C=*/65));
  TestGradients<G> all;
  for (const TestGradient<G>& grad : grads) {
    TestAdamW<G>(driver, {&grad});
    TestSumOfSquares<G>(driver, {&grad});
    all.push_back(&grad);
  }
  TestAdamW<G>(driver, all);
  TestSumOfSquares<G>(driver, all);
}

}  // namespace

void TestOptimizer(Driver& driver) {
  TestOptimizerOn<float>(driver);
  TestOptimizerOn<BF16>(driver);
}

}  // namespace llmc
