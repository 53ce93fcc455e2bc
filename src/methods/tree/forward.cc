#include "methods/tree/forward.h"

#include <cstddef>
#include <type_traits>

#include "run/forward.h"

namespace smyrf {

void ExecuteNodes(const kernels::NodesView& nodes, const TreeBlock& block,
                  const HeadOutput& output) {
  const kernels::Partial partial =
      kernels::AttendNodes(nodes, block.lanes, block.closed, block.closed_logits, block.ranges);
  for (std::int64_t i = 0; i < block.lanes.rows; ++i) {
    output.Finish(block.lanes.positions[i], partial.Row(i));
  }
}

double ExecuteDenseHead(const Problem& problem, const Plan& plan, std::int64_t batch,
                        std::int64_t head, const Run& run, const Outputs& outputs) {
  const auto slice = [](auto view, std::int64_t b, std::int64_t h) {
    using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(view.data)>>,
                                    const std::byte, std::byte>;
    if (view.data != nullptr) {  // as it may be where there are no rows
      view.data = static_cast<Byte*>(view.data) +
                  SizeOf(view.dtype) * (b * view.strides[0] + h * view.strides[1]);
    }
    view.shape[0] = view.shape[1] = 1;
    return view;
  };
  Problem one = problem;
  one.query = slice(problem.query, batch, head);
  one.key = slice(problem.key, batch, problem.KeyHead(head));
  one.value = slice(problem.value, batch, problem.KeyHead(head));
  one.batch = one.query_heads = one.key_heads = 1;
  one.run = run;
  Plan dense;
  dense.method = Method::kDense;
  dense.batch = dense.query_heads = dense.key_heads = 1;
  dense.queries = plan.queries;
  dense.keys = plan.keys;
  dense.depth = plan.depth;
  const auto b = static_cast<std::size_t>(batch);
  if (!plan.valid_queries.empty()) dense.valid_queries = {plan.valid_queries[b]};
  if (!plan.valid_keys.empty()) dense.valid_keys = {plan.valid_keys[b]};
  Outputs to;
  to.out = slice(outputs.out, batch, head);
  if (outputs.lse) {
    to.lse = outputs.lse;
    to.lse->data = static_cast<float*>(outputs.lse->data) +
                   (batch * problem.query_heads + head) * problem.queries;
    to.lse->shape[0] = to.lse->shape[1] = 1;
  }
  Statistics statistics;
  statistics.heads.resize(1);
  if (outputs.statistics != nullptr) to.statistics = &statistics;
  ExecuteForward(one, 1, [&](std::int64_t) -> const Plan& { return dense; }, to);
  return statistics.heads[0].seconds;
}

}  // namespace smyrf
