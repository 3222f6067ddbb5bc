// Products with a frozen weight W (out, in) on a processor with AMX, all in bf16; sums are in fp32 and rounded once.
//
//   product            x (rows, in), W, c (out)   ->   x Wᵀ + c (rows, out)
//   product_gradient   g (rows, out), W           ->   g W (rows, in)
//
// A tile register holds 16 rows of 64 bytes. Of two tiles the processor multiplies pairs of numbers along the sum: of
// the left one as they lie in its rows, of the right one interleaved, a pair in each column. So W is packed, a block at
// a time, each time: a packed copy would take as much memory as W does. A block, 384 columns by at most 768 numbers
// along the sum, stays in the second-level cache while all rows pass, and what W has next is fetched meanwhile, a few
// lines a step. W's rows are read as far as a block goes: by single lines packing took twice as long (LOG.md).
//
// A row's numbers depend on no other row, and on no number of threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <new>

#include "../layers/vectors.h"

#if defined(__AMX_BF16__) && defined(__AVX512F__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

namespace {

typedef at::BFloat16 Number;
typedef Rows<const Number> Inputs;

constexpr int64_t TILE = 16;              // rows of a tile
constexpr int64_t STEP = 32;              // numbers in its rows
constexpr int64_t SIZE = TILE * STEP;     // numbers in it; in fp32 half of them
constexpr int64_t PAIR = 2 * TILE;        // rows, or columns, that are computed together
constexpr int64_t GROUP = 12;             // panels of 32 columns in a block of W
constexpr int64_t SLICE = 24 * STEP;      // its numbers along the sum, at most
constexpr int64_t BAND = 64 * PAIR;       // rows, whose sums are kept from slice to slice
constexpr int64_t LINE = 64;              // bytes
constexpr int64_t READ = 3, WRITTEN = 4;  // lines of W, and of the output, that are fetched in a step

static_assert(LANES == TILE);

// Linux lends a process the tiles when it is asked.
bool has_tiles() {
  constexpr int64_t REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return granted;
}

// All tiles of this thread, whole, for as long as this lives.
struct Tiles {
  struct alignas(LINE) Shapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  };
  Tiles() {
    Shapes shapes;
    std::fill_n(shapes.bytes, 8, uint16_t(LINE));
    std::fill_n(shapes.rows, 8, uint8_t(TILE));
    asm volatile("" ::"r"(&shapes) : "memory");  // older compilers think that it reads eight bytes
    _tile_loadconfig(&shapes);
  }
  ~Tiles() { _tile_release(); }
};

// Room for numbers, from a line's beginning on.
template <typename T>
struct Room {
  T* at;
  explicit Room(int64_t size) : at(static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t(LINE)))) {}
  ~Room() { ::operator delete(at, std::align_val_t(LINE)); }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
};

// -- packing ----------------------------------------------------------------------------------------

typedef Of<uint16_t, STEP>::Type Line;

// w (16 columns, 32 along the sum) to a right tile: pairs as numbers of fp32, transposed.
inline void pack_transposed(Inputs w, Number* tile) {
  Vector rows[LANES];
  for (int64_t row = 0; row < LANES; ++row) rows[row] = load<Vector>(w[row]);
  transpose(rows);
  for (int64_t row = 0; row < LANES; ++row) store(rows[row], tile + row * STEP);
}

// w (32 along the sum, 32 columns) to two right tiles.
inline void pack_interleaved(Inputs w, Number* tiles) {
  Line left, right;
  for (int64_t lane = 0; lane < STEP; ++lane) left[lane] = lane / 2 + lane % 2 * STEP;
  right = left + TILE;
  for (int64_t row = 0; row < TILE; ++row) {
    const Line one = load<Line>(w[2 * row]), other = load<Line>(w[2 * row + 1]);
    store(__builtin_shuffle(one, other, left), tiles + row * STEP);
    store(__builtin_shuffle(one, other, right), tiles + SIZE + row * STEP);
  }
}

// The right side of a product: Wᵀ, or W itself.
template <bool IS_TRANSPOSED>
struct Right {
  Inputs w;

  Inputs from(int64_t k, int64_t column) const { return IS_TRANSPOSED ? w.from(column, k) : w.from(k, column); }

  // `depth` along the sum, from k on, of `panels` of 32 columns to (panels, depth / 32, 2, 16, 32): along W's rows.
  void pack(int64_t k, int64_t column, int64_t depth, int64_t panels, Number* block) const {
    const Inputs first = from(k, column);
    if constexpr (IS_TRANSPOSED) {
      for (int64_t p = 0; p < panels; ++p) {
        for (int64_t i = 0; i < depth; i += STEP, block += 2 * SIZE) {
          pack_transposed(first.from(p * PAIR, i), block);
          pack_transposed(first.from(p * PAIR + TILE, i), block + SIZE);
        }
      }
    } else {
      for (int64_t i = 0; i < depth; i += STEP, block += 2 * SIZE) {
        for (int64_t p = 0; p < panels; ++p) pack_interleaved(first.from(i, p * PAIR), block + p * PAIR * depth);
      }
    }
  }
};

