// Dropout whose mask is drawn again in the backward pass: alone, and in one pass with the residual sum and the
// LayerNorm that end each half of a block.
//
//   x ∘ M                                                                      dropout
//   s = x ∘ M + r,   y = (s - mean s) / √(var s + ε) ∘ weight + bias           residual_norm, row by row
//
//   dropout                  x ∘ M; given the output's gradient, the gradient of x
//   residual_norm            y, s, and the moments of each row: mean s and 1 / √(var s + ε)
//   residual_norm_gradient   the gradients of x and r, and of weight and bias if needed
//
// M drops with probability p and scales the rest by 1 / (1 - p); its bits are those of row i and column j
// at place 0 (bits.py). All is computed in fp32, then rounded: y and s, the gradient of r, and from that rounded
// one the gradient of x.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <type_traits>

#include "../layers/vectors.h"

namespace {

constexpr int64_t GRAIN = 2;  // blocks of eight rows a thread takes at least

// Calls `work` for blocks of at most eight rows: the same blocks for any number of threads.
template <typename Work>
void each_block(int64_t rows, const Work& work) {
  at::parallel_for(0, (rows + ROWS - 1) / ROWS, GRAIN, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) work(block, block * ROWS, std::min(ROWS, rows - block * ROWS));
  });
}

// x ∘ M + r, or x ∘ M where `r` is none, of the rows of one block.
template <typename X, typename R>
void drop_rows(const X* x, const R* r, int64_t block, int64_t rows, int64_t width, const Dropout& dropout, R* to) {
  constexpr int64_t VECTORS = 4, STEP = VECTORS * LANES;
  for (int64_t first = 0; first < width; first += STEP) {
    Random random[VECTORS];
    if (dropout.keep_from) {
      Place places[VECTORS];
      for (int64_t v = 0; v < VECTORS; ++v) places[v] = {uint32_t(first + v * LANES), uint32_t(block), 0};
      philox(places, dropout, random);
    }
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t j = first; j < std::min(first + STEP, width); j += LANES) {
        const int64_t at = row * width + j;
        Vector value = vector_at(x + at);
        if (dropout.keep_from) value *= kept(random[(j - first) / LANES], row, dropout);
        put(r ? value + vector_at(r + at) : value, to + at);
      }
    }
  }
}

template <typename R>
void normalise(const R* s, int64_t width, const float* weight, const float* bias, float eps, R* y, float* moments) {
  Vector sums = {}, squares = {};
  for (int64_t j = 0; j < width; j += LANES) sums += vector_at(s + j);
  const float mean = joined<Sum>(sums) / width;
  for (int64_t j = 0; j < width; j += LANES) {
    const Vector from_mean = vector_at(s + j) - mean;
    squares += from_mean * from_mean;
  }
  const float scale = 1 / std::sqrt(joined<Sum>(squares) / width + eps);
  for (int64_t j = 0; j < width; j += LANES) {
    put((vector_at(s + j) - mean) * scale * load<Vector>(weight + j) + load<Vector>(bias + j), y + j);
  }
  moments[0] = mean;
  moments[1] = scale;
}

// The gradient of a row of s from that of y. With z the row without weight and bias, and u = g ∘ weight:
//
//   (u - mean u - z mean(u ∘ z)) · scale
//
// Adds the gradients of weight, g ∘ z, and of bias, g, to `g_affine`, if it is not null.
template <typename R>
void normalise_back(const R* g, const R* s, int64_t width, const float* weight, const float* moments, R* to,
                    float* g_affine) {
  const float mean = moments[0], scale = moments[1];
  Vector sums = {}, products = {};
  for (int64_t j = 0; j < width; j += LANES) {
    const Vector g_j = vector_at(g + j), z = (vector_at(s + j) - mean) * scale, u = g_j * load<Vector>(weight + j);
    sums += u;
    products += u * z;
    if (g_affine) {
      store(load<Vector>(g_affine + j) + g_j * z, g_affine + j);
      store(load<Vector>(g_affine + width + j) + g_j, g_affine + width + j);
    }
  }
  const float mean_u = joined<Sum>(sums) / width, mean_uz = joined<Sum>(products) / width;
  for (int64_t j = 0; j < width; j += LANES) {
    const Vector z = (vector_at(s + j) - mean) * scale;
    put((vector_at(g + j) * load<Vector>(weight + j) - mean_u - z * mean_uz) * scale, to + j);
  }
}

// -- the operations ---------------------------------------------------------------------------------

int64_t width_of(const at::Tensor& x) {
  TORCH_CHECK(x.dim() && x.size(-1) && x.size(-1) % LANES == 0 && x.is_contiguous(), "rows of a multiple of ", LANES,
              " numbers");
  return x.size(-1);
}

void check_like(const at::Tensor& one, const at::Tensor& other) {
  TORCH_CHECK(one.sizes() == other.sizes() && other.is_contiguous(), "two tensors of one shape");
}

at::Tensor of_columns(const at::Tensor& numbers, int64_t width) {
  TORCH_CHECK(numbers.dim() == 1 && numbers.size(0) == width, "a weight and a bias for each of ", width, " columns");
  return numbers.to(at::kFloat).contiguous();
}

