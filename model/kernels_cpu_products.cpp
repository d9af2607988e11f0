// CPU kernels of the linear layers: plain products, and a frozen layer with its low-rank pair.

#include "core/error.h"
#include "model/kernels_cpu.h"
#include "model/kernels_lanes.h"

namespace plimsoll::model::cpu {
namespace {

using c10::BFloat16;
using lanes::F8;
using lanes::load;
using lanes::splat;
using lanes::store;

struct Tile {
  std::int64_t row, rows, column, columns;
};

/// Of a tile of a matrix of so many rows and columns.
std::int64_t tile_elements(std::int64_t rows, std::int64_t columns) {
  return std::min(rows, kTileRows) * std::min(columns, kTileColumns);
}

template <class Body>
void for_tiles(std::int64_t rows, std::int64_t columns, Body&& body) {
  for (std::int64_t row = 0; row < rows; row += kTileRows) {
    for (std::int64_t column = 0; column < columns; column += kTileColumns) {
      body(Tile{row, std::min(kTileRows, rows - row), column, std::min(kTileColumns, columns - column)});
    }
  }
}

template <class From, class To>
void convert(const From* from, To* to, std::int64_t n) {
  constexpr std::int64_t kPiece = 4096;
  for_rows((n + kPiece - 1) / kPiece, kPiece, [&](std::int64_t first, std::int64_t last) {
    const std::int64_t begin = first * kPiece;
    lanes::for_each(std::min(n, last * kPiece) - begin,
                    [&](std::int64_t i, auto count) { store(to + begin + i, load(from + begin + i, count), count); });
  });
}

std::int64_t converted_bytes(const Tensor& x, at::ScalarType compute) {
  const auto size = static_cast<std::int64_t>(c10::elementSize(compute));
  return !x.defined() || x.scalar_type() == compute ? 0 : Scratch::padded(x.numel() * size);
}

/// The tensor's elements as T: its own memory, or a copy in scratch when it has another type.
template <class T>
const T* as(const Tensor& x, Scratch& scratch) {
  if (!x.defined()) return nullptr;
  if (x.scalar_type() == c10::CppTypeToScalarType<T>::value) return data<T>(x);
  T* copy = scratch.take<T>(x.numel());
  with_type(x.scalar_type(), [&](auto type) { convert(data<decltype(type)>(x), copy, x.numel()); });
  return copy;
}

template <class T>
Matrix<T> shifted(Matrix<T> m, std::int64_t row, std::int64_t column) {
  return {m.data + (m.transposed ? column * m.stride + row : row * m.stride + column), m.stride, m.transposed};
}

/// What a tile of the output holds before the product is added: beta out + bias + scale u b^T.
struct Prefill {
  const float* bias = nullptr;
  float beta = 0.0F;
  const float* up = nullptr;  ///< [r, out]: scale b^T
  std::int64_t rank = 0;
  bool any() const { return bias != nullptr || beta != 0.0F || up != nullptr; }
};

template <class T, class U>
void prefill_row(const Prefill& with, const U* u, std::int64_t out_columns, std::int64_t column, std::int64_t n,
                 const T* old, float* to) {
  lanes::for_each(n, [&](std::int64_t i, auto count) {
    F8 v = with.bias != nullptr ? load(with.bias + column + i, count) : F8{};
    if (with.beta != 0.0F) v = lanes::fma(load(old + i, count), splat(with.beta), v);
    for (std::int64_t j = 0; j < with.rank; ++j) {
      v = lanes::fma(load(with.up + j * out_columns + column + i, count), splat(static_cast<float>(u[j])), v);
    }
    store(to + i, v, count);
  });
}

template <class X>
void store_tile(const float* from, const Tile& tile, std::int64_t width, X* to) {
  for_rows(tile.rows, tile.columns, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t row = first; row < last; ++row) {
      X* out = to + (tile.row + row) * width + tile.column;
      lanes::for_each(tile.columns, [&](std::int64_t i, auto count) {
        store(out + i, load(from + row * tile.columns + i, count), count);
      });
    }
  });
}