// -- the product of a block --------------------------------------------------------------------------

// Lines that are fetched ahead: `left` of them, `lines` in each row.
template <bool IS_WRITTEN>
struct Ahead {
  const char* at = nullptr;
  int64_t stride = 0, lines = 1, left = 0, line = 0;

  void fetch(int64_t some) {
    for (; some > 0 && left > 0; --some, --left) {
      // what is written soon into the first level, what is read next into the second
      __builtin_prefetch(at + line * LINE, IS_WRITTEN, IS_WRITTEN ? 3 : 2);
      if (++line == lines) {
        line = 0;
        at += stride;
      }
    }
  }
};

// sums (2, 2, 16, 16) = those so far + x w: of 32 rows, and of 32 columns that are packed.
void add_product(Inputs x, const Number* w, int64_t depth, bool begins, float* sums, Ahead<false>& next,
                 Ahead<true>& outputs) {
  constexpr int64_t OF_TILE = SIZE / 2;
  const Number *upper = x[0], *lower = x[TILE];
  const int64_t stride = x.stride * int64_t(sizeof(Number));
  asm volatile("" ::: "memory");  // the compiler does not know that tiles are loaded from what was packed
  if (begins) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, LINE);
    _tile_loadd(1, sums + OF_TILE, LINE);
    _tile_loadd(2, sums + 2 * OF_TILE, LINE);
    _tile_loadd(3, sums + 3 * OF_TILE, LINE);
  }
  for (int64_t k = 0; k < depth; k += STEP, w += 2 * SIZE) {
    _tile_loadd(4, upper + k, stride);
    _tile_loadd(6, w, LINE);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, w + SIZE, LINE);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, lower + k, stride);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    next.fetch(READ);
    outputs.fetch(WRITTEN);
  }
  _tile_stored(0, sums, LINE);
  _tile_stored(1, sums + OF_TILE, LINE);
  _tile_stored(2, sums + 2 * OF_TILE, LINE);
  _tile_stored(3, sums + 3 * OF_TILE, LINE);
}

// y (rows, 32) = sums + bias.
void finish(const float* sums, int64_t rows, const Vector (&bias)[2], Rows<Number> y) {
  for (int64_t row = 0; row < rows; ++row) {
    const float* of_row = sums + row / TILE * SIZE + row % TILE * TILE;
    put(vector_at(of_row) + bias[0], y[row]);
    put(vector_at(of_row + SIZE / 2) + bias[1], y[row] + TILE);
  }
}

// A part of the right side.
struct Block {
  int64_t first, panels, k, depth;
};

// x (rows, depth) by the right side, + bias, to y: some of its panels of 32 columns.
template <bool IS_TRANSPOSED>
class Panels {
 public:
  Panels(Inputs x, int64_t rows, int64_t depth, Right<IS_TRANSPOSED> right, const Number* bias, Rows<Number> y,
         int64_t begin, int64_t end)
      : x(x),
        rows(rows),
        depth(depth),
        right(right),
        bias(bias),
        y(y),
        begin(begin),
        end(end),
        slices((depth + SLICE - 1) / SLICE),
        packed(GROUP * PAIR * SLICE),
        last_rows(PAIR * depth),
        sums((slices > 1 ? (std::min(BAND, rows) + PAIR - 1) / PAIR * GROUP : 1) * PAIR * PAIR) {}

  void compute() {
    copy_last_rows();
    for (int64_t row = 0; row < rows; row += BAND) {
      for (Block block = block_at(begin, 0); block.panels > 0; block = after(block)) {
        right.pack(block.k, block.first * PAIR, block.depth, block.panels, packed.at);
        add_block(row, std::min(BAND, rows - row), block);
      }
    }
  }

 private:
  Block block_at(int64_t first, int64_t k) const {
    const int64_t slice = (depth / STEP + slices - 1) / slices * STEP;
    return {first, std::min(GROUP, end - first), k, std::min(slice, depth - k)};
  }

  Block after(const Block& block) const {
    const int64_t k = block.k + block.depth;
    return k < depth ? block_at(block.first, k) : block_at(block.first + block.panels, 0);
  }

  // Fewer than 32 rows at the end, with zeros below: a tile has sixteen.
  void copy_last_rows() {
    const int64_t some = rows % PAIR;
    if (some == 0) return;
    std::fill_n(last_rows.at, PAIR * depth, Number(0.f));
    std::copy_n(x[rows - some], some * depth, last_rows.at);
  }

