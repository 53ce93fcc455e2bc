#include "methods/tree/backward.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <utility>

#include "base/parallel.h"

namespace smyrf {

using kernels::kCoordinates;
using kernels::PaddedDepth;

/// Gradients that one part of the blocks adds to, all zero at first.
struct TreeBackward::Part {
  std::array<std::int64_t, 6> sizes;
  std::array<kernels::Floats, 6> floats;

  explicit Part(const kernels::NodesView& nodes) {
    const std::int64_t keys = nodes.key_count;
    const auto count = std::ssize(nodes.nodes);
    const std::int64_t key_stride = PaddedDepth(nodes.depth);
    const std::int64_t value_stride = PaddedDepth(nodes.value_depth);
    sizes = {keys * key_stride,
             keys * value_stride,
             count * key_stride,
             count * value_stride,
             count,
             count};
    for (std::size_t i = 0; i < sizes.size(); ++i) floats[i] = kernels::Zeros(sizes[i]);
  }

  kernels::NodeGradients view() const {
    return {floats[0].get(), floats[1].get(), floats[2].get(),
            floats[3].get(), floats[4].get(), floats[5].get()};
  }

  void AddPart(const Part& other) {
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      AddFloats(floats[i].get(), other.floats[i].get(), sizes[i]);
    }
  }
};

namespace {

/// parts[0] (count) += each of the others, in their order.
void AddAll(std::span<float* const> parts, std::int64_t count, const Run& run) {
  constexpr std::int64_t kTaskFloats = std::int64_t{1} << 14;
  if (parts.size() == 1) return;
  ParallelFor((count + kTaskFloats - 1) / kTaskFloats, run, [&](std::int64_t task) {
    const std::int64_t begin = task * kTaskFloats;
    for (const float* const part : parts.subspan(1)) {
      AddFloats(parts[0] + begin, part + begin, std::min(kTaskFloats, count - begin));
    }
  });
}

/// row (count) += share * from.
void AddShare(const float* from, float share, std::int64_t count, float* row) {
  for (std::int64_t c = 0; c < count; ++c) row[c] += share * from[c];
}

/// Gradients of the mean key and value of a node in equal parts to its children's, or a leaf's
/// keys.
void HandDown(const kernels::NodesView& nodes, std::int64_t id, const kernels::NodeGradients& to) {
  const Node& node = nodes.nodes[static_cast<std::size_t>(id)];
  const std::int64_t key_stride = PaddedDepth(nodes.depth);
  const std::int64_t value_stride = PaddedDepth(nodes.value_depth);
  const float inverse = 1.0F / static_cast<float>(node.end - node.begin);
  const float* mean_key = to.mean_keys + id * key_stride;
  const float* mean_value = to.mean_values + id * value_stride;
  for (std::int64_t k = node.first_child; k < node.first_child + node.child_count; ++k) {
    const Node& child = nodes.nodes[static_cast<std::size_t>(k)];
    const float share = inverse * static_cast<float>(child.end - child.begin);
    AddShare(mean_key, share, key_stride, to.mean_keys + k * key_stride);
    AddShare(mean_value, share, value_stride, to.mean_values + k * value_stride);
  }
  for (std::int64_t j = node.begin; j < node.end && node.child_count == 0; ++j) {
    AddShare(mean_key, inverse, key_stride, to.keys + j * key_stride);
    AddShare(mean_value, inverse, value_stride, to.values + j * value_stride);
  }
}

/// Gradients of the variances of a node's logits to its keys' coordinates (key_count,
/// kCoordinates).
void AddOfVariances(const kernels::NodesView& nodes, std::int64_t id, const float* direction,
                    const kernels::NodeGradients& to, const float* coordinates,
                    float* by_coordinates) {
  const Node& node = nodes.nodes[static_cast<std::size_t>(id)];
  const float rest = nodes.residuals[id] > 0.0F ? to.rest[id] : 0.0F;
  const float along = to.along[id] - rest;
  if (along == 0.0F && rest == 0.0F) return;  // as nodes that no block closed
  const float inverse = 1.0F / static_cast<float>(node.end - node.begin);
  std::array<float, kCoordinates> mean{};
  for (std::int64_t j = node.begin; j < node.end; ++j) {
    AddShare(coordinates + j * kCoordinates, inverse, kCoordinates, mean.data());
  }
  for (std::int64_t j = node.begin; j < node.end; ++j) {
    const float* x = coordinates + j * kCoordinates;
    float* row = by_coordinates + j * kCoordinates;
    float on_direction = 0.0F;
    for (std::size_t c = 0; c < mean.size(); ++c) on_direction += (x[c] - mean[c]) * direction[c];
    const float part = along * on_direction;
    for (std::size_t c = 0; c < mean.size(); ++c) {
      row[c] += 2.0F * inverse * (part * direction[c] + rest * (x[c] - mean[c]));
    }
  }
}

}  // namespace

