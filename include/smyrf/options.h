// What a call may ask for.
#pragma once

#include <cstdint>
#include <optional>

#include "smyrf/threads.h"
#include "smyrf/workspace.h"

namespace smyrf {

/// Numbers from 128 up are left to methods that a program adds to the library's.
enum class Method : std::uint8_t {
  kAuto,   ///< `tree` for long inputs (kAutoRows) that it can take, else `dense`
  kDense,  ///< every allowed pair
  kLsh,    ///< balanced clusters of an asymmetric hash (SMYRF, NeurIPS 2020)
  kTree,   ///< balanced trees, far nodes summarised, near ones opened to a tolerance
};

/// What the products of pairs that are evaluated one by one are computed in.
enum class Precision : std::uint8_t {
  kAuto,     ///< the narrowest whose error the tolerance allows; float32 where there is none
  kFloat32,  ///< as given
  kInt16,    ///< queries and keys as integers of 13 bits, weights and values as bfloat16
  kInt8,     ///< the same with 8 bits
};

/// Where query 0 and key 0 stand in a longer sequence: query i is at first_query + i, key j at
/// first_key + j. From 0 up; all positions are below 2^31.
struct Positions {
  std::int64_t first_query = 0;
  std::int64_t first_key = 0;

  bool operator==(const Positions&) const = default;
};

/// A query at position p sees keys at positions from p - left to p + right; -1 means no bound on
/// that side.
struct Window {
  std::int64_t left = -1;
  std::int64_t right = -1;
};

struct Options {
  Method method = Method::kAuto;
  /// Factor on the logits; 1/sqrt(D) when empty. Must be finite, and above 0 for `lsh`.
  std::optional<double> scale{};
  /// A query sees no key at a later position than its own.
  bool is_causal = false;
  std::optional<Window> window{};
  /// For a call over some of a sequence's queries or keys. Causality, window, dropout and the keys
  /// that `tree` looks at beside a query's own count by them. A `dense` call then computes
  /// exactly that part of the whole; `lsh` and `tree` plan each part by itself. `merge` joins parts
  /// over disjoint keys of `dense` and `tree`. None: the last query stands at
  /// the last key (query i at i + Nk - Nq), and dropout counts queries and keys from 0.
  std::optional<Positions> positions{};
  /// Lets keys have fewer heads: query head h uses key head h / (Hq / Hkv).
  bool enable_gqa = false;
  /// In what the products of evaluated pairs may be computed. `dense` is float32 unless another is
  /// asked for here. With kAuto, `auto` and `tree` take the narrowest whose expected error the
  /// tolerance allows. Any other value is taken in every head, whatever the tolerance, but for
  /// heads with fewer than 128 valid queries or 256 valid keys or with rows that are not finite,
  /// and on processors without such products: these heads have float32. Statistics name what each
  /// head had and the error to expect of it. Gradients are those of float32. Not with dropout.
  Precision precision = Precision::kAuto;
  /// Rounds of hashing (`lsh` only, 1 to kMaxHashes). Default kDefaultHashes.
  std::optional<std::int64_t> n_hashes{};
  /// Keys a cluster (`lsh` only, at least 1). Default kDefaultClusterSize.
  std::optional<std::int64_t> cluster_size{};
  /// The relative error of out that `tree` aims for in every (batch, query head), and the RMS error
  /// of lse in nats; at least 0 and below 1. Default kDefaultTolerance; 0 evaluates every pair.
  /// Relative to out, or to .01 of the values' deviation where that is more. With kAuto: what the
  /// method that it takes may err.
  std::optional<double> tolerance{};
  /// Most pairs, exact and summary, over all pairs that `tree` may evaluate, above 0 to 1: where
  /// the tolerance would need more, statistics say what error to expect instead. Sinks and
  /// roots are evaluated in any case. Default no limit.
  std::optional<double> max_density{};
  /// Dropout of evaluated pairs (`dense` and `lsh`, from 0 to 1; with kAuto: `dense`). Once
  /// softmax has normalised them, a weight is kept with probability 1 - dropout_p and divided by
  /// it, else 0; lse is that without dropout. Kept or not depends on seed, batch entry, query head
  /// and the positions of query and key only: a pair that `lsh` meets in several rounds is
  /// kept in all or in none, and backward drops what forward did.
  double dropout_p = 0.0;
  /// Chooses the hash directions (`lsh`), the calibration rows (`tree`) and what dropout drops.
  std::uint64_t seed = 0;
  /// Threads that the call computes on, the caller's among them; 0: as many as the pool's size(),
  /// for the default pool as many as OpenMP would use. A pool may give fewer: the library's never
  /// give more than 4 a processor. The result has the same bits for any number.
  int num_threads = 0;
  /// Whose threads. Null: default_thread_pool()'s. Not owned; must live until the call returns.
  ThreadPool* thread_pool = nullptr;
  /// Working memory that the call takes to itself while it runs. Null: each thread's own. Not
  /// owned.
  Workspace* workspace = nullptr;
};

inline constexpr std::int64_t kDefaultHashes = 8;
inline constexpr std::int64_t kMaxHashes = 4096;
inline constexpr std::int64_t kDefaultClusterSize = 32;
inline constexpr double kDefaultTolerance = 0.05;
/// kAuto takes `tree` for calls with at least so many queries and keys, and does batch entries with
/// fewer valid ones as dense: from there on it is quicker on nearly all real heads
/// (docs/results/2026-11-28.md).
inline constexpr std::int64_t kAutoRows = 2048;
/// The same where query heads share keys, and with them most of the planning.
inline constexpr std::int64_t kAutoRowsShared = 1536;
/// Above it kAuto takes `dense`: the basis of `tree`, D x D numbers, costs more than it saves.
inline constexpr std::int64_t kAutoDepth = 512;
inline constexpr std::int64_t kMaxHeadDimension = 2048;

}  // namespace smyrf