/// out = a b + prefill, T operands, O output. fp32 output is multiplied in place; bf16 goes through an fp32 tile.
template <class T, class U, class O>
void tiled_product(std::int64_t m, std::int64_t n, std::int64_t k, Matrix<T> a, Matrix<T> b, const Prefill& with,
                   const U* u, O* out, float* tile_buffer) {
  constexpr bool kInPlace = std::is_same_v<O, float>;
  const auto fill = [&](const Tile& tile, float* to, std::int64_t stride) {
    for_rows(tile.rows, tile.columns * (1 + with.rank), [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t row = first; row < last; ++row) {
        prefill_row(with, u == nullptr ? u : u + (tile.row + row) * with.rank, n, tile.column, tile.columns,
                    out + (tile.row + row) * n + tile.column, to + row * stride);
      }
    });
  };
  if constexpr (kInPlace) {
    const bool only_beta = with.bias == nullptr && with.up == nullptr;
    if (!only_beta) fill({0, m, 0, n}, out, n);
    gemm(m, n, k, 1.0F, a, b, only_beta ? with.beta : 1.0F, out, n);
  } else {
    for_tiles(m, n, [&](const Tile& tile) {
      if (with.any()) fill(tile, tile_buffer, tile.columns);
      gemm(tile.rows, tile.columns, k, 1.0F, shifted(a, tile.row, 0), shifted(b, 0, tile.column),
           with.any() ? 1.0F : 0.0F, tile_buffer, tile.columns);
      store_tile(tile_buffer, tile, n, out);
    });
  }
}

/// scale b^T as fp32 [r, out].
void transpose_up(const Tensor& b, float scale, float* to) {
  const std::int64_t out = b.size(0), rank = b.size(1);
  const float* from = data<float>(b);
  for (std::int64_t i = 0; i < out; ++i) {
    for (std::int64_t j = 0; j < rank; ++j) to[j * out + i] = scale * from[i * rank + j];
  }
}

/// Dropout of a row's channels [begin, begin + n), begin a multiple of 32: calls body(i, keep mask, count).
struct RowMask {
  std::uint32_t k0, k1, token, site, threshold;
};

RowMask row_mask(const Dropout& dropout, std::uint32_t site, std::int64_t row) {
  const std::int64_t* key = data<std::int64_t>(dropout.keys) + 2 * row;
  const auto words = static_cast<std::uint64_t>(key[0]);
  return {static_cast<std::uint32_t>(words), static_cast<std::uint32_t>(words >> 32),
          static_cast<std::uint32_t>(key[1]), site,
          static_cast<std::uint32_t>(static_cast<double>(dropout.rate) * 0x1.0p32)};
}

template <class Body>
void for_kept(const RowMask& mask, std::int64_t begin, std::int64_t n, Body&& body) {
  for (std::int64_t i = 0; i < n; i += 32) {
    const auto words =
        lanes::philox(mask.k0, mask.k1, mask.token, static_cast<std::uint32_t>((begin + i) / 32), mask.site);
    for (std::int64_t part = 0; part < 4 && i + 8 * part < n; ++part) {
      const std::int64_t at = i + 8 * part;
      const lanes::I8 keep = words.word[part] >= mask.threshold;
      if (at + 8 <= n) {
        body(at, keep, lanes::Full{});
      } else {
        body(at, keep, static_cast<int>(n - at));
      }
    }
  }
}

constexpr std::int64_t kMaskCost = 16;  // operations an element, as workers_for counts them

/// dropout(x) of a tile as T, contiguous. Without dropout a cast copy.
template <class X, class T>
void drop_tile(const X* x, std::int64_t width, const Tile& tile, const Dropout& dropout, std::uint32_t site, T* to) {
  const float keep_scale = 1.0F / (1.0F - dropout.rate);
  for_rows(tile.rows, tile.columns * kMaskCost, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t row = first; row < last; ++row) {
      const X* from = x + (tile.row + row) * width + tile.column;
      T* out = to + row * tile.columns;
      if (dropout.rate == 0.0F) {
        lanes::for_each(tile.columns,
                        [&](std::int64_t i, auto count) { store(out + i, load(from + i, count), count); });
        continue;
      }
      for_kept(row_mask(dropout, site, tile.row + row), tile.column, tile.columns,
               [&](std::int64_t i, lanes::I8 keep, auto count) {
                 store(out + i, keep ? load(from + i, count) * keep_scale : F8{}, count);
               });
    }
  });
}

