// The classes that calls give back: smyrf.Plan and smyrf.Statistics.
#include "results.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "call.h"
#include "fail.h"
#include "pickle.h"
#include "smyrf/smyrf.h"
#include "without_gil.h"

namespace nb = nanobind;
using namespace nb::literals;

using namespace smyrf::bindings;
using smyrf::ErrorKind;

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
Array<bool> ValidMask(const smyrf::Plan& plan, ValidOf valid_of, std::int64_t rows) {
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
    if (!method->chooses) names += Message(names.empty() ? "'" : ", '", method->name, "'");
  }
  return "def method(self) -> typing.Literal[" + names + "]";
}

/// The system's bytes of a path, in whatever encoding they are.
std::string ToPath(nb::handle object) {
  PyObject* bytes = nullptr;
  if (PyUnicode_FSConverter(object.ptr(), static_cast<void*>(&bytes)) == 0) {
    const bool is_path = PyErr_ExceptionMatches(PyExc_ValueError) != 0;
    PyErr_Clear();
    FailWith(is_path ? ErrorKind::kValue : ErrorKind::kType, "path", object,
             "the path of a file: str, bytes or os.PathLike");
  }
  const nb::bytes held = nb::steal<nb::bytes>(bytes);
  return {held.c_str(), held.size()};
}

smyrf::Plan LoadPlan(nb::handle state) { return FromState<smyrf::Plan>("plan", state); }

smyrf::Statistics LoadStatistics(nb::handle state) {
  return FromState<smyrf::Statistics>("statistics", state);
}

std::string Describe(const smyrf::Plan& plan) {
  const smyrf::PlanInfo& info = plan.info();
  return Message("<smyrf.Plan: ", smyrf::name(info.method), " (", info.reason, "), batch ",
                 info.batch, ", ", info.query_heads, " query heads over ", info.key_heads, ", ",
                 info.queries, " queries over ", info.keys, " keys>");
}

std::string Describe(const smyrf::Statistics& statistics) {
  double density = 0.0;
  double expected_error = 0.0;
  for (const auto& head : statistics.heads) {
    density += head.density / static_cast<double>(statistics.heads.size());
    expected_error = std::max(expected_error, head.expected_error);
  }
  const std::string expected =
      expected_error > 0.0 ? Message(", largest expected error ", expected_error) : "";
  return Message("<smyrf.Statistics: ", smyrf::name(statistics.method), " (", statistics.reason,
                 "), ", statistics.heads.size(), " heads, mean density ", density, expected,
                 ", planning ", statistics.planning_seconds, " s, execution ",
                 statistics.execution_seconds, " s, ", statistics.instruction_set, ">");
}

}  // namespace

namespace smyrf::bindings {

void DefinePlan(const nb::module_& m) {
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
      .def_prop_ro(
          "precision", [](const smyrf::Plan& p) { return smyrf::name(p.info().precision); },
          nb::for_getter(nb::sig("def precision(self) -> typing.Literal['auto', 'float32', "
                                 "'int16', 'int8']")),
          "What products may be computed in; auto: what the tolerance allows.")
      .def_prop_ro("seed", [](const smyrf::Plan& p) { return p.info().seed; })
      .def_prop_ro("is_causal", [](const smyrf::Plan& p) { return p.info().is_causal; })
      .def_prop_ro("window", &PlanWindow, "(left, right), or None.")
      .def_prop_ro("positions", &PlanPositions, "(first_query, first_key), or None.")
      .def_prop_ro(
          "valid_queries",
          [](const smyrf::Plan& p) {
            return ValidMask(p, &smyrf::Plan::valid_queries, p.info().queries);
          },
          kOwned, "(B, Nq) bool: not padded.")
      .def_prop_ro(
          "valid_keys",
          [](const smyrf::Plan& p) {
            return ValidMask(p, &smyrf::Plan::valid_keys, p.info().keys);
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
          "save", [](const smyrf::Plan& p, nb::handle path) { p.save(ToPath(path)); },
          "path"_a.none(),
          nb::sig(
              "def save(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> None"),
          R"(Write the plan to a file, which appears whole or not at all.

Raises ValueError with the system's reason where it can't be written.)")
      .def_static(
          "load", [](nb::handle path) { return smyrf::Plan::load(ToPath(path)); }, "path"_a.none(),
          nb::sig("def load(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> Plan"),
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
}

void DefineStatistics(const nb::module_& m) {
  // A property's own policy would tie an array that owns its memory to the object it is of.
  constexpr auto kOwned = nb::rv_policy::automatic;
  // The stub says which strings a property may be.
  const std::string signature = SignatureOfMethod();
  const nb::sig method_taken(signature.c_str());
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
          "(B, Hq) float64: relative error of out to expect, of summaries and of narrow products; "
          "0 where there are neither.")
      .def_prop_ro(
          "expected_lse_error",
          [](const smyrf::Statistics& s) {
            return HeadArray<double>(s, [](const auto& head) { return head.expected_lse_error; });
          },
          kOwned, "(B, Hq) float64: RMS error of lse to expect, in nats.")
      .def_prop_ro(
          "precision",
          [](const smyrf::Statistics& s) {
            std::vector<std::vector<const char*>> names(static_cast<std::size_t>(s.batch));
            for (std::size_t i = 0; i < s.heads.size(); ++i) {
              names[i / static_cast<std::size_t>(s.query_heads)].push_back(
                  smyrf::name(s.heads[i].precision));
            }
            return names;
          },
          nb::for_getter(nb::sig("def precision(self) -> list[list[typing.Literal['float32', "
                                 "'int16', 'int8']]]")),
          "[B][Hq]: what the products of a head's pairs were computed in.")
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
}

}  // namespace smyrf::bindings
