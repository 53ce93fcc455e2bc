// smyrf._core: the C++ calls.
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
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "call.h"
#include "fail.h"
#include "results.h"
#include "smyrf/smyrf.h"
#include "without_gil.h"

namespace nb = nanobind;
using namespace nb::literals;

using namespace smyrf::bindings;
using smyrf::ErrorKind;

namespace {

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

void CheckOptions(const nb::dict& options) {
  OptionReader option(options);
  ToHeadsLast(option.Get<"layout">());
  ToOptions(option);
}

nb::dict DialEntry(const smyrf::Dial& dial) {
  nb::dict entry;
  entry["name"] = dial.option.name;
  entry["meaning"] = dial.meaning;
  entry["accepted"] = dial.accepted;
  entry["whole"] = dial.option.whole != nullptr;
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
      // The path of a file may be no UTF-8.
      const std::string_view what = error.what();
      const nb::object text = nb::steal(PyUnicode_DecodeUTF8(
          what.data(), static_cast<Py_ssize_t>(what.size()), "backslashreplace"));
      if (text.is_valid()) PyErr_SetObject(type, text.ptr());
    }
  });

  DefinePlan(m);
  DefineStatistics(m);

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
  m.def("check_options", &CheckOptions, "options"_a,
        "Raise for an option of another type than a call takes. Nothing else is checked.");
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
