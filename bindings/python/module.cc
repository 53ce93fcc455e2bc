// smyrf._core: the C++ calls, and what they give back.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/message.h"
#include "call.h"
#include "pickle.h"
#include "smyrf/smyrf.h"
#include "without_gil.h"

namespace nb = nanobind;
using namespace nb::literals;

using namespace smyrf::bindings;
using smyrf::ErrorKind;
using smyrf::Fail;

namespace {

template <class T>
using Array = nb::ndarray<nb::numpy, T>;

/// A new array (rows, columns) of get(row, column).
template <class T, class Get>
Array<T> Grid(std::int64_t rows, std::int64_t columns, Get get) {
  auto data = std::make_unique<T[]>(static_cast<std::size_t>(rows * columns + 1));
  for (std::int64_t i = 0; i < rows * columns; ++i) data[i] = get(i / columns, i % columns);
  T* raw = data.release();
  const nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return Array<T>(raw, {static_cast<std::size_t>(rows), static_cast<std::size_t>(columns)}, owner);
}

template <class T, class Get>
Array<T> HeadArray(const smyrf::Statistics& statistics, Get get) {
  return Grid<T>(statistics.batch, statistics.query_heads, [&](std::int64_t b, std::int64_t h) {
    return get(statistics.heads[static_cast<std::size_t>(b * statistics.query_heads + h)]);
  });
}

/// `made`, where given, becomes the plan that was carried out.
std::optional<smyrf::Statistics> Attend(nb::handle query, nb::handle key, nb::handle value,
                                        nb::handle out, nb::handle lse, const smyrf::Plan* plan,
                                        smyrf::Plan* made, nb::handle with_statistics,
                                        const nb::dict& options) {
  const Call call(query, key, value, options);
  const bool counts = ToBool("return_stats", with_statistics);
  const Output out_array("out", out);
  std::optional<Output> lse_array;
  smyrf::Outputs outputs{.out = out_array.view(call.heads_last), .plan = made};
  if (!lse.is_none()) {
    lse_array.emplace("lse", lse);
    outputs.lse = lse_array->view();
  }
  std::optional<smyrf::Statistics> statistics;
  if (counts) outputs.statistics = &statistics.emplace();
  const WithoutGil release;
  smyrf::attention(call.arguments, call.options, outputs, plan);
  return statistics;
}

std::optional<smyrf::Statistics> Attention(nb::handle query, nb::handle key, nb::handle value,
                                           nb::handle out, nb::handle lse, nb::handle plan,
                                           nb::handle with_statistics, const nb::dict& options) {
  return Attend(query, key, value, out, lse, ToPlan(plan), nullptr, with_statistics, options);
}

std::pair<std::optional<smyrf::Statistics>, smyrf::Plan> AttentionAndPlan(
    nb::handle query, nb::handle key, nb::handle value, nb::handle out, nb::handle lse,
    nb::handle with_statistics, const nb::dict& options) {
  smyrf::Plan made;
  auto statistics = Attend(query, key, value, out, lse, nullptr, &made, with_statistics, options);
  return {std::move(statistics), std::move(made)};
}

void AttentionBackward(nb::handle query, nb::handle key, nb::handle value, nb::handle out,
                       nb::handle lse, nb::handle grad_out, nb::handle grad_lse,
                       nb::handle grad_query, nb::handle grad_key, nb::handle grad_value,
                       nb::handle plan_, const nb::dict& options) {
  const smyrf::Plan* plan = ToPlan(plan_);
  const Call call(query, key, value, options);
  const Input out_array("out", out);
  const Input lse_array("lse", lse, "float32");
  const Input grad_out_array("grad_out", grad_out);
  std::optional<Input> grad_lse_array;
  std::optional<smyrf::TensorView> grad_lse_view;
  if (!grad_lse.is_none()) {
    grad_lse_view = grad_lse_array.emplace("grad_lse", grad_lse, "float32").view();
  }
  const Output grad_query_array("grad_query", grad_query);
  const Output grad_key_array("grad_key", grad_key);
  const Output grad_value_array("grad_value", grad_value);
  const smyrf::Gradients gradients{grad_query_array.view(call.heads_last),
                                   grad_key_array.view(call.heads_last),
                                   grad_value_array.view(call.heads_last)};
  const WithoutGil release;
  smyrf::attention_backward(call.arguments, call.options, out_array.view(call.heads_last),
                            lse_array.view(), grad_out_array.view(call.heads_last), grad_lse_view,
                            gradients, plan);
}

smyrf::Plan MakePlan(nb::handle query, nb::handle key, nb::handle value, const nb::dict& options) {
  const Call call(query, key, value, options);
  const WithoutGil release;
  return smyrf::plan(call.arguments, call.options);
}

smyrf::Statistics Estimate(nb::handle query, nb::handle key, nb::handle value,
                           const nb::dict& options) {
  const Call call(query, key, value, options);
  const WithoutGil release;
  return smyrf::estimate(call.arguments, call.options);
}

void Merge(nb::handle out, nb::handle lse, nb::handle other_out, nb::handle other_lse,
           nb::handle layout, nb::handle num_threads) {
  const bool heads_last = ToHeadsLast(layout);
  const Output out_array("out", out);
  const Output lse_array("lse", lse, "float32");
  const Input other_out_array("other_out", other_out);
  const Input other_lse_array("other_lse", other_lse, "float32");
  const int threads =
      ToNumber<int>("num_threads", num_threads, "a number of threads or None").value_or(0);
  const WithoutGil release;
  smyrf::merge(out_array.view(heads_last), lse_array.view(), other_out_array.view(heads_last),
               other_lse_array.view(), threads);
}

void Reference(nb::handle query, nb::handle key, nb::handle value,
               nb::ndarray<double, nb::c_contig> out, nb::ndarray<double, nb::c_contig> lse,
               nb::handle plan_, const nb::dict& options) {
  const smyrf::Plan* plan = ToPlan(plan_);
  const Call call(query, key, value, options);
  const auto& [b, h, n, d] = call.arguments.query.shape;
  // Unsigned: sizes that overflow are refused below.
  const auto rows =
      static_cast<std::size_t>(b) * static_cast<std::size_t>(h) * static_cast<std::size_t>(n);
  if (call.arguments.query.rank == 4 && call.arguments.value.rank == 4 &&
      (lse.size() != rows ||
       out.size() != rows * static_cast<std::size_t>(call.arguments.value.shape[3]))) {
    Fail(ErrorKind::kValue, "out, lse: sizes don't fit query and value");
  }
  const WithoutGil release;
  smyrf::reference(call.arguments, call.options, out.data(), lse.data(), plan);
}

void CheckIndex(const char* name, std::int64_t index, std::int64_t size) {
  if (index < 0 || index >= size) {
    Fail(ErrorKind::kValue, name, ": got ", index, ", expected 0 to ", size - 1);
  }
}

std::vector<std::int32_t> List(std::span<const std::int32_t> view) {
  return {view.begin(), view.end()};
}

double PlanDensity(const smyrf::Plan& plan, std::int64_t batch, std::int64_t head) {
  CheckIndex("batch", batch, plan.info().batch);
  CheckIndex("head", head, plan.info().query_heads);
  return plan.density(batch, head);
}

using Block = std::tuple<std::int32_t, std::int32_t,
                         std::vector<std::tuple<std::int32_t, std::int32_t, bool>>>;
using Nodes = std::vector<std::tuple<std::int32_t, std::int32_t, std::int32_t, std::int32_t>>;

std::tuple<std::vector<std::int32_t>, std::vector<std::int32_t>, std::vector<Block>> PlanHead(
    const smyrf::Plan& plan, std::int64_t round, std::int64_t batch, std::int64_t head) {
  if (!plan.has_heads()) {
    Fail(ErrorKind::kValue,
         "head: the ranges of a dense plan are implicit, every allowed pair once");
  }
  CheckIndex("round", round, plan.info().rounds());
  CheckIndex("batch", batch, plan.info().batch);
  CheckIndex("head", head, plan.info().query_heads);
  const smyrf::HeadView part = plan.head(round, batch, head);
  std::vector<Block> blocks;
  for (const smyrf::QueryBlock& block : part.blocks) {
    Block& entry = blocks.emplace_back();
    std::get<0>(entry) = block.begin;
    std::get<1>(entry) = block.end;
    for (std::uint32_t r = block.first_range; r < block.last_range; ++r) {
      std::get<2>(entry).emplace_back(part.ranges[r].begin, part.ranges[r].end, false);
    }
  }
  return {List(part.query_order), List(part.key_order), blocks};
}

std::vector<std::vector<std::int32_t>> PlanNodes(const smyrf::Plan& plan, std::int64_t batch,
                                                 std::int64_t head) {
  if (!plan.has_forests()) {
    Fail(ErrorKind::kValue, "nodes: the plan's method has none");
  }
  CheckIndex("batch", batch, plan.info().batch);
  CheckIndex("head", head, plan.info().query_heads);
  const smyrf::HeadView part = plan.head(0, batch, head);
  std::vector<std::vector<std::int32_t>> blocks;
  blocks.reserve(part.blocks.size());
  for (const smyrf::QueryBlock& block : part.blocks) {
    blocks.emplace_back(part.nodes.begin() + block.first_node,
                        part.nodes.begin() + block.last_node);
  }
  return blocks;
}

smyrf::KeyForestView CheckedTree(const char* name, const smyrf::Plan& plan, std::int64_t batch,
                                 std::int64_t key_head) {
  if (!plan.has_forests()) {
    Fail(ErrorKind::kValue, name, ": the plan's method has no key trees");
  }
  CheckIndex("batch", batch, plan.info().batch);
  CheckIndex("key_head", key_head, plan.info().key_heads);
  return plan.forest(batch, key_head);
}

std::tuple<std::vector<std::int32_t>, std::int32_t, Nodes> PlanTree(const smyrf::Plan& plan,
                                                                    std::int64_t batch,
                                                                    std::int64_t key_head) {
  const smyrf::KeyForestView tree = CheckedTree("tree", plan, batch, key_head);
  Nodes nodes;
  nodes.reserve(tree.nodes.size());
  for (const smyrf::Node& node : tree.nodes) {
    nodes.emplace_back(node.begin, node.end, node.first_child, node.child_count);
  }
  return {List(tree.key_order), tree.segments.empty() ? 0 : tree.segments[0].sinks, nodes};
}

std::tuple<Array<float>, Array<float>, Array<float>, Array<float>> TreeConstants(
    const smyrf::Plan& plan, std::int64_t batch, std::int64_t key_head) {
  const smyrf::KeyForestView tree = CheckedTree("tree_constants", plan, batch, key_head);
  // The leading coordinates; a tree without nodes has none.
  const std::int64_t width =
      std::max<std::int64_t>(1, std::ssize(tree.query_basis) / plan.info().depth);
  const auto rows = [width](std::span<const float> values) {
    return Grid<float>(std::ssize(values) / width, width, [&](std::int64_t i, std::int64_t c) {
      return values[static_cast<std::size_t>(i * width + c)];
    });
  };
  return {rows(tree.query_basis), rows(tree.key_basis), rows(tree.directions), rows(tree.profiles)};
}

using ValidOf = std::optional<std::span<const std::int32_t>> (smyrf::Plan::*)(std::int64_t) const;

/// Whether a row is in the list of its batch entry; without lists all rows are.
Array<bool> ValidRows(const smyrf::Plan& plan, ValidOf valid_of, std::int64_t rows) {
  return Grid<bool>(plan.info().batch, rows, [&](std::int64_t b, std::int64_t i) {
    const auto valid = (plan.*valid_of)(b);
    return !valid || std::ranges::binary_search(*valid, i);
  });
}

/// get(head) of every head in the first round; false for `dense`, whose heads are implicit.
template <class Get>
Array<bool> PlanHeads(const smyrf::Plan& plan, Get get) {
  const smyrf::PlanInfo& info = plan.info();
  return Grid<bool>(info.batch, info.query_heads, [&](std::int64_t b, std::int64_t h) {
    return plan.has_heads() && get(plan.head(0, b, h));
  });
}

std::optional<std::pair<std::int64_t, std::int64_t>> PlanWindow(const smyrf::Plan& plan) {
  if (!plan.info().window) return std::nullopt;
  return std::pair(plan.info().window->left, plan.info().window->right);
}

std::optional<std::pair<std::int64_t, std::int64_t>> PlanPositions(const smyrf::Plan& plan) {
  if (!plan.info().positions) return std::nullopt;
  return std::pair(plan.info().positions->first_query, plan.info().positions->first_key);
}

// Of a plan and of statistics.
constexpr const char* kDenseHeads =
    "(B, Hq) bool: done as dense attention; `reason` of the statistics says why.";
constexpr const char* kNonFinite =
    "(B, Hq) bool: a method that plans met a valid query or key that is not finite; out is NaN.";

/// For the stub: the names that the method taken may have.
std::string SignatureOfMethod() {
  std::string names;
  for (const smyrf::MethodInfo* method : smyrf::methods()) {
    if (!method->chooses) names += smyrf::Message(names.empty() ? "'" : ", '", method->name, "'");
  }
  return "def method(self) -> typing.Literal[" + names + "]";
}

nb::dict DialEntry(const smyrf::Dial& dial) {
  nb::dict entry;
  entry["name"] = dial.name;
  entry["meaning"] = dial.meaning;
  entry["accepted"] = dial.accepted;
  entry["whole"] = dial.whole != nullptr;
  entry["default"] = dial.default_value;
  return entry;
}

nb::list Methods() {
  nb::list methods;
  for (const smyrf::MethodInfo* method : smyrf::methods()) {
    nb::dict entry;
    entry["name"] = method->name;
    entry["summary"] = method->summary;
    entry["takes_masks"] = method->takes_masks;
    entry["takes_dropout"] = method->takes_dropout;
    entry["takes_seed"] = method->takes_seed;
    entry["chooses"] = method->chooses;
    nb::list dials;
    for (const smyrf::Dial* dial : method->dials) dials.append(DialEntry(*dial));
    entry["dials"] = dials;
    methods.append(entry);
  }
  return methods;
}

smyrf::Plan LoadPlan(nb::handle state) { return FromState<smyrf::Plan>("plan", state); }

smyrf::Statistics LoadStatistics(nb::handle state) {
  return FromState<smyrf::Statistics>("statistics", state);
}

std::string Describe(const smyrf::Plan& plan) {
  const smyrf::PlanInfo& info = plan.info();
  return smyrf::Message("<smyrf.Plan: ", smyrf::name(info.method), " (", info.reason, "), batch ",
                        info.batch, ", ", info.query_heads, " query heads over ", info.key_heads,
                        ", ", info.queries, " queries over ", info.keys, " keys>");
}

std::string Describe(const smyrf::Statistics& statistics) {
  double density = 0.0;
  double expected_error = 0.0;
  for (const auto& head : statistics.heads) {
    density += head.density / static_cast<double>(statistics.heads.size());
    expected_error = std::max(expected_error, head.expected_error);
  }
  const std::string expected =
      expected_error > 0.0 ? smyrf::Message(", largest expected error ", expected_error) : "";
  return smyrf::Message("<smyrf.Statistics: ", smyrf::name(statistics.method), " (",
                        statistics.reason, "), ", statistics.heads.size(), " heads, mean density ",
                        density, expected, ", planning ", statistics.planning_seconds,
                        " s, execution ", statistics.execution_seconds, " s, ",
                        statistics.instruction_set, ">");
}

}  // namespace

