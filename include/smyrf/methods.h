// The methods and their dials as a table: checks, bindings and programs are driven by it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "smyrf/options.h"

namespace smyrf {

struct PlanInfo;

/// A number by which a method is set.
struct Dial {
  const char* name;      ///< of the member of Options, and of Python's argument
  const char* meaning;   ///< one line
  const char* accepted;  ///< its range in words
  double least = 0.0;
  double most = 0.0;
  bool above_least = false;  ///< `least` itself is not accepted
  bool below_most = false;   ///< `most` itself is not accepted
  /// Where none is given; none: no limit.
  std::optional<double> default_value{};
  std::optional<std::int64_t> Options::* whole = nullptr;  ///< its member, of a dial of integers
  std::optional<double> Options::* real = nullptr;         ///< of any other dial
  /// By a plan whose method has the dial.
  std::optional<double> (*planned)(const PlanInfo&) = nullptr;

  /// By a call.
  std::optional<double> Asked(const Options& options) const {
    if (whole == nullptr) return options.*real;
    const std::optional<std::int64_t> value = options.*whole;
    return value ? std::optional(static_cast<double>(*value)) : std::nullopt;
  }

  bool Accepts(double value) const {
    return (above_least ? value > least : value >= least) &&
           (below_most ? value < most : value <= most);
  }
};

/// What a method is and takes.
struct MethodInfo {
  Method method;
  const char* name;
  const char* summary;  ///< one line
  std::span<const Dial* const> dials{};
  /// attn_mask, is_causal and window; every method takes padding masks.
  bool takes_masks = false;
  bool takes_dropout = false;
  /// Draws random numbers of Options::seed, beside those of dropout.
  bool takes_seed = false;
  bool chooses = false;  ///< only chooses another method: no plan has it

  bool Has(const Dial& dial) const {
    for (const Dial* own : dials) {
      if (own == &dial) return true;
    }
    return false;
  }
};

/// All methods, in the order of the registry.
std::span<const MethodInfo* const> methods();
/// "dense" and so on; "?" for a number that is no method.
const char* name(Method method);
/// None for an unknown name.
std::optional<Method> method_named(std::string_view name);

}  // namespace smyrf