// Calls `run` with a zero in the precision of x and one in that of r; they are equal, or x's is bf16.
template <typename Run>
void for_types(at::ScalarType x, at::ScalarType r, const Run& run) {
  if (r == at::kBFloat16) {
    run(at::BFloat16(0), at::BFloat16(0));
  } else {
    x == at::kBFloat16 ? run(at::BFloat16(0), 0.0f) : run(0.0f, 0.0f);
  }
}

at::Tensor dropout(const at::Tensor& x, double p, int64_t key, int64_t call) {
  const int64_t width = width_of(x);
  auto y = at::empty_like(x);
  for_types(x.scalar_type(), x.scalar_type(), [&, drawn = dropout_of(p, key, call)](auto zero, auto) {
    using X = decltype(zero);
    const X *from = x.const_data_ptr<X>(), *none = nullptr;
    X* to = y.template mutable_data_ptr<X>();
    each_block(x.numel() / width, [=](int64_t block, int64_t first, int64_t n) {
      drop_rows(from + first * width, none, block, n, width, drawn, to + first * width);
    });
  });
  return y;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> residual_norm(
    const at::Tensor& x, const at::Tensor& r, const at::Tensor& weight, const at::Tensor& bias, double eps, double p,
    int64_t key, int64_t call) {
  check_like(x, r);
  const int64_t width = width_of(x), rows = x.numel() / width;
  auto y = at::empty_like(r), s = at::empty_like(r), moments = at::empty({rows, 2}, r.options().dtype(at::kFloat));
  const at::Tensor weights = of_columns(weight, width), biases = of_columns(bias, width);
  for_types(x.scalar_type(), r.scalar_type(), [&, drawn = dropout_of(p, key, call)](auto x_zero, auto r_zero) {
    using X = decltype(x_zero);
    using R = decltype(r_zero);
    const X* from = x.const_data_ptr<X>();
    const R* around = r.const_data_ptr<R>();
    R *to_y = y.template mutable_data_ptr<R>(), *to_s = s.template mutable_data_ptr<R>();
    const float *of_weight = weights.const_data_ptr<float>(), *of_bias = biases.const_data_ptr<float>();
    float* to_moments = moments.mutable_data_ptr<float>();
    each_block(rows, [=](int64_t block, int64_t first, int64_t n) {
      const int64_t at = first * width;
      drop_rows(from + at, around + at, block, n, width, drawn, to_s + at);
      for (int64_t i = first; i < first + n; ++i) {
        normalise(to_s + i * width, width, of_weight, of_bias, float(eps), to_y + i * width, to_moments + 2 * i);
      }
    });
  });
  return {y, s, moments};
}

// The gradients of x (empty if nothing is dropped, as it equals that of r), of r, and of weight and bias, one below
// the other, summed over each eight rows.
std::tuple<at::Tensor, at::Tensor, at::Tensor> residual_norm_gradient(
    const at::Tensor& g, const at::Tensor& s, const at::Tensor& moments, const at::Tensor& weight,
    at::ScalarType x_type, bool needs_affine, double p, int64_t key, int64_t call) {
  check_like(g, s);
  const int64_t width = width_of(g), rows = g.numel() / width, blocks = needs_affine ? (rows + ROWS - 1) / ROWS : 0;
  const Dropout drawn = dropout_of(p, key, call);
  auto g_r = at::empty_like(s), g_affine = at::empty({blocks, 2, width}, s.options().dtype(at::kFloat));
  auto g_x = at::empty(p > 0 ? s.sizes() : at::IntArrayRef{0}, s.options().dtype(x_type));
  const at::Tensor weights = of_columns(weight, width);
  for_types(x_type, s.scalar_type(), [&](auto x_zero, auto r_zero) {
    using X = decltype(x_zero);
    using R = decltype(r_zero);
    const R *from = g.const_data_ptr<R>(), *of_s = s.const_data_ptr<R>();
    const float *of_weight = weights.const_data_ptr<float>(), *of_moments = moments.const_data_ptr<float>();
    R* to_r = g_r.template mutable_data_ptr<R>();
    X* to_x = g_x.template mutable_data_ptr<X>();
    float* to_g_affine = g_affine.mutable_data_ptr<float>();
    each_block(rows, [=](int64_t block, int64_t first, int64_t n) {
      float* g_block = needs_affine ? to_g_affine + block * 2 * width : nullptr;
      if (g_block) std::fill(g_block, g_block + 2 * width, 0.0f);
      for (int64_t i = first; i < first + n; ++i) {
        normalise_back(from + i * width, of_s + i * width, width, of_weight, of_moments + 2 * i, to_r + i * width,
                       g_block);
      }
      const X* none = nullptr;
      if (p > 0) drop_rows(to_r + first * width, none, block, n, width, drawn, to_x + first * width);
    });
  });
  return {g_x, g_r, g_affine};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(peftlab, library) {
  library.def("dropout(Tensor x, float p, int key, int call) -> Tensor");
  library.def(
      "residual_norm(Tensor x, Tensor r, Tensor weight, Tensor bias, float eps, float p, int key, int call) -> "
      "(Tensor, Tensor, Tensor)");
  library.def(
      "residual_norm_gradient(Tensor g, Tensor s, Tensor moments, Tensor weight, ScalarType x_type, "
      "bool needs_affine, float p, int key, int call) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(peftlab, CPU, library) {
  library.impl("dropout", dropout);
  library.impl("residual_norm", residual_norm);
  library.impl("residual_norm_gradient", residual_norm_gradient);
}
