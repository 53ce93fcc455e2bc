// Which method and dials a call takes, and what its method refuses.
#include <algorithm>
#include <cstdint>
#include <optional>

#include "base/message.h"
#include "call/check.h"

namespace smyrf {
namespace {

void CheckDial(const char* name, const std::optional<std::int64_t>& dial, std::int64_t most) {
  if (dial && (*dial < 1 || *dial > most)) {
    Fail(ErrorKind::kValue, name, ": got ", *dial, ", accepted are integers from 1 to ", most);
  }
}

/// kAuto's choice, from shapes, masks and tolerance alone, with its reason.
void ChooseMethod(const Arguments& arguments, const Options& options, const Problem& problem,
                  Plan& plan) {
  plan.method = Method::kDense;
  const char* refused = arguments.attn_mask       ? "attn_mask"
                        : options.is_causal       ? "is_causal"
                        : options.window          ? "window"
                        : options.dropout_p > 0.0 ? "dropout_p"
                        : options.tolerance == 0.0
                            ? "tolerance 0, the default where a gradient is needed"
                        : arguments.value.rank == 0 ? "a plan without value"
                                                    : nullptr;
  const std::int64_t rows = problem.query_heads > problem.key_heads ? kAutoRowsShared : kAutoRows;
  if (std::min(problem.queries, problem.keys) < rows) {
    plan.reason = Message("auto: dense below ", rows, " queries or keys");
  } else if (refused != nullptr) {
    plan.reason = Message("auto: dense because of ", refused);
  } else if (problem.depth > kAutoDepth) {
    plan.reason = Message("auto: dense above D ", kAutoDepth);
  } else {
    plan.method = Method::kTree;
    plan.dense_below = rows;
    plan.reason = Message("auto: tree from ", rows, " queries and keys on");
  }
}

}  // namespace

void CheckTolerance(const Options& options) {
  if (options.tolerance && !(*options.tolerance >= 0.0 && *options.tolerance < 1.0)) {
    Fail(ErrorKind::kValue, "tolerance: got ", *options.tolerance,
         ", expected a relative error from 0 (every pair) to below 1");
  }
}

void CheckNoDropout(const Options& options) {
  if (options.dropout_p > 0.0) {
    Fail(ErrorKind::kUnsupported, "dropout_p: got ", options.dropout_p,
         ", but method tree has no dropout, since a summary stands for many pairs; use "
         "method='dense' or 'lsh', or dropout_p=0");
  }
}

Plan CheckMethod(const Arguments& arguments, const Options& options, const Problem& problem) {
  if (options.method > Method::kTree) {
    Fail(ErrorKind::kValue, "method: got number ", static_cast<int>(options.method),
         ", accepted are auto, dense, lsh and tree");
  }
  CheckDial("n_hashes", options.n_hashes, kMaxHashes);
  CheckDial("cluster_size", options.cluster_size, kMaxRows);
  Plan plan;
  plan.method = options.method;
  plan.reason = "asked for";
  if (options.method == Method::kAuto) ChooseMethod(arguments, options, problem, plan);
  plan.batch = problem.batch;
  plan.query_heads = problem.query_heads;
  plan.key_heads = problem.key_heads;
  plan.queries = problem.queries;
  plan.keys = problem.keys;
  plan.depth = problem.depth;
  plan.is_causal = options.is_causal;
  plan.has_attn_mask = arguments.attn_mask.has_value();
  plan.window = options.window;
  const auto refuse_dial = [&](const char* name, bool given, const char* method) {
    if (given) {
      Fail(ErrorKind::kValue, name, ": is a dial of method ", method, ", but the method is ",
           Name(options.method), "; pass method='", method, "' or leave ", name, " out");
    }
  };
  if (plan.method != Method::kLsh) {
    refuse_dial("n_hashes", options.n_hashes.has_value(), "lsh");
    refuse_dial("cluster_size", options.cluster_size.has_value(), "lsh");
  }
  if (options.method != Method::kTree) {
    refuse_dial("tolerance", options.tolerance && options.method != Method::kAuto, "tree");
    refuse_dial("max_density", options.max_density.has_value(), "tree");
  }
  if (plan.method == Method::kDense) {
    refuse_dial("seed",
                options.seed != 0 && options.method != Method::kAuto && options.dropout_p == 0.0,
                "lsh");
  } else {
    const char* refused = arguments.attn_mask ? "attn_mask"
                          : options.is_causal ? "is_causal"
                          : options.window    ? "window"
                                              : nullptr;
    if (refused != nullptr) {
      Fail(ErrorKind::kUnsupported, refused, ": method ", Name(plan.method),
           " takes padding masks only; use method='dense' or 'auto'");
    }
    plan.seed = options.seed;
  }
  if (plan.method == Method::kLsh) {
    if (problem.scale <= 0.0) {
      Fail(ErrorKind::kValue, "scale: got ", problem.scale,
           ", method lsh needs a scale above 0 (the nearest keys would have the smallest logits); "
           "use method='dense' or negate query");
    }
    plan.n_hashes = options.n_hashes.value_or(kDefaultHashes);
    plan.cluster_size = options.cluster_size.value_or(kDefaultClusterSize);
  }
  CheckTolerance(options);
  if (plan.method == Method::kTree) {
    CheckNoDropout(options);
    plan.tolerance = options.tolerance.value_or(kDefaultTolerance);
    plan.max_density = options.max_density;
    if (plan.max_density && !(*plan.max_density > 0.0 && *plan.max_density <= 1.0)) {
      Fail(ErrorKind::kValue, "max_density: got ", *plan.max_density,
           ", expected a share of the pairs above 0, at most 1");
    }
    plan.scale = problem.scale;
  }
  plan.valid_queries = ValidRows(arguments.query_padding_mask, problem.batch, problem.queries);
  plan.valid_keys = ValidRows(arguments.key_padding_mask, problem.batch, problem.keys);
  return plan;
}

}  // namespace smyrf
