// Attention of a packed batch: each sentence's tokens attend to each other; there is no padding.
//
//   S = Q Kᵀ · scaling + positions,  P = softmax(S),  Y = (P ∘ M) V        a head of a sentence
//
//   attention            Y, and log Σ exp S of each row, which is all that is kept of S
//   attention_gradient   gradients of Q, K, V, and of positions if needed; computes S, P and M again
//
// M drops with probability p and scales the rest by 1 / (1 - p); its bits are those of row i and column j
// at place sentence · heads + head (bits.py).
//
// All is computed in fp32, whatever the precision of inputs and outputs. A product's tile stays in
// registers while it is summed.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "../layers/vectors.h"

namespace {

// -- products: C (rows, columns) = A (rows, inner) B (inner, columns) -------------------------------

// A's number (i, k) is at[i * row + k * inner], so that a matrix and its transpose are one type.
struct Left {
  const float* at;
  int64_t row, inner;
};

template <int N, int VECTORS>
void tile(int64_t inner, Left a, const float* b, int64_t b_row, float* c, int64_t c_row) {
  Vector sum[N][VECTORS] = {};
  for (int64_t k = 0; k < inner; ++k) {
    Vector right[VECTORS];
    for (int v = 0; v < VECTORS; ++v) right[v] = load<Vector>(b + k * b_row + v * LANES);
    for (int r = 0; r < N; ++r) {
      const float left = a.at[r * a.row + k * a.inner];
      for (int v = 0; v < VECTORS; ++v) sum[r][v] += left * right[v];
    }
  }
  for (int r = 0; r < N; ++r) {
    for (int v = 0; v < VECTORS; ++v) store(sum[r][v], c + r * c_row + v * LANES);
  }
}

// Tiles of N rows, then one of all that are left.
template <int VECTORS, int N = 6>
void strip(int64_t rows, int64_t inner, Left a, const float* b, int64_t b_row, float* c, int64_t c_row) {
  for (; rows >= N; rows -= N, a.at += N * a.row, c += N * c_row) tile<N, VECTORS>(inner, a, b, b_row, c, c_row);
  if constexpr (N > 1) strip<VECTORS, N - 1>(rows, inner, a, b, b_row, c, c_row);
}

// `columns`, the size of a row of B and C, is a multiple of LANES.
void product(int64_t rows, int64_t inner, int64_t columns, Left a, const float* b, float* c) {
  int64_t j = 0;
  for (; j + 2 * LANES <= columns; j += 2 * LANES) strip<2>(rows, inner, a, b + j, columns, c + j, columns);
  if (j < columns) strip<1>(rows, inner, a, b + j, columns, c + j, columns);
}

// -- exp, and the mask of dropout -------------------------------------------------------------------

// Of numbers <= 0, to 2 ulp: 2ⁿ · exp(f) with |f| <= log 2 / 2, by its series to the sixth power. 0 below -60, such
// as where no key is: products of less may be denormal, each of which takes an Intel processor 150 cycles.
Vector exp_of(Vector x) {
  constexpr float LEAST = -60.0f;
  const Vector shifted = x * 1.44269504f + WHOLE;
  const Vector n = shifted - WHOLE;
  const Vector f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector sum = f * (1.0f / 720) + 1.0f / 120;
  sum = sum * f + 1.0f / 24;
  sum = sum * f + 1.0f / 6;
  sum = sum * f + 0.5f;
  sum = sum * f + 1.0f;
  sum = sum * f + 1.0f;
  const Vector found = sum * bits_as<Vector>((bits_as<Bits>(shifted) << 23) + (127u << 23));
  return x < LEAST ? Vector{} : found;
}

// (rows, columns) of M.
void mask(int64_t rows, int64_t columns, uint32_t head, const Dropout& drop, float* to) {
  for (int64_t i = 0; i < rows; i += 2 * ROWS) {
    const uint32_t block = uint32_t(i / ROWS);
    for (int64_t j = 0; j < columns; j += LANES) {
      Random random[2];
      philox({{uint32_t(j), block, head}, {uint32_t(j), block + 1, head}}, drop, random);
      for (int64_t row = 0; row < std::min(2 * ROWS, rows - i); ++row) {
        const Vector by = kept(random[row / ROWS], row % ROWS, drop);
        store(by, to + (i + row) * columns + j);
      }
    }
  }
}

// -- one head of one sentence -----------------------------------------------------------------------

template <typename T>
void read(Rows<T> x, int64_t n, int64_t width, float scaling, float* to, int64_t row) {
  for (int64_t i = 0; i < n; ++i, to += row) {
    const T* from = x[i];
    int64_t c = 0;
    for (; c + LANES <= width; c += LANES) store(vector_at(from + c) * scaling, to + c);
    for (; c < width; ++c) to[c] = wide(from[c]) * scaling;
    for (; c < row; ++c) to[c] = 0;
  }
}

template <typename T>
void read_transposed(Rows<T> x, int64_t n, int64_t width, float* to, int64_t row) {
  int64_t c = 0;
  for (; c + LANES <= width; c += LANES) {
    for (int64_t i = 0; i < n; i += LANES) {
      Vector square[LANES];
      for (int64_t r = 0; r < LANES; ++r) {
        square[r] = i + r < n ? vector_at(x[i + r] + c) : Vector{};
      }
      transpose(square);
      for (int64_t r = 0; r < LANES; ++r) store(square[r], to + (c + r) * row + i);
    }
  }
  for (; c < width; ++c) {
    for (int64_t i = 0; i < row; ++i) to[c * row + i] = i < n ? wide(x[i][c]) : 0;
  }
}

template <typename T>
void write(const float* from, int64_t row, int64_t n, int64_t width, float scaling, Rows<T> to) {
  for (int64_t i = 0; i < n; ++i, from += row) {
    T* at = to[i];
    int64_t c = 0;
    for (; c + LANES <= width; c += LANES) put(load<Vector>(from + c) * scaling, at + c);
    for (; c < width; ++c) narrow(from[c] * scaling, at + c);
  }
}

void exp_all(float* at, float shift, int64_t row) {
  for (int64_t j = 0; j < row; j += LANES) store(exp_of(load<Vector>(at + j) - shift), at + j);
}

// Turns a row of S, which is -inf where no key is, into P, in place; returns log Σ exp S.
float softmax(float* at, int64_t row) {
  Vector most = load<Vector>(at), sums = {};
  for (int64_t j = LANES; j < row; j += LANES) most = Largest()(most, load<Vector>(at + j));
  const float shift = joined<Largest>(most);
  exp_all(at, shift, row);
  for (int64_t j = 0; j < row; j += LANES) sums += load<Vector>(at + j);
  const float sum = joined<Sum>(sums), by = 1 / sum;
  for (int64_t j = 0; j < row; j += LANES) store(load<Vector>(at + j) * by, at + j);
  return shift + std::log(sum);
}

struct Shape {
  int64_t heads, width, n_queries;  // rows of a sentence that need outputs; 0: all
  float scaling;
  const float* positions;  // (heads, length, length), or none
  int64_t length;
};

// Adds positions to S, and -inf where no key is.
void finish_scores(const Shape& shape, int64_t head, int64_t rows, int64_t n, int64_t row, float* s) {
  float absent[LANES];  // of the last vector
  for (int64_t lane = 0; lane < LANES; ++lane) absent[lane] = row - LANES + lane < n ? 0 : -INFINITY;
  const Vector none = load<Vector>(absent);
  for (int64_t i = 0; i < rows; ++i) {
    float* at = s + i * row;
    if (shape.positions) {
      const float* from = shape.positions + (head * shape.length + i) * shape.length;
      for (int64_t j = 0; j < n; ++j) at[j] += from[j];
    }
    store(load<Vector>(at + row - LANES) + none, at + row - LANES);
  }
}

// The working memory of one thread for the time of a call.
class Room {
 public:
  explicit Room(int64_t size) : numbers_(new float[size]), size_(size) {}
  float* take(int64_t size) {
    used_ += padded(size);
    if (used_ > size_) throw std::logic_error("a room too small");
    return numbers_.get() + used_ - padded(size);
  }
  void clear() { used_ = 0; }