NB_MODULE(_core, m) {
  // A graph of PyTorch's may hold a plan until the process ends.
  nb::set_leak_warnings(false);
  m.doc() = "The C++ core of smyrf. Use the functions of the package, which call these.";
  nb::register_exception_translator([](const std::exception_ptr& pointer, void*) {
    try {
      std::rethrow_exception(pointer);
    } catch (const smyrf::Error& error) {
      PyObject* type = error.kind() == ErrorKind::kType          ? PyExc_TypeError
                       : error.kind() == ErrorKind::kUnsupported ? PyExc_NotImplementedError
                                                                 : PyExc_ValueError;
      PyErr_SetString(type, error.what());
    }
  });

  // A property's own policy would tie an array that owns its memory to the object it is of.
  constexpr auto kOwned = nb::rv_policy::automatic;
  // The stub says which strings a property may be.
  const std::string signature = SignatureOfMethod();
  const nb::sig method_taken(signature.c_str());
  nb::class_<smyrf::Plan> plan(m, "Plan",
                               R"(What a call will compute: made by `smyrf.plan`, carried out by
`smyrf.attention(..., plan=plan)`. Holds indices, no rows of key or value. Can be pickled.)");
  plan.def_prop_ro(
          "method", [](const smyrf::Plan& p) { return smyrf::name(p.info().method); },
          nb::for_getter(method_taken), "The method taken, never 'auto'.")
      .def_prop_ro(
          "reason", [](const smyrf::Plan& p) { return p.info().reason; }, "Why this method.")
      .def("__repr__", [](const smyrf::Plan& p) { return Describe(p); })
      .def_prop_ro("batch", [](const smyrf::Plan& p) { return p.info().batch; })
      .def_prop_ro("query_heads", [](const smyrf::Plan& p) { return p.info().query_heads; })
      .def_prop_ro("key_heads", [](const smyrf::Plan& p) { return p.info().key_heads; })
      .def_prop_ro(
          "queries", [](const smyrf::Plan& p) { return p.info().queries; }, "Nq.")
      .def_prop_ro(
          "keys", [](const smyrf::Plan& p) { return p.info().keys; }, "Nk.")
      .def_prop_ro(
          "depth", [](const smyrf::Plan& p) { return p.info().depth; }, "D.")
      .def_prop_ro(
          "n_hashes", [](const smyrf::Plan& p) { return p.info().n_hashes; },
          "Rounds of hashing; 0 for methods without.")
      .def_prop_ro(
          "cluster_size", [](const smyrf::Plan& p) { return p.info().cluster_size; },
          "Keys a cluster; 0 for methods without.")
      .def_prop_ro("seed", [](const smyrf::Plan& p) { return p.info().seed; })
      .def_prop_ro("is_causal", [](const smyrf::Plan& p) { return p.info().is_causal; })
      .def_prop_ro("window", &PlanWindow, "(left, right), or None.")
      .def_prop_ro("positions", &PlanPositions, "(first_query, first_key), or None.")
      .def_prop_ro(
          "valid_queries",
          [](const smyrf::Plan& p) {
            return ValidRows(p, &smyrf::Plan::valid_queries, p.info().queries);
          },
          kOwned, "(B, Nq) bool: not padded.")
      .def_prop_ro(
          "valid_keys",
          [](const smyrf::Plan& p) {
            return ValidRows(p, &smyrf::Plan::valid_keys, p.info().keys);
          },
          kOwned, "(B, Nk) bool: not padded.")
      .def_prop_ro(
          "dense_heads",
          [](const smyrf::Plan& p) {
            return PlanHeads(p, [](const auto& head) { return head.dense; });
          },
          kOwned, kDenseHeads)
      .def_prop_ro(
          "non_finite",
          [](const smyrf::Plan& p) {
            return PlanHeads(p, [](const auto& head) { return head.non_finite; });
          },
          kOwned, kNonFinite)
      .def(
          "save",
          [](const smyrf::Plan& p, const std::filesystem::path& path) { p.save(path.string()); },
          "path"_a,
          R"(Write the plan to a file, which appears whole or not at all.

Raises ValueError with the system's reason where it can't be written.)")
      .def_static(
          "load",
          [](const std::filesystem::path& path) { return smyrf::Plan::load(path.string()); },
          "path"_a,
          R"(The plan that `save` wrote.

Raises ValueError for a file that can't be read, is damaged or of another version.)")
      .def("density", &PlanDensity, "batch"_a, "head"_a,
           "Evaluated over allowed pairs of one (batch, query head).")
      .def(
          "head", &PlanHead, "round"_a, "batch"_a, "head"_a,
          R"(One round of one (batch, query head) of a plan that has blocks; round 0 without rounds.

Returns (query_order, key_order, blocks): original indices in plan order, and a list of
(query_begin, query_end, [(key_begin, key_end, partial), ...]) into those orders; no range is partly
masked, so that `partial` is False. In a plan with key trees key_order is empty: keys are in the
order of their tree, and each block has the summaries of `nodes` as well.)")
      .def("nodes", &PlanNodes, "batch"_a, "head"_a,
           "Nodes of the key tree whose summaries each block evaluates.")
      .def("tree", &PlanTree, "batch"_a, "key_head"_a,
           R"(The keys of one (batch, key head) in a plan with key trees.

Returns (key_order, sinks, nodes): original indices, of which the first `sinks` are always exact,
and for every node (begin, end, first_child, child_count) into that order.)")
      .def("tree_constants", &TreeConstants, "batch"_a, "key_head"_a,
           R"(What summaries of the nodes of one (batch, key head)'s key tree are made with.

Returns float32 copies (query_basis (D, 32), key_basis (D, 32), directions (nodes, 32), profiles
(roots, 32)): bases of the coordinates of queries and keys; for each node the direction of those
coordinates along which the variance of its keys is exact; and for each of the first nodes, which are
the roots, the parts of the coordinates in what directions leave, of it and all nodes under it.
Constants under differentiation.)");
  DefinePickling(plan, &LoadPlan);

  nb::class_<smyrf::Statistics> statistics(
      m, "Statistics", "What a call did, by (batch, query head). Can be pickled.");
  statistics
      .def_prop_ro(
          "method", [](const smyrf::Statistics& s) { return smyrf::name(s.method); },
          nb::for_getter(method_taken), "The method taken, never 'auto'.")
      .def_ro("reason", &smyrf::Statistics::reason, "Why it was taken.")
      .def_prop_ro(
          "density",
          [](const smyrf::Statistics& s) {
            return HeadArray<double>(s, [](const auto& head) { return head.density; });
          },
          kOwned,
          "(B, Hq) float64: evaluated over allowed pairs; a pair counts as often as it is "
          "evaluated.")
      .def_prop_ro(
          "seconds",
          [](const smyrf::Statistics& s) {
            return HeadArray<double>(s, [](const auto& head) { return head.seconds; });
          },
          kOwned,
          "(B, Hq) float64: thread seconds of a head's blocks of queries: each block's time on the "
          "thread that did it, added up. A block includes its choice of nodes. What is "
          "done once for several blocks is not in it.")
      .def_prop_ro(
          "expected_error",
          [](const smyrf::Statistics& s) {
            return HeadArray<double>(s, [](const auto& head) { return head.expected_error; });
          },
          kOwned,
          "(B, Hq) float64: relative error of out that calibration expects; 0 for methods that "
          "have no such estimate.")
      .def_prop_ro(
          "expected_lse_error",
          [](const smyrf::Statistics& s) {
            return HeadArray<double>(s, [](const auto& head) { return head.expected_lse_error; });
          },
          kOwned, "(B, Hq) float64: RMS error of lse, nats, that calibration expects.")
      .def_prop_ro(
          "expected_work",
          [](const smyrf::Statistics& s) {
            return HeadArray<double>(s, [](const auto& head) { return head.expected_work; });
          },
          kOwned,
          "(B, Hq) float64: time that calibration expects of a head, planning of blocks "
          "included, over dense attention's.")
      .def_prop_ro(
          "head_planning_seconds",
          [](const smyrf::Statistics& s) {
            return HeadArray<double>(s, [](const auto& head) { return head.planning_seconds; });
          },
          kOwned,
          "(B, Hq) float64: wall seconds of planning before a head's first block, of what query "
          "heads share an equal part; 0 where a plan was passed in.")
      .def_prop_ro(
          "dense_heads",
          [](const smyrf::Statistics& s) {
            return HeadArray<bool>(s, [](const auto& head) { return head.dense; });
          },
          kOwned, kDenseHeads)
      .def_prop_ro(
          "non_finite",
          [](const smyrf::Statistics& s) {
            return HeadArray<bool>(s, [](const auto& head) { return head.non_finite; });
          },
          kOwned, kNonFinite)
      .def_ro("planning_seconds", &smyrf::Statistics::planning_seconds,
              "Wall seconds; 0 where a plan was passed in.")
      .def_ro("execution_seconds", &smyrf::Statistics::execution_seconds, "Wall seconds.")
      .def_ro("instruction_set", &smyrf::Statistics::instruction_set)
      .def("__repr__", [](const smyrf::Statistics& s) { return Describe(s); });
  DefinePickling(statistics, &LoadStatistics);

  // One dict of options: keywords would be gathered into one, and cost microseconds a call.
  m.def("attention", &Attention, "query"_a.none(), "key"_a.none(), "value"_a.none(), "out"_a.none(),
        "lse"_a.none(), "plan"_a.none(), "with_statistics"_a, "options"_a);
  m.def("attention_and_plan", &AttentionAndPlan, "query"_a.none(), "key"_a.none(), "value"_a.none(),
        "out"_a.none(), "lse"_a.none(), "with_statistics"_a, "options"_a);
  m.def("attention_backward", &AttentionBackward, "query"_a.none(), "key"_a.none(),
        "value"_a.none(), "out"_a.none(), "lse"_a.none(), "grad_out"_a.none(), "grad_lse"_a.none(),
        "grad_query"_a.none(), "grad_key"_a.none(), "grad_value"_a.none(), "plan"_a.none(),
        "options"_a);
  m.def("plan", &MakePlan, "query"_a.none(), "key"_a.none(), "value"_a.none(), "options"_a);
  m.def("estimate", &Estimate, "query"_a.none(), "key"_a.none(), "value"_a.none(), "options"_a);
  m.def("merge", &Merge, "out"_a.none(), "lse"_a.none(), "other_out"_a.none(), "other_lse"_a.none(),
        "layout"_a.none(), "num_threads"_a.none());
  m.def("reference", &Reference, "query"_a.none(), "key"_a.none(), "value"_a.none(),
        "out"_a.noconvert(), "lse"_a.noconvert(), "plan"_a.none(), "options"_a);
  m.def("instruction_sets", &smyrf::instruction_sets,
        "Instruction sets that this machine and build can run, best first.");
  m.def("threads", &smyrf::call_threads, "asked"_a,
        "Threads that a call runs on which asks for so many; 0: for none.");
  m.def("methods", &Methods, nb::sig("def methods() -> list[dict[str, typing.Any]]"),
        R"(The methods and their dials, as smyrf/methods.h has them.

Of each: name, summary, takes_masks, takes_dropout, takes_seed, chooses (only another method), and
dials: of each name, meaning, accepted (its range in words), whole (an integer) and default (None: no
limit).)");
  m.def(
      "force_instruction_set", &smyrf::force_instruction_set, "name"_a,
      "Restrict dispatch to one instruction set, or to the best for ''. For tests and benchmarks.");
  m.attr("version") = SMYRF_VERSION_STRING;
}