/// to += dropout'(from), both fp32 tiles.
void add_dropped(const float* from, const Tile& tile, const Dropout& dropout, std::uint32_t site, float* to,
                 std::int64_t stride_to) {
  const float keep_scale = 1.0F / (1.0F - dropout.rate);
  for_rows(tile.rows, tile.columns * kMaskCost, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t row = first; row < last; ++row) {
      const float* source = from + row * tile.columns;
      float* target = to + row * stride_to;
      for_kept(row_mask(dropout, site, tile.row + row), tile.column, tile.columns,
               [&](std::int64_t i, lanes::I8 keep, auto count) {
                 const F8 v = keep ? load(source + i, count) * keep_scale : F8{};
                 store(target + i, load(target + i, count) + v, count);
               });
    }
  });
}

template <class T>
bool can_skip_copy(const Tensor& x, const Dropout& dropout) {
  return dropout.rate == 0.0F && x.scalar_type() == c10::CppTypeToScalarType<T>::value;
}

/// u = dropout(x) a^T. `u32`: [n, r] fp32 scratch.
template <class T>
void down_project(const Tensor& x, const LoraTensors& layer, const Dropout& dropout, const T* a, T* dropped,
                  float* u32) {
  const std::int64_t n = rows(x), in = columns(x), rank = layer.a.size(0);
  const Matrix<T> down{a, in, true};
  if (can_skip_copy<T>(x, dropout)) {
    gemm(n, rank, in, 1.0F, Matrix<T>{data<T>(x), in}, down, 0.0F, u32, rank);
    return;
  }
  with_type(x.scalar_type(), [&](auto type) {
    for_tiles(n, in, [&](const Tile& tile) {
      drop_tile(data<decltype(type)>(x), in, tile, dropout, layer.site, dropped);
      gemm(tile.rows, rank, tile.columns, 1.0F, Matrix<T>{dropped, tile.columns}, shifted(down, tile.column, 0),
           tile.column == 0 ? 0.0F : 1.0F, u32 + tile.row * rank, rank);
    });
  });
}

template <class T>
void lora_forward_as(const Tensor& x, const LoraTensors& layer, const Dropout& dropout, Tensor& u, Tensor& y) {
  constexpr auto kType = c10::CppTypeToScalarType<T>::value;
  constexpr bool kHalf = !std::is_same_v<T, float>;
  const std::int64_t n = rows(x), in = columns(x), out = layer.weight.size(0), rank = layer.a.size(0);
  Scratch scratch(lora_forward_scratch(x, layer, kType));
  const T* a = as<T>(layer.a, scratch);
  T* dropped = scratch.take<T>(tile_elements(n, in));
  float* u32 = scratch.take<float>(n * rank);
  down_project(x, layer, dropout, a, dropped, u32);
  convert(u32, data<T>(u), n * rank);
  if (!layer.values) return std::fill_n(data<T>(y), n * out, T(0.0F)), void();
  float* up = scratch.take<float>(rank * out);
  transpose_up(layer.b, layer.scale, up);
  const Prefill with{as<float>(layer.bias, scratch), 0.0F, up, rank};
  tiled_product(n, out, in, Matrix<T>{as<T>(x, scratch), in}, Matrix<T>{as<T>(layer.weight, scratch), in, true}, with,
                data<T>(u), data<T>(y), kHalf ? scratch.take<float>(tile_elements(n, out)) : nullptr);
}

/// One layer's scratch in a backward pass; all but the first two are null without a low-rank pair.
template <class T>
struct BackwardPieces {
  const T *grad, *weight, *a = nullptr, *b = nullptr;
  float* du32 = nullptr;  ///< scale g b, [n, r]
  T* du = nullptr;        ///< the same, rounded
};

template <class T>
BackwardPieces<T> begin_backward(const LoraTensors& layer, LoraGradients& gradients, std::int64_t n, bool wants_input,
                                 Scratch& scratch) {
  BackwardPieces<T> pieces{as<T>(gradients.grad_output, scratch), wants_input ? as<T>(layer.weight, scratch) : nullptr};
  if (!layer.a.defined()) return pieces;
  const std::int64_t out = layer.weight.size(0), rank = layer.a.size(0);
  pieces.a = as<T>(layer.a, scratch);
  pieces.b = as<T>(layer.b, scratch);
  pieces.du32 = scratch.take<float>(n * rank);
  pieces.du = scratch.take<T>(n * rank);
  gemm(n, rank, out, layer.scale, Matrix<T>{pieces.grad, out}, Matrix<T>{pieces.b, rank}, 0.0F, pieces.du32, rank);
  convert(pieces.du32, pieces.du, n * rank);
  if (gradients.db.defined()) {
    gemm(out, rank, n, layer.scale, Matrix<T>{pieces.grad, out, true}, Matrix<T>{data<T>(gradients.u), rank}, 0.0F,
         data<float>(gradients.db), rank);
  }
  return pieces;
}