  void add_block(int64_t row, int64_t n, const Block& block) {
    Ahead<false> next = ahead(after(block));
    for (int64_t i = 0; i < n; i += PAIR) {
      const Inputs of_x = n - i < PAIR ? Inputs{last_rows.at, depth} : x.from(row + i);
      for (int64_t p = 0; p < block.panels; ++p) {
        add_panel(of_x.from(0, block.k), row + i, std::min(PAIR, n - i), p, block, next);
      }
    }
  }

  void add_panel(Inputs of_x, int64_t row, int64_t some, int64_t p, const Block& block, Ahead<false>& next) {
    const int64_t column = (block.first + p) * PAIR, kept = slices > 1 ? row % BAND / PAIR * GROUP + p : 0;
    const bool ends = block.k + block.depth == depth;
    const Rows<Number> to = y.from(row, column);
    float* of_panel = sums.at + kept * PAIR * PAIR;
    Ahead<true> outputs;
    if (ends) outputs = {reinterpret_cast<const char*>(to.at), to.stride * int64_t(sizeof(Number)), 1, some};
    add_product(of_x, packed.at + p * PAIR * block.depth, block.depth, block.k == 0, of_panel, next, outputs);
    if (!ends) return;
    Vector biases[2] = {};
    if (bias) biases[0] = vector_at(bias + column);
    if (bias) biases[1] = vector_at(bias + column + TILE);
    finish(of_panel, some, biases, to);
  }

  Ahead<false> ahead(const Block& block) const {
    if (block.panels <= 0) return {};
    const Inputs w = right.from(block.k, block.first * PAIR);
    const int64_t lines = IS_TRANSPOSED ? block.depth / STEP : block.panels;  // in each row of W
    return {reinterpret_cast<const char*>(w.at), w.stride * int64_t(sizeof(Number)), lines,
            block.panels * block.depth};
  }

  const Inputs x;
  const int64_t rows, depth;
  const Right<IS_TRANSPOSED> right;
  const Number* const bias;
  const Rows<Number> y;
  const int64_t begin, end, slices;
  const Tiles tiles;
  const Room<Number> packed, last_rows;
  const Room<float> sums;
};

// -- the operations ---------------------------------------------------------------------------------

template <bool IS_TRANSPOSED>
at::Tensor multiply(const at::Tensor& x, const at::Tensor& weight, const Number* bias) {
  for (const at::Tensor* matrix : {&x, &weight}) {
    TORCH_CHECK(matrix->scalar_type() == at::kBFloat16 && matrix->dim() == 2 && matrix->is_contiguous(),
                "matrices in bf16, contiguous");
  }
  const int64_t rows = x.size(0), depth = x.size(1), width = weight.size(IS_TRANSPOSED ? 0 : 1);
  TORCH_CHECK(weight.size(IS_TRANSPOSED ? 1 : 0) == depth && depth > 0 && depth % STEP == 0 && width % PAIR == 0,
              "a weight (out, in) of multiples of 32, and rows of its width");
  TORCH_CHECK(has_tiles(), "the system lends no tiles");
  auto y = at::empty({rows, width}, x.options());
  if (rows == 0) return y;
  const Inputs of_x{x.const_data_ptr<Number>(), depth};
  const Right<IS_TRANSPOSED> right{{weight.const_data_ptr<Number>(), weight.size(1)}};
  const Rows<Number> of_y{y.mutable_data_ptr<Number>(), width};
  at::parallel_for(0, width / PAIR, 1, [&](int64_t begin, int64_t end) {
    Panels<IS_TRANSPOSED>(of_x, rows, depth, right, bias, of_y, begin, end).compute();
  });
  return y;
}

at::Tensor product(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  if (bias) {
    TORCH_CHECK(bias->scalar_type() == at::kBFloat16 && bias->is_contiguous() && bias->numel() == weight.size(0),
                "a bias (out) in bf16");
  }
  return multiply<true>(x, weight, bias ? bias->const_data_ptr<Number>() : nullptr);
}

at::Tensor product_gradient(const at::Tensor& g, const at::Tensor& weight) {
  return multiply<false>(g, weight, nullptr);
}

}  // namespace

TORCH_LIBRARY_IMPL(peftlab, CPU, library) {
  library.impl("product", product);
  library.impl("product_gradient", product_gradient);
}

#else  // the compiler, or the processor that it builds for, knows no such tiles

namespace {
bool has_tiles() { return false; }
}  // namespace

#endif

TORCH_LIBRARY_FRAGMENT(peftlab, library) {
  library.def("has_tiles() -> bool", has_tiles);
  library.def("product(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  library.def("product_gradient(Tensor g, Tensor weight) -> Tensor");
}
