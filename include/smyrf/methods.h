// The methods and their dials as a table: checks, bindings and programs are driven by it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "smyrf/export.h"
#include "smyrf/options.h"
#include "smyrf/plan.h"

namespace smyrf {

/// An option that sets methods by a number. Methods may share it: each says what it means there,
/// and has a range and a default of its own (Dial).
struct DialOption {
  const char* name;  ///< of the member of Options, and of Python's argument
  std::optional<std::int64_t> Options::* whole = nullptr;  ///< that member, of integers
  std::optional<double> Options::* real = nullptr;         ///< that member, of any other numbers
  /// What plans keep of it: the number by which the plan was made. 0 or none where the plan's
  /// method does not have the dial.
  std::optional<double> (*planned)(const PlanInfo&) = nullptr;

  /// What the call gives.
  std::optional<double> Asked(const Options& options) const {
    if (whole == nullptr) return options.*real;
    const std::optional<std::int64_t> value = options.*whole;
    return value ? std::optional(static_cast<double>(*value)) : std::nullopt;
  }
  /// Whether both set the same member of Options.
  bool operator==(const DialOption& other) const {
    return whole == other.whole && real == other.real;
  }
};

inline constexpr DialOption kHashesOption{
    .name = "n_hashes",
    .whole = &Options::n_hashes,
    .planned =
        [](const PlanInfo& plan) { return std::optional(static_cast<double>(plan.n_hashes)); },
};
inline constexpr DialOption kClusterSizeOption{
    .name = "cluster_size",
    .whole = &Options::cluster_size,
    .planned =
        [](const PlanInfo& plan) { return std::optional(static_cast<double>(plan.cluster_size)); },
};
inline constexpr DialOption kToleranceOption{
    .name = "tolerance",
    .real = &Options::tolerance,
    .planned = [](const PlanInfo& plan) { return std::optional(plan.tolerance); },
};
inline constexpr DialOption kMaxDensityOption{
    .name = "max_density",
    .real = &Options::max_density,
    .planned = [](const PlanInfo& plan) { return plan.max_density; },
};
/// All.
inline constexpr std::array kDialOptions{kHashesOption, kClusterSizeOption, kToleranceOption,
                                         kMaxDensityOption};

/// What an option is to one method.
struct Dial {
  DialOption option;
  const char* meaning;   ///< one line
  const char* accepted;  ///< its range in words
  double least = 0.0;
  double most = 0.0;
  bool above_least = false;  ///< `least` itself is not accepted
  bool below_most = false;   ///< `most` itself is not accepted
  /// Where none is given; none: no limit.
  std::optional<double> default_value{};

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
  /// Has other products than float32.
  bool takes_precision = false;
  bool chooses = false;  ///< only chooses another method: no plan has it

  /// Its dial of the option, or null.
  const Dial* Find(const DialOption& option) const {
    for (const Dial* dial : dials) {
      if (dial->option == option) return dial;
    }
    return nullptr;
  }
};

/// All methods, in the order of the registry.
SMYRF_API std::span<const MethodInfo* const> methods();
/// "dense" and so on; "?" for a number that is no method.
SMYRF_API const char* name(Method method);
/// None for an unknown name.
SMYRF_API std::optional<Method> method_named(std::string_view name);
/// "auto", "float32", "int16" and "int8"; "?" for a number that is no precision.
SMYRF_API const char* name(Precision precision);
/// None for an unknown name.
SMYRF_API std::optional<Precision> precision_named(std::string_view name);

}  // namespace smyrf