/// da[:, tile columns] (+)= du^T dropout(x) over the tile's rows.
template <class T>
void add_down_gradient(const Tensor& x, const LoraTensors& layer, const Dropout& dropout,
                       const BackwardPieces<T>& pieces, const Tile& tile, T* dropped, Tensor& da) {
  const std::int64_t in = columns(x), rank = layer.a.size(0);
  Matrix<T> source{dropped, tile.columns};
  if (can_skip_copy<T>(x, dropout)) {
    source = {data<T>(x) + tile.row * in + tile.column, in};
  } else {
    with_type(x.scalar_type(),
              [&](auto type) { drop_tile(data<decltype(type)>(x), in, tile, dropout, layer.site, dropped); });
  }
  gemm(rank, tile.columns, tile.rows, 1.0F, Matrix<T>{pieces.du + tile.row * rank, rank, true}, source,
       tile.row == 0 ? 0.0F : 1.0F, data<float>(da) + tile.column, in);
}

/// to (+)= g w + dropout'(du a) over a tile.
template <class T>
void add_input_gradient(const LoraTensors& layer, const Dropout& dropout, const BackwardPieces<T>& pieces,
                        const Tile& tile, std::int64_t in, bool first, float* low_rank, float* to,
                        std::int64_t stride_to) {
  const std::int64_t out = layer.weight.size(0);
  gemm(tile.rows, tile.columns, out, 1.0F, Matrix<T>{pieces.grad + tile.row * out, out},
       Matrix<T>{pieces.weight + tile.column, in}, first ? 0.0F : 1.0F, to, stride_to);
  if (!layer.a.defined()) return;
  const std::int64_t rank = layer.a.size(0);
  const Matrix<T> du{pieces.du + tile.row * rank, rank}, a{pieces.a + tile.column, in};
  if (dropout.rate == 0.0F) {
    gemm(tile.rows, tile.columns, rank, 1.0F, du, a, 1.0F, to, stride_to);
    return;
  }
  gemm(tile.rows, tile.columns, rank, 1.0F, du, a, 0.0F, low_rank, tile.columns);
  add_dropped(low_rank, tile, dropout, layer.site, to, stride_to);
}

bool any_adapted(const std::vector<LoraTensors>& layers) {
  return std::any_of(layers.begin(), layers.end(), [](const LoraTensors& layer) { return layer.a.defined(); });
}

template <class T, class X>
void lora_backward_as(const Tensor& x, const std::vector<LoraTensors>& layers, const Dropout& dropout,
                      std::vector<LoraGradients>& gradients, Tensor& dx) {
  constexpr bool kInPlace = std::is_same_v<X, float>;
  const Tensor& shape = x.defined() ? x : dx;
  const std::int64_t n = rows(shape), in = columns(shape);
  const std::int64_t tile = tile_elements(n, in), low = any_adapted(layers) ? tile : 0;
  Scratch scratch(lora_backward_scratch(x, layers, c10::CppTypeToScalarType<T>::value, gradients, dx));
  std::vector<BackwardPieces<T>> pieces;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    pieces.push_back(begin_backward<T>(layers[i], gradients[i], n, dx.defined(), scratch));
    if (n == 0 && gradients[i].da.defined()) std::memset(data<float>(gradients[i].da), 0, gradients[i].da.nbytes());
  }
  T* dropped = scratch.take<T>(low);
  float *low_rank = scratch.take<float>(low), *sum = scratch.take<float>(kInPlace ? 0 : tile);
  for_tiles(n, in, [&](const Tile& at) {
    float* to = sum;
    if constexpr (kInPlace) to = dx.defined() ? data<float>(dx) + at.row * in + at.column : nullptr;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if (gradients[i].da.defined()) add_down_gradient(x, layers[i], dropout, pieces[i], at, dropped, gradients[i].da);
      if (dx.defined()) {
        add_input_gradient(layers[i], dropout, pieces[i], at, in, i == 0, low_rank, to, kInPlace ? in : at.columns);
      }
    }
    if (!kInPlace && dx.defined()) store_tile(sum, at, in, data<X>(dx));
  });
}

