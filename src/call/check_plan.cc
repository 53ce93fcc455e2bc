// Whether a plan fits a call.
#include "base/message.h"
#include "call/check.h"

namespace smyrf {

void CheckPlan(const Plan& plan, const Arguments& arguments, const Options& options,
               const Problem& problem) {
  const auto differs = [](const char* name, const auto& given, const auto& planned) {
    if (given != planned) {
      Fail(ErrorKind::kValue, "plan: was made for ", name, " = ", planned, ", this call has ",
           given, "; make a plan for this call");
    }
  };
  differs("batch", problem.batch, plan.batch);
  differs("query heads", problem.query_heads, plan.query_heads);
  differs("key heads", problem.key_heads, plan.key_heads);
  differs("Nq", problem.queries, plan.queries);
  differs("Nk", problem.keys, plan.keys);
  differs("D", problem.depth, plan.depth);
  CheckStructure(plan);

  const auto conflict = [](const char* name) {
    Fail(ErrorKind::kValue, name,
         ": differs from the plan's, which decides; leave it out or make a new plan");
  };
  if (options.method != Method::kAuto && options.method != plan.method) conflict("method");
  if (options.n_hashes && *options.n_hashes != plan.n_hashes) conflict("n_hashes");
  if (options.cluster_size && *options.cluster_size != plan.cluster_size) conflict("cluster_size");
  CheckTolerance(options);
  // As in a call that makes its own plan: where auto took dense, these are not used.
  const bool unused = plan.method == Method::kDense && options.method == Method::kAuto;
  const bool of_dropout = plan.method == Method::kDense && options.dropout_p > 0.0;
  if (!unused && !of_dropout && options.seed != 0 && options.seed != plan.seed) conflict("seed");
  if (!unused && options.tolerance && *options.tolerance != plan.tolerance) conflict("tolerance");
  if (options.max_density && options.max_density != plan.max_density) conflict("max_density");
  if (options.is_causal && !plan.is_causal) conflict("is_causal");
  if (options.window && (!plan.window || options.window->left != plan.window->left ||
                         options.window->right != plan.window->right)) {
    conflict("window");
  }
  if (arguments.query_padding_mask && ValidRows(arguments.query_padding_mask, problem.batch,
                                                problem.queries) != plan.valid_queries) {
    conflict("query_padding_mask");
  }
  if (arguments.key_padding_mask &&
      ValidRows(arguments.key_padding_mask, problem.batch, problem.keys) != plan.valid_keys) {
    conflict("key_padding_mask");
  }
  if (plan.method != Method::kDense && arguments.attn_mask) {
    Fail(ErrorKind::kUnsupported, "attn_mask: the plan's method ", Name(plan.method),
         " takes padding masks only; use a dense plan");
  }
  if (plan.has_attn_mask != arguments.attn_mask.has_value()) {
    Fail(ErrorKind::kValue, "attn_mask: the plan was made ",
         plan.has_attn_mask ? "with" : "without",
         " one, which it does not hold; pass it to both calls or to neither");
  }
  if (plan.method == Method::kTree) CheckNoDropout(options);
  if (plan.method == Method::kTree) differs("scale", problem.scale, plan.scale);
  if (plan.method == Method::kLsh && problem.scale <= 0.0) {
    Fail(ErrorKind::kValue, "scale: got ", problem.scale,
         ", the plan's method lsh needs a scale above 0");
  }
}

}  // namespace smyrf
