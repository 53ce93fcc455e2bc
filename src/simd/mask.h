// Which keys a query may see, and what is added to its logits, in original positions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>

#include "base/half.h"
#include "smyrf/options.h"
#include "smyrf/tensor.h"

namespace smyrf {

/// Causality and window as an interval of keys a query, and an optional additive or boolean mask.
/// Queries and keys count by their indices in the call.
/// Padding is not here: padded rows are left out of the orders.
struct Mask {
  std::int64_t keys = 0;  ///< Nk
  /// The key at query i's position is i + own_offset, if there is one.
  std::int64_t own_offset = 0;
  /// Query i sees keys [i + first_offset, i + last_offset), cut to [0, Nk).
  std::int64_t first_offset = 0;
  std::int64_t last_offset = 0;
  /// (B, Hq, Nq, Nk) with strides 0 where broadcast; data is null without a mask.
  TensorView bias{};

  Mask(std::int64_t queries, std::int64_t keys_, bool is_causal,
       const std::optional<Window>& window, const TensorView& bias_,
       const std::optional<Positions>& positions = {})
      : keys(keys_),
        own_offset(positions ? positions->first_query - positions->first_key : keys - queries),
        bias(bias_) {
    constexpr std::int64_t kAll = std::int64_t{1} << 32;  // past both ends from any position
    const std::int64_t left = window && window->left >= 0 ? std::min(window->left, kAll) : kAll;
    std::int64_t right = window && window->right >= 0 ? std::min(window->right, kAll) : kAll;
    if (is_causal) right = 0;
    first_offset = own_offset - left;
    last_offset = own_offset + right + 1;
  }

  std::int64_t First(std::int64_t query) const {
    return std::clamp<std::int64_t>(query + first_offset, 0, keys);
  }
  std::int64_t Last(std::int64_t query) const {
    return std::clamp<std::int64_t>(query + last_offset, 0, keys);
  }

  const std::byte* BiasAt(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    return static_cast<const std::byte*>(bias.data) +
           SizeOf(bias.dtype) * (b * bias.strides[0] + h * bias.strides[1] + i * bias.strides[2] +
                                 j * bias.strides[3]);
  }
  /// What is added to the logit of a pair; -inf: the pair is not allowed.
  float Bias(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    if (j < First(i) || j >= Last(i)) return -std::numeric_limits<float>::infinity();
    if (bias.data == nullptr) return 0.0F;
    return LoadElement(BiasAt(b, h, i, j), bias.dtype);
  }
};

}  // namespace smyrf