 private:
  std::unique_ptr<float[]> numbers_;
  int64_t size_, used_ = 0;
};

// Calls `work` for all heads of all sentences; for one head's sentences in turn if they `add` to a tensor of the head.
template <typename Work>
void each_head(const at::Tensor& bounds, int64_t heads, int64_t matrices, int64_t width, bool add, const Work& work) {
  const int64_t* first = bounds.const_data_ptr<int64_t>();
  const int64_t sentences = bounds.size(0) - 1, each = add ? sentences : 1;
  int64_t most = 0;
  for (int64_t i = 0; i < sentences; ++i) most = std::max(most, padded(first[i + 1] - first[i]));
  at::parallel_for(0, sentences * heads / each, 1, [&](int64_t begin, int64_t end) {
    Room room(matrices * most * (most + padded(width)));
    for (int64_t place = begin * each; place < end * each; ++place) {
      const int64_t sentence = add ? place % sentences : place / heads;
      const int64_t head = add ? place / sentences : place % heads;
      const int64_t n = first[sentence + 1] - first[sentence];
      room.clear();
      work(first[sentence], n, head, uint32_t(sentence * heads + head), room);
    }
  });
}

// -- the operations ---------------------------------------------------------------------------------

// Checks that no sentence is empty, and that all lie within `rows` rows, from the first on.
void check(const at::Tensor& bounds, int64_t rows) {
  TORCH_CHECK(bounds.is_contiguous() && bounds.size(0) > 1);
  const int64_t* at = bounds.const_data_ptr<int64_t>();
  bool fits = at[0] == 0 && at[bounds.size(0) - 1] <= rows;
  for (int64_t i = 1; i < bounds.size(0); ++i) fits = fits && at[i - 1] < at[i];
  TORCH_CHECK(fits, "sentences must have tokens, and rows");
}

// (rows, columns) for results, with zeros in rows of no sentence; everywhere if only some queries have results.
at::Tensor results(int64_t columns, const at::Tensor& q, const at::Tensor& bounds, int64_t n_queries) {
  if (n_queries) return at::zeros({q.size(0), columns}, q.options());
  auto y = at::empty({q.size(0), columns}, q.options());
  y.slice(0, bounds.const_data_ptr<int64_t>()[bounds.size(0) - 1]).zero_();
  return y;
}

template <typename T>
Rows<const T> rows_of(const at::Tensor& x) {
  TORCH_CHECK(x.dim() == 2 && x.stride(1) == 1);
  return {x.const_data_ptr<T>(), x.stride(0)};
}

Shape shape_of(const at::Tensor& q, const std::optional<at::Tensor>& positions, int64_t heads,
               double scaling, int64_t n_queries) {
  const float* at = nullptr;
  if (positions) {
    TORCH_CHECK(positions->dim() == 3 && positions->is_contiguous());
    at = positions->const_data_ptr<float>();
  }
  TORCH_CHECK(q.size(1) % heads == 0);
  return {heads, q.size(1) / heads, n_queries, float(scaling), at, positions ? positions->size(2) : 0};
}

template <typename T>
void forward(Rows<const T> q, Rows<const T> k, Rows<const T> v, const at::Tensor& bounds, const Shape& shape,
             const Dropout& drop, Rows<T> y, Rows<float> log_sums) {
  const auto work = [=](int64_t start, int64_t n, int64_t head, uint32_t index, Room& room) {
    const int64_t width = shape.width, rows = shape.n_queries ? std::min(shape.n_queries, n) : n;
    const int64_t row = padded(n), wide_row = padded(width), column = head * width;
    float* queries = room.take(rows * width);
    float* keys = room.take(width * row);
    float* values = room.take(n * wide_row);
    float* probs = room.take(rows * row);
    read(q.from(start, column), rows, width, shape.scaling, queries, width);
    read_transposed(k.from(start, column), n, width, keys, row);
    read(v.from(start, column), n, width, 1, values, wide_row);
    product(rows, width, row, {queries, width, 1}, keys, probs);
    finish_scores(shape, head, rows, n, row, probs);
    float* log_sum = log_sums.from(head, start).at;
    for (int64_t i = 0; i < rows; ++i) log_sum[i] = softmax(probs + i * row, row);
    if (drop.keep_from) {
      float* by = room.take(rows * row);
      mask(rows, row, index, drop, by);
      for (int64_t j = 0; j < rows * row; ++j) probs[j] *= by[j];
    }
    float* output = room.take(rows * wide_row);
    product(rows, n, wide_row, {probs, row, 1}, values, output);
    write(output, wide_row, rows, width, 1, y.from(start, column));
  };
  each_head(bounds, shape.heads, 4, shape.width, false, work);
}

template <typename T>
void backward(Rows<const T> g, Rows<const T> q, Rows<const T> k, Rows<const T> v, const at::Tensor& bounds,
              const Shape& shape, const Dropout& drop, Rows<const float> log_sums, Rows<T> to, float* g_positions) {
  const auto work = [=](int64_t start, int64_t n, int64_t head, uint32_t index, Room& room) {
    const int64_t width = shape.width, rows = shape.n_queries ? std::min(shape.n_queries, n) : n;
    const int64_t row = padded(n), wide_row = padded(width), column = head * width, all = shape.heads * width;
    float* queries = room.take(rows * wide_row);
    float* keys = room.take(n * wide_row);
    float* transposed = room.take(width * row);
    float* gradients = room.take(rows * wide_row);
    float* probs = room.take(rows * row);
    float* g_scores = room.take(rows * row);
    float* product_out = room.take(n * wide_row);
    read(q.from(start, column), rows, width, shape.scaling, queries, wide_row);
    read(k.from(start, column), n, width, 1, keys, wide_row);
    read(g.from(start, column), rows, width, 1, gradients, wide_row);
    read_transposed(k.from(start, column), n, width, transposed, row);
    product(rows, width, row, {queries, wide_row, 1}, transposed, probs);
    finish_scores(shape, head, rows, n, row, probs);
    const float* log_sum = log_sums.from(head, start).at;
    for (int64_t i = 0; i < rows; ++i) exp_all(probs + i * row, log_sum[i], row);
    read_transposed(v.from(start, column), n, width, transposed, row);
    product(rows, width, row, {gradients, wide_row, 1}, transposed, g_scores);  // of P ∘ M
    float* dropped = probs;
    if (drop.keep_from) {
      dropped = room.take(rows * row);
      mask(rows, row, index, drop, dropped);
      for (int64_t j = 0; j < rows * row; ++j) {
        g_scores[j] *= dropped[j];
        dropped[j] *= probs[j];
      }
    }
    product(n, rows, wide_row, {dropped, 1, row}, gradients, product_out);
    write(product_out, wide_row, n, width, 1, to.from(start, 2 * all + column));
    for (int64_t i = 0; i < rows; ++i) {  // of S: P ∘ (g - Σ P ∘ g)
      float* at = g_scores + i * row;
      const float* prob = probs + i * row;
      Vector sums = {};
      for (int64_t j = 0; j < row; j += LANES) sums += load<Vector>(at + j) * load<Vector>(prob + j);
      const float sum = joined<Sum>(sums);
      for (int64_t j = 0; j < row; ++j) at[j] = prob[j] * (at[j] - sum);
    }
    if (g_positions) {
      float* of_head = g_positions + head * shape.length * shape.length;
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < n; ++j) of_head[i * shape.length + j] += g_scores[i * row + j];
      }
    }
    product(n, rows, wide_row, {g_scores, 1, row}, queries, product_out);
    write(product_out, wide_row, n, width, 1, to.from(start, all + column));
    product(rows, n, wide_row, {g_scores, row, 1}, keys, product_out);
    write(product_out, wide_row, rows, width, shape.scaling, to.from(start, column));
  };
  each_head(bounds, shape.heads, 5, shape.width, g_positions != nullptr, work);
}

