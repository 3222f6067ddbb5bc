// Tiles, the registers of AMX: lent and shaped, and a frozen weight packed for them, block by block.
//
// A tile holds 16 rows of 64 bytes. Of two the processor multiplies four bytes along the sum at once, two numbers in
// bf16 or four in int8: of the left one as they lie in its rows, of the right one interleaved, so many in each column.
// W's rows are read as far as a block goes: by single lines packing took twice as long (LOG.md).
#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <new>

#include "vectors.h"

namespace {

constexpr int64_t LINE = 64;        // bytes
constexpr int64_t TILE = 16;        // rows of a tile, and numbers of four bytes in one of them
constexpr int64_t PAIR = 2 * TILE;  // rows, or columns, that are computed together
template <typename Number>
constexpr int64_t STEP = LINE / sizeof(Number);  // numbers in a tile's row
template <typename Number>
constexpr int64_t SIZE = TILE * STEP<Number>;  // numbers in it

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

// w (16 columns, a line along the sum) to a right tile: as numbers of four bytes, transposed.
template <typename Number>
void pack_transposed(Rows<const Number> w, Number* tile) {
  Vector rows[LANES];
  for (int64_t row = 0; row < LANES; ++row) rows[row] = load<Vector>(w[row]);
  transpose(rows);
  for (int64_t row = 0; row < LANES; ++row) store(rows[row], tile + row * STEP<Number>);
}

// w (32 along the sum, 32 columns) to two right tiles.
inline void pack_interleaved(Rows<const at::BFloat16> w, at::BFloat16* tiles) {
  typedef Of<uint16_t, 32>::Type Line;
  Line left, right;
  for (int64_t lane = 0; lane < 32; ++lane) left[lane] = lane / 2 + lane % 2 * 32;
  right = left + TILE;
  for (int64_t row = 0; row < TILE; ++row) {
    const Line one = load<Line>(w[2 * row]), other = load<Line>(w[2 * row + 1]);
    store(__builtin_shuffle(one, other, left), tiles + row * 32);
    store(__builtin_shuffle(one, other, right), tiles + (TILE + row) * 32);
  }
}

// w (64 along the sum, 32 columns) to two right tiles.
inline void pack_interleaved(Rows<const int8_t> w, int8_t* tiles) {
  typedef Of<uint8_t, LINE>::Type Line;
  Line left, right;
  for (int64_t lane = 0; lane < LINE; ++lane) left[lane] = lane / 4 + lane % 4 * PAIR;
  right = left + TILE;
  const auto two_rows = [&](int64_t row) {
    const __m512i one = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)w[row]));
    return bits_as<Line>(_mm512_inserti64x4(one, _mm256_loadu_si256((const __m256i*)w[row + 1]), 1));
  };
  for (int64_t row = 0; row < TILE; ++row) {
    const Line one = two_rows(4 * row), other = two_rows(4 * row + 2);
    store(__builtin_shuffle(one, other, left), tiles + row * LINE);
    store(__builtin_shuffle(one, other, right), tiles + (TILE + row) * LINE);
  }
}

// The right side of a product: Wᵀ, or W itself.
template <typename Number, bool IS_TRANSPOSED>
struct Right {
  Rows<const Number> w;

  Rows<const Number> from(int64_t k, int64_t column) const {
    return IS_TRANSPOSED ? w.from(column, k) : w.from(k, column);
  }

  // `depth` along the sum, from k on, of `panels` of 32 columns to (panels, depth / STEP, 2, 16, STEP): along W's rows.
  void pack(int64_t k, int64_t column, int64_t depth, int64_t panels, Number* block) const {
    const Rows<const Number> first = from(k, column);
    if constexpr (IS_TRANSPOSED) {
      for (int64_t p = 0; p < panels; ++p) {
        for (int64_t i = 0; i < depth; i += STEP<Number>, block += 2 * SIZE<Number>) {
          pack_transposed(first.from(p * PAIR, i), block);
          pack_transposed(first.from(p * PAIR + TILE, i), block + SIZE<Number>);
        }
      }
    } else {
      for (int64_t i = 0; i < depth; i += STEP<Number>, block += 2 * SIZE<Number>) {
        for (int64_t p = 0; p < panels; ++p) pack_interleaved(first.from(i, p * PAIR), block + p * PAIR * depth);
      }
    }
  }
};

}  // namespace