TreeBackward::TreeBackward(const Problem& problem, const BackwardCall& call, std::int64_t batch,
                           std::int64_t key_head, const Run& run)
    : problem_(problem),
      call_(call),
      batch_(batch),
      key_head_(key_head),
      run_(run),
      part_count_(GradientParts(problem)),
      only_head_(problem.query_heads == problem.key_heads),
      parts_(static_cast<std::size_t>(part_count_)),
      by_position_(static_cast<std::size_t>(part_count_)),
      in_order_(part_count_) {}

TreeBackward::~TreeBackward() = default;

void TreeBackward::AddHead(std::int64_t head, const HeadView& plan, const kernels::NodesView& nodes,
                           const KeyForestView& tree,
                           const std::function<TreeBlock(std::int64_t)>& block_of) {
  non_finite_ = non_finite_ || plan.non_finite;
  ParallelRows(1, problem_.queries, run_, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    ClearQueryGradients(problem_, batch_ * problem_.query_heads + head, begin, end, plan.non_finite,
                        call_.gradients.query);
  });
  if (plan.dense) return AddDense(head);
  if (plan.blocks.empty()) return;
  nodes_ = nodes;
  tree_ = tree;
  has_blocks_ = true;
  const auto blocks = std::ssize(plan.blocks);
  ParallelFor(part_count_, run_, [&](std::int64_t i) {
    std::unique_ptr<Part>& part = parts_[static_cast<std::size_t>(i)];
    if (part == nullptr) part = std::make_unique<Part>(nodes_);
    for (std::int64_t block = i * blocks / part_count_; block < (i + 1) * blocks / part_count_;
         ++block) {
      AddBlock(head, block_of(block), *part);
    }
    if (!only_head_) return;
    in_order_.Done(i, [&](std::int64_t j) {
      if (j > 0) AddUp(j);
    });
  });
}

void TreeBackward::AddUp(std::int64_t i) {
  std::unique_ptr<Part>& part = parts_[static_cast<std::size_t>(i)];
  if (part != nullptr) parts_[0]->AddPart(*part);
  part.reset();
  KeyGradients& gradients = by_position_[static_cast<std::size_t>(i)];
  if (!gradients.empty()) AddKeyGradients(problem_, gradients, by_position_[0]);
  gradients = {};
}

void TreeBackward::AddDense(std::int64_t head) {
  const std::int64_t of_batch = batch_ * problem_.query_heads + head;
  const Items items(problem_, nullptr, 0, of_batch, of_batch + 1);
  ParallelFor(part_count_, run_, [&](std::int64_t part) {
    KeyGradients& to = by_position_[static_cast<std::size_t>(part)];
    if (to.empty()) to = KeyGradients(problem_);
    ForEachOfPart(problem_, items, part, part_count_, [&](const Item& item) {
      BackwardItem(problem_, item, call_, to, [&](std::int64_t i, const float* row) {
        kernels::StoreRow(row, problem_.depth, problem_.query.dtype,
                          GradientRow(call_.gradients.query, batch_, head, i));
      });
    });
    if (!only_head_) return;
    in_order_.Done(part, [&](std::int64_t i) {
      if (i > 0) AddUp(i);
    });
  });
}

void TreeBackward::AddBlock(std::int64_t head, const TreeBlock& block, Part& part) const {
  kernels::NodesBackwardTask task;
  task.closed = block.closed;
  task.closed_logits = block.closed_logits;
  task.ranges = block.ranges;
  task.directions = tree_.directions.data();
  task.profiles = tree_.profiles;
  task.query_basis = tree_.query_basis.data();
  task.scale = static_cast<float>(problem_.scale);
  task.out = kernels::RowsOf(call_.out, batch_, head, {});
  task.grad_out = kernels::RowsOf(call_.grad_out, batch_, head, {});
  const std::int64_t first = (batch_ * problem_.query_heads + head) * problem_.queries;
  task.lse = call_.lse + first;
  if (call_.grad_lse != nullptr) task.grad_lse = call_.grad_lse + first;
  const float* rows = kernels::BackwardNodes(nodes_, block.lanes, task, part.view());
  for (std::int64_t i = 0; i < block.lanes.rows; ++i) {
    kernels::StoreRow(rows + i * problem_.depth, problem_.depth, problem_.query.dtype,
                      GradientRow(call_.gradients.query, batch_, head, block.lanes.positions[i]));
  }
}