template <class T, class O>
void product_as(const Product& p, Tensor& out) {
  const std::int64_t m = out.size(0), n = out.size(1), k = p.transpose_a ? p.a.size(0) : p.a.size(1);
  constexpr bool kTiled = !std::is_same_v<O, float>;
  Scratch scratch(product_scratch(p, out));
  const Prefill with{as<float>(p.bias, scratch), p.beta, nullptr, 0};
  tiled_product(m, n, k, Matrix<T>{as<T>(p.a, scratch), p.a.size(1), p.transpose_a},
                Matrix<T>{as<T>(p.b, scratch), p.b.size(1), p.transpose_b}, with, static_cast<const T*>(nullptr),
                data<O>(out), kTiled ? scratch.take<float>(tile_elements(m, n)) : nullptr);
}

/// A piece of `count` elements, as Scratch::take gives it.
std::int64_t piece(std::int64_t count, at::ScalarType type) {
  return Scratch::padded(count * static_cast<std::int64_t>(c10::elementSize(type)));
}

}  // namespace

std::int64_t product_scratch(const Product& p, const Tensor& out) {
  const bool tiled = out.scalar_type() != at::kFloat;
  return converted_bytes(p.a, p.compute) + converted_bytes(p.b, p.compute) + converted_bytes(p.bias, at::kFloat) +
         (tiled ? piece(tile_elements(out.size(0), out.size(1)), at::kFloat) : 0);
}

std::int64_t lora_forward_scratch(const Tensor& x, const LoraTensors& layer, at::ScalarType compute) {
  const std::int64_t n = rows(x), in = columns(x), out = layer.weight.size(0), rank = layer.a.size(0);
  return converted_bytes(x, compute) + converted_bytes(layer.weight, compute) + converted_bytes(layer.a, compute) +
         converted_bytes(layer.bias, at::kFloat) + piece(tile_elements(n, in), compute) + piece(n * rank, at::kFloat) +
         piece(rank * out, at::kFloat) + (compute != at::kFloat ? piece(tile_elements(n, out), at::kFloat) : 0);
}

std::int64_t lora_backward_scratch(const Tensor& x, const std::vector<LoraTensors>& layers, at::ScalarType compute,
                                   const std::vector<LoraGradients>& gradients, const Tensor& dx) {
  const Tensor& shape = x.defined() ? x : dx;
  const std::int64_t n = rows(shape), tile = tile_elements(n, columns(shape));
  std::int64_t bytes = shape.scalar_type() != at::kFloat ? piece(tile, at::kFloat) : 0;
  if (any_adapted(layers)) bytes += piece(tile, compute) + piece(tile, at::kFloat);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    bytes += converted_bytes(gradients[i].grad_output, compute) + converted_bytes(layers[i].weight, compute);
    if (!layers[i].a.defined()) continue;
    const std::int64_t rank = layers[i].a.size(0);
    bytes += converted_bytes(layers[i].a, compute) + converted_bytes(layers[i].b, compute) +
             piece(n * rank, at::kFloat) + piece(n * rank, compute);
  }
  return bytes;
}

void CpuKernels::product(const Product& p, Tensor& out) const {
  with_type(p.compute, [&](auto compute) {
    with_type(out.scalar_type(), [&](auto type) { product_as<decltype(compute), decltype(type)>(p, out); });
  });
}

void CpuKernels::lora_forward(const Tensor& x, const LoraTensors& layer, const Dropout& dropout, at::ScalarType compute,
                              Tensor& u, Tensor& y) const {
  with_type(compute, [&](auto type) { lora_forward_as<decltype(type)>(x, layer, dropout, u, y); });
}

void CpuKernels::lora_backward(const Tensor& x, const std::vector<LoraTensors>& layers, const Dropout& dropout,
                               at::ScalarType compute, std::vector<LoraGradients>& gradients, Tensor& dx) const {
  with_type(compute, [&](auto type) {
    with_type((x.defined() ? x : dx).scalar_type(), [&](auto x_type) {
      lora_backward_as<decltype(type), decltype(x_type)>(x, layers, dropout, gradients, dx);
    });
  });
}

}  // namespace plimsoll::model::cpu
