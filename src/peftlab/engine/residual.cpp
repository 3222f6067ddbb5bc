// What ends each half of a block, in one pass: dropout, the sum with what went around, LayerNorm.
//
//   s = x ∘ M + r,   y = (s - mean s) / √(var s + ε) ∘ weight + bias          row by row
//
//   residual_norm            y, s, and of each row mean s and 1 / √(var s + ε)
//   residual_norm_gradient   those of x and r, and of weight and bias if asked; M is drawn again
//
// M drops with probability p and scales the rest by 1 / (1 - p); its bits are those of row i and column j
// at place 0 (vectors.h). All is computed in fp32; s and the gradients are rounded once, as they are held.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "../layers/vectors.h"

namespace {

constexpr int64_t GRAIN = 2;  // blocks of eight rows a thread takes at least

// Eight rows or fewer of a matrix of so many columns: block by block, the same for any number of threads.
template <typename Work>
void each_block(int64_t rows, const Work& work) {
  const int64_t blocks = (rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
  at::parallel_for(0, blocks, GRAIN, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * ROWS_AT_ONCE;
      work(block, first, std::min(ROWS_AT_ONCE, rows - first));
    }
  });
}

// x ∘ M + r, or x ∘ M without r; so many rows of `width`.
template <typename From, typename To>
void dropped(const From* x, const To* r, int64_t block, int64_t rows, int64_t width, const Dropout& drop, To* to) {
  constexpr int64_t VECTORS = 4, STEP = VECTORS * LANES;
  for (int64_t begin = 0; begin < width; begin += STEP) {
    Random random[VECTORS];
    if (drop.keep_from) {
      const uint32_t j = uint32_t(begin), rows_at = uint32_t(block);
      philox({{j, rows_at, 0}, {j + 16, rows_at, 0}, {j + 32, rows_at, 0}, {j + 48, rows_at, 0}}, drop, random);
    }
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t j = begin; j < std::min(begin + STEP, width); j += LANES) {
        const int64_t at = row * width + j;
        Vector value = all_of(x + at);
        if (drop.keep_from) value *= kept(random[(j - begin) / LANES], row, drop);
        put(r ? value + all_of(r + at) : value, to + at);
      }
    }
  }
}

template <typename R>
void normalise(const R* s, int64_t width, const float* weight, const float* bias, float eps, R* y, float* moments) {
  Vector sums = {}, squares = {};
  for (int64_t j = 0; j < width; j += LANES) sums += all_of(s + j);
  const float mean = joined(sums, sum_of) / width;
  for (int64_t j = 0; j < width; j += LANES) {
    const Vector from_mean = all_of(s + j) - mean;
    squares += from_mean * from_mean;
  }
  const float by = 1 / std::sqrt(joined(squares, sum_of) / width + eps);
  for (int64_t j = 0; j < width; j += LANES) {
    put((all_of(s + j) - mean) * by * load<Vector>(weight + j) + load<Vector>(bias + j), y + j);
  }
  moments[0] = mean;
  moments[1] = by;
}

// Of s, from that of y: (g ∘ weight - mean(g ∘ weight) - z mean(g ∘ weight ∘ z)) / √…, z the row without
// weight and bias. Adds those of weight and bias to `learned`, where they are asked for.
template <typename R>
void normalise_back(const R* g, const R* s, int64_t width, const float* weight, const float* moments, R* to,
                    float* learned) {
  const float mean = moments[0], by = moments[1];
  Vector sums = {}, products = {};
  for (int64_t j = 0; j < width; j += LANES) {
    const Vector moved = all_of(g + j), z = (all_of(s + j) - mean) * by, weighed = moved * load<Vector>(weight + j);
    sums += weighed;
    products += weighed * z;
    if (learned) {
      store(load<Vector>(learned + j) + moved * z, learned + j);
      store(load<Vector>(learned + width + j) + moved, learned + width + j);
    }
  }
  const float one = joined(sums, sum_of) / width, other = joined(products, sum_of) / width;
  for (int64_t j = 0; j < width; j += LANES) {
    const Vector z = (all_of(s + j) - mean) * by;
    put((all_of(g + j) * load<Vector>(weight + j) - one - z * other) * by, to + j);
  }
}

// -- the operations ---------------------------------------------------------------------------------

// What `run` does for these precisions of x and r: bf16 both, fp32 both, or bf16 beside fp32.
template <typename Run>
void for_types(const at::Tensor& x, const at::Tensor& r, const Run& run) {
  if (r.scalar_type() == at::kBFloat16) {
    run(x.const_data_ptr<at::BFloat16>(), r.const_data_ptr<at::BFloat16>());
  } else if (x.scalar_type() == at::kBFloat16) {
    run(x.const_data_ptr<at::BFloat16>(), r.const_data_ptr<float>());
  } else {
    run(x.const_data_ptr<float>(), r.const_data_ptr<float>());
  }
}