/// The parts of several heads exist at once, so threads share the sums.
void TreeBackward::AddUpAll() {
  std::vector<float*> sums(parts_.size());
  for (std::size_t array = 0; has_blocks_ && array < parts_[0]->sizes.size(); ++array) {
    for (std::size_t i = 0; i < parts_.size(); ++i) sums[i] = parts_[i]->floats[array].get();
    AddAll(sums, parts_[0]->sizes[array], run_);
  }
  if (!by_position_[0].empty()) {
    for (std::size_t i = 0; i < parts_.size(); ++i) sums[i] = by_position_[i].key.get();
    AddAll(sums, problem_.keys * PaddedDepth(problem_.depth), run_);
    for (std::size_t i = 0; i < parts_.size(); ++i) sums[i] = by_position_[i].value.get();
    AddAll(sums, problem_.keys * PaddedDepth(problem_.value_depth), run_);
  }
  parts_.resize(1);
  by_position_.resize(1);
}

/// From summaries to keys and values: a mean's gradient in n equal parts, handed down from parents
/// to children; a variance's by 2 / n times the distance from the mean. The residual is the sum of
/// the coordinates' variances less that along the direction, and constant where it is 0. Nodes of a
/// level share no key, so they go side by side.
void TreeBackward::Distribute(const Part& sums) const {
  const kernels::NodeGradients to = sums.view();
  const kernels::Floats coordinates(nodes_.key_count * kCoordinates);
  const kernels::Floats by_coordinates = kernels::Zeros(nodes_.key_count * kCoordinates);
  ParallelRows(1, nodes_.key_count, run_, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    kernels::Coordinates(kernels::RowsOf(nodes_.keys, nodes_.depth), begin, end - begin,
                         nodes_.depth, tree_.key_basis.data(),
                         coordinates.get() + begin * kCoordinates);
  });
  for (const Segment& segment : nodes_.segments) {
    const std::vector<std::int64_t> levels = kernels::LevelBegins(nodes_.nodes, segment);
    for (std::size_t level = 0; level + 1 < levels.size(); ++level) {
      const std::int64_t first = levels[level];
      const std::int64_t count = levels[level + 1] - first;
      // The first levels have few nodes, and large ones.
      const std::int64_t a_task = std::clamp<std::int64_t>(count / 32, 1, 32);
      ParallelFor((count + a_task - 1) / a_task, run_, [&](std::int64_t task) {
        const std::int64_t begin = first + task * a_task;
        for (std::int64_t id = begin; id < std::min(first + count, begin + a_task); ++id) {
          HandDown(nodes_, id, to);
          AddOfVariances(nodes_, id, tree_.directions.data() + id * kCoordinates, to,
                         coordinates.get(), by_coordinates.get());
        }
      });
    }
  }
  ParallelRows(1, nodes_.key_count, run_, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    kernels::AddCoordinates(by_coordinates.get() + begin * kCoordinates, end - begin, nodes_.depth,
                            tree_.key_basis.data(), to.keys + begin * PaddedDepth(nodes_.depth));
  });
}

void TreeBackward::Finish() {
  if (!only_head_) AddUpAll();
  KeyGradients& gradients = by_position_[0];
  if (gradients.empty()) gradients = KeyGradients(problem_);
  if (has_blocks_) {
    const Part& sums = *parts_[0];
    Distribute(sums);
    const std::int64_t key_stride = PaddedDepth(problem_.depth);
    const std::int64_t value_stride = PaddedDepth(problem_.value_depth);
    ParallelRows(1, nodes_.key_count, run_,
                 [&](std::int64_t, std::int64_t begin, std::int64_t end) {
                   for (std::int64_t j = begin; j < end; ++j) {
                     const std::int64_t position = tree_.key_order[static_cast<std::size_t>(j)];
                     AddFloats(gradients.key.get() + position * key_stride,
                               sums.view().keys + j * key_stride, key_stride);
                     AddFloats(gradients.value.get() + position * value_stride,
                               sums.view().values + j * value_stride, value_stride);
                   }
                 });
  }
  StoreKeyGradients(problem_, batch_ * problem_.key_heads + key_head_, gradients, non_finite_,
                    call_.gradients, run_);
}

}  // namespace smyrf