std::tuple<at::Tensor, at::Tensor> attention(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bounds,
    const std::optional<at::Tensor>& positions, int64_t heads, double scaling, int64_t n_queries, double p,
    int64_t key, int64_t call) {
  check(bounds, q.size(0));
  const Shape shape = shape_of(q, positions, heads, scaling, n_queries);
  auto y = results(q.size(1), q, bounds, n_queries);
  auto log_sums = at::empty({heads, q.size(0)}, q.options().dtype(at::kFloat));
  const Rows<float> sums{log_sums.mutable_data_ptr<float>(), log_sums.stride(0)};
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    forward<T>(rows_of<T>(q), rows_of<T>(k), rows_of<T>(v), bounds, shape, dropout_of(p, key, call),
               {y.mutable_data_ptr<T>(), y.stride(0)}, sums);
  };
  q.scalar_type() == at::kBFloat16 ? run(at::BFloat16(0)) : run(0.0f);
  return {y, log_sums};
}

std::tuple<at::Tensor, at::Tensor> attention_gradient(
    const at::Tensor& g, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& bounds, const std::optional<at::Tensor>& positions, const at::Tensor& log_sums,
    bool needs_positions, int64_t heads, double scaling, int64_t n_queries, double p, int64_t key, int64_t call) {
  check(bounds, q.size(0));
  const Shape shape = shape_of(q, positions, heads, scaling, n_queries);
  auto g_qkv = results(3 * q.size(1), q, bounds, n_queries);
  const Rows<const float> sums{log_sums.const_data_ptr<float>(), log_sums.stride(0)};
  auto g_positions = needs_positions ? at::zeros_like(*positions) : at::empty({0}, log_sums.options());
  float* to_positions = needs_positions ? g_positions.mutable_data_ptr<float>() : nullptr;
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    backward<T>(rows_of<T>(g), rows_of<T>(q), rows_of<T>(k), rows_of<T>(v), bounds, shape,
                dropout_of(p, key, call), sums, {g_qkv.mutable_data_ptr<T>(), g_qkv.stride(0)}, to_positions);
  };
  q.scalar_type() == at::kBFloat16 ? run(at::BFloat16(0)) : run(0.0f);
  return {g_qkv, g_positions};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(peftlab, library) {
  library.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor bounds, Tensor? positions, int heads, "
      "float scaling, int n_queries, float p, int key, int call) -> (Tensor, Tensor)");
  library.def(
      "attention_gradient(Tensor g, Tensor q, Tensor k, Tensor v, Tensor bounds, Tensor? positions, "
      "Tensor log_sums, bool needs_positions, int heads, float scaling, int n_queries, float p, int key, "
      "int call) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(peftlab, CPU, library) {
  library.impl("attention", attention);
  library.impl("attention_gradient", attention_gradient);
}