void check(const at::Tensor& x, const at::Tensor& r) {
  TORCH_CHECK(x.dim() == 2 && x.size(1) % LANES == 0 && x.is_contiguous(), "rows of a multiple of 16 numbers");
  TORCH_CHECK(r.sizes() == x.sizes() && r.is_contiguous(), "two matrices of one size");
}

at::Tensor exact(const at::Tensor& numbers, int64_t width) {
  TORCH_CHECK(numbers.numel() == width);
  return numbers.to(at::kFloat).contiguous();
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> residual_norm(
    const at::Tensor& x, const at::Tensor& r, const at::Tensor& weight, const at::Tensor& bias, double eps, double p,
    int64_t key, int64_t call) {
  check(x, r);
  const int64_t rows = x.size(0), width = x.size(1);
  auto y = at::empty_like(r), s = at::empty_like(r), moments = at::empty({rows, 2}, r.options().dtype(at::kFloat));
  const at::Tensor weights = exact(weight, width), biases = exact(bias, width);
  const float *by = weights.const_data_ptr<float>(), *plus = biases.const_data_ptr<float>();
  float* to_moments = moments.mutable_data_ptr<float>();
  const Dropout drop = dropout(p, key, call);
  for_types(x, r, [&](auto from, auto around) {
    using R = std::remove_const_t<std::remove_pointer_t<decltype(around)>>;
    R *to = y.mutable_data_ptr<R>(), *sum = s.mutable_data_ptr<R>();
    each_block(rows, [=](int64_t block, int64_t first, int64_t n) {
      const int64_t at = first * width;
      dropped(from + at, around + at, block, n, width, drop, sum + at);
      for (int64_t i = first; i < first + n; ++i) {
        normalise(sum + i * width, width, by, plus, float(eps), to + i * width, to_moments + 2 * i);
      }
    });
  });
  return {y, s, moments};
}

// Gradients of x (none where it is r's, nothing being dropped), of r, and of weight and bias beneath each
// other, a sum for each eight rows.
std::tuple<at::Tensor, at::Tensor, at::Tensor> residual_norm_gradient(
    const at::Tensor& g, const at::Tensor& s, const at::Tensor& moments, const at::Tensor& weight,
    at::ScalarType x_type, bool of_weights, double p, int64_t key, int64_t call) {
  check(g, s);
  const int64_t rows = g.size(0), width = g.size(1), blocks = of_weights ? (rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE : 0;
  const Dropout drop = dropout(p, key, call);
  auto g_r = at::empty_like(s);
  auto g_x = at::empty(drop.keep_from ? s.sizes() : at::IntArrayRef{0}, s.options().dtype(x_type));
  auto learned = at::empty({blocks, 2, width}, s.options().dtype(at::kFloat));
  const at::Tensor weights = exact(weight, width);
  const float *by = weights.const_data_ptr<float>(), *known = moments.const_data_ptr<float>();
  float* to_learned = of_weights ? learned.mutable_data_ptr<float>() : nullptr;
  const auto run = [&](auto x_zero, auto r_zero) {
    using X = decltype(x_zero);
    using R = decltype(r_zero);
    const R *from = g.const_data_ptr<R>(), *sum = s.const_data_ptr<R>();
    R* to = g_r.template mutable_data_ptr<R>();
    X* to_x = drop.keep_from ? g_x.template mutable_data_ptr<X>() : nullptr;
    each_block(rows, [=](int64_t block, int64_t first, int64_t n) {
      float* added = to_learned ? to_learned + block * 2 * width : nullptr;
      if (added) std::fill(added, added + 2 * width, 0.0f);
      for (int64_t i = first; i < first + n; ++i) {
        const int64_t at = i * width;
        normalise_back(from + at, sum + at, width, by, known + 2 * i, to + at, added);
      }
      const X* none = nullptr;
      if (to_x) dropped(to + first * width, none, block, n, width, drop, to_x + first * width);
    });
  };
  if (s.scalar_type() == at::kBFloat16) {
    run(at::BFloat16(0), at::BFloat16(0));
  } else {
    x_type == at::kBFloat16 ? run(at::BFloat16(0), 0.0f) : run(0.0f, 0.0f);
  }
  return {g_x, g_r, learned};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(peftlab, library) {
  library.def(
      "residual_norm(Tensor x, Tensor r, Tensor weight, Tensor bias, float eps, float p, int key, int call) -> "
      "(Tensor, Tensor, Tensor)");
  library.def(
      "residual_norm_gradient(Tensor g, Tensor s, Tensor moments, Tensor weight, ScalarType x_type, "
      "bool of_weights, float p, int key, int call) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(peftlab, CPU, library) {
  library.impl("residual_norm", residual_norm);
  library.impl("residual_norm_gradient", residual_norm_gradient);
}
