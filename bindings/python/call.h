// A call's Python arguments as the core takes them: arrays by DLPack, nothing converted, and
// options out of a dict. Every check of content is the core's.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "fail.h"
#include "smyrf/methods.h"
#include "smyrf/smyrf.h"

namespace smyrf::bindings {

namespace nb = nanobind;

/// str(object.name). Through an object: nb::str takes an attribute for one that is a str already.
inline std::string Attribute(nb::handle object, const char* name) {
  const nb::object value = nb::getattr(object, name);
  return nb::cast<std::string>(nb::str(value));
}

inline std::string TypeName(nb::handle object) { return Attribute(object.type(), "__name__"); }

inline std::string DTypeName(nb::dlpack::dtype dtype) {
  constexpr const char* kNames[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
  const std::string name = dtype.code < 7 ? kNames[dtype.code] : "unknown";
  return name == "bool" ? name : name + std::to_string(dtype.bits);
}

inline DType ToDType(const char* name, nb::dlpack::dtype dtype, const char* accepted) {
  const auto code = static_cast<nb::dlpack::dtype_code>(dtype.code);
  if (dtype.lanes == 1) {
    if (code == nb::dlpack::dtype_code::Float && dtype.bits == 32) return DType::kFloat32;
    if (code == nb::dlpack::dtype_code::Float && dtype.bits == 16) return DType::kFloat16;
    if (code == nb::dlpack::dtype_code::Bfloat && dtype.bits == 16) return DType::kBFloat16;
    if (code == nb::dlpack::dtype_code::Bool && dtype.bits == 8) return DType::kBool;
  }
  Fail(ErrorKind::kType, name, ": got dtype ", DTypeName(dtype), ", expected ", accepted,
       "; convert it");
}

inline constexpr const char* kRows = "float32, float16 or bfloat16";
inline constexpr const char* kMask = "bool, float32, float16 or bfloat16";
inline constexpr const char* kPadding = "bool with True where a row is valid";

/// The array behind a Python object, kept alive; nothing is copied or converted.
template <class Array>
class Import {
 public:
  Import(const char* name, nb::handle object, const char* accepted = kRows) {
    if (!nb::try_cast(object, array_, false)) {
      // The device is worth a sentence of its own; what else keeps an array out is in its type.
      if (nb::hasattr(object, "device") && nb::hasattr(object, "dtype")) {
        Fail(ErrorKind::kType, name, ": its memory can't be used as it is (", TypeName(object),
             " of dtype ", Attribute(object, "dtype"), " on device ", Attribute(object, "device"),
             "); pass an aligned one of dtype ", accepted, " on the CPU in native byte order",
             kWritable ? " that can be written to" : "");
      }
      Fail(ErrorKind::kType, name, ": got ", TypeName(object),
           ", expected a NumPy array or a PyTorch tensor");
    }
    if (array_.device_type() != nb::device::cpu::value) {
      Fail(ErrorKind::kType, name, ": lies on a device of DLPack type ", array_.device_type(),
           ", only the CPU is supported; move it there");
    }
    if (array_.ndim() > 4) {
      Fail(ErrorKind::kType, name, ": got ", array_.ndim(), " dimensions, at most 4");
    }
    if (array_.data() == nullptr && array_.size() > 0) {  // PyTorch's efficient zero tensors
      Fail(ErrorKind::kType, name, ": has no memory of its own; pass a copy, by .clone()");
    }
    view_.data = array_.data();
    view_.dtype = ToDType(name, array_.dtype(), accepted);
    view_.rank = static_cast<int>(array_.ndim());
    for (std::size_t i = 0; i < array_.ndim(); ++i) {
      view_.shape[i] = static_cast<std::int64_t>(array_.shape(i));
      view_.strides[i] = array_.stride(i);
    }
    // Without elements NumPy's strides are 0 and mean nothing; the core looks at them. The sizes
    // may be any, so that only unsigned numbers can be multiplied.
    if (array_.size() == 0) {
      std::uint64_t stride = 1;
      for (std::size_t i = array_.ndim(); i-- > 0; stride *= array_.shape(i)) {
        view_.strides[i] = static_cast<std::int64_t>(stride);
      }
    }
  }

  auto view(bool heads_last = false) const {
    auto view = view_;
    if (heads_last && view.rank == 4) {  // (B, N, H, D) seen as (B, H, N, D)
      std::swap(view.shape[1], view.shape[2]);
      std::swap(view.strides[1], view.strides[2]);
    }
    return view;
  }
  std::string dtype() const { return DTypeName(array_.dtype()); }

 private:
  static constexpr bool kWritable = !std::is_const_v<typename Array::Scalar>;
  Array array_;
  std::conditional_t<kWritable, MutableTensorView, TensorView> view_;
};

using Input = Import<nb::ndarray<nb::ro>>;
using Output = Import<nb::ndarray<>>;

/// All rows have the dtype of query, as in PyTorch's attention; the core asks less. What it does
/// not take, whatever the others are, is for it to say.
inline void CheckLikeQuery(const char* name, const Input& rows, const Input& query) {
  for (const Input* input : {&rows, &query}) {
    if (input->view().rank != 4 || input->view().dtype == DType::kBool) return;
  }
  if (rows.view().dtype == query.view().dtype) return;
  Fail(ErrorKind::kType, name, ": got dtype ", rows.dtype(), ", expected ", query.dtype(),
       " like query; convert one of them");
}

[[noreturn]] inline void FailWith(ErrorKind kind, const char* name, nb::handle object,
                                  const char* expected) {
  Fail(kind, name, ": got ", nb::cast<std::string>(nb::repr(object)), ", expected ", expected);
}

/// An integer of Python's or NumPy's, or whatever counts as one (`__index__`): nothing is rounded.
/// Messages show `whole`, which it is a part of.
template <class Integer>
Integer ToInteger(const char* name, nb::handle object, const char* expected, nb::handle whole) {
  const nb::object index = nb::steal(PyNumber_Index(object.ptr()));
  if (!index.is_valid()) {
    PyErr_Clear();
    FailWith(ErrorKind::kType, name, whole, expected);
  }
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  if (overflow != 0 || !std::in_range<Integer>(value)) {
    FailWith(ErrorKind::kValue, name, whole, expected);
  }
  return static_cast<Integer>(value);
}
template <class Integer>
Integer ToInteger(const char* name, nb::handle object, const char* expected) {
  return ToInteger<Integer>(name, object, expected, object);
}

/// A real number of Python's or NumPy's, or a tensor that holds one. Complex numbers and text would
/// turn into one too, and lose a part or surprise.
inline double ToReal(const char* name, nb::handle object, const char* expected) {
  double value = -1.0;
  bool is_real = PyFloat_Check(object.ptr()) != 0 || PyLong_Check(object.ptr()) != 0;
  if (!is_real && !PyUnicode_Check(object.ptr())) {
    const std::string dtype = nb::hasattr(object, "dtype") ? Attribute(object, "dtype") : "float";
    is_real = dtype.find("float") != std::string::npos || dtype.find("int") != std::string::npos;
  }
  if (is_real) value = PyFloat_AsDouble(object.ptr());
  if (!is_real || PyErr_Occurred() != nullptr) {
    const bool too_large =
        PyErr_Occurred() != nullptr && PyErr_ExceptionMatches(PyExc_OverflowError) != 0;
    PyErr_Clear();
    FailWith(too_large ? ErrorKind::kValue : ErrorKind::kType, name, object, expected);
  }
  return value;
}

template <class T>
std::optional<T> ToNumber(const char* name, nb::handle object, const char* expected) {
  if (object.is_none()) return std::nullopt;
  if constexpr (std::is_integral_v<T>) {
    return ToInteger<T>(name, object, expected);
  } else {
    return ToReal(name, object, expected);
  }
}

/// True and False of Python and NumPy, whose arrays without dimensions hold one too.
inline bool ToBool(const char* name, nb::handle object) {
  if (object.ptr() == Py_True) return true;
  if (object.ptr() == Py_False) return false;
  const nb::object numpy = nb::module_::import_("numpy");
  if (nb::isinstance(object, numpy.attr("ndarray")) && nb::cast<int>(object.attr("ndim")) == 0) {
    return ToBool(name, nb::object(object.attr("item")()));
  }
  if (!nb::isinstance(object, numpy.attr("bool_"))) {
    FailWith(ErrorKind::kType, name, object, "True or False");
  }
  return PyObject_IsTrue(object.ptr()) == 1;
}

/// PyTorch's operators have signed integers only, so half of the core's seeds are for C++.
inline std::uint64_t ToSeed(nb::handle object) {
  constexpr const char* kExpected = "an integer from 0 to 2^63 - 1";
  const auto seed = ToInteger<std::int64_t>("seed", object, kExpected);
  if (seed < 0) FailWith(ErrorKind::kValue, "seed", object, kExpected);
  return static_cast<std::uint64_t>(seed);
}

inline std::array<std::int64_t, 2> ToPair(const char* name, nb::handle object,
                                          const char* expected) {
  if (!PyUnicode_Check(object.ptr()) && PySequence_Check(object.ptr()) != 0 &&
      PySequence_Size(object.ptr()) == 2) {
    const auto side = [&](int i) {
      return ToInteger<std::int64_t>(name, nb::object(object[i]), expected, object);
    };
    return {side(0), side(1)};
  }
  PyErr_Clear();
  FailWith(ErrorKind::kType, name, object, expected);
}

inline const Plan* ToPlan(nb::handle object) {
  if (object.is_none()) return nullptr;
  const Plan* plan = nullptr;
  if (!nb::try_cast(object, plan)) {
    Fail(ErrorKind::kType, "plan: got ", TypeName(object),
         ", expected a smyrf.Plan; make one with smyrf.plan");
  }
  return plan;
}

/// 'auto', 'dense' and so on, as a sentence lists them.
inline std::string MethodNames() {
  std::string names;
  for (std::size_t i = 0; i < methods().size(); ++i) {
    if (i > 0) names += i + 1 == methods().size() ? " and " : ", ";
    names += Message("'", methods()[i]->name, "'");
  }
  return names;
}

inline Method ToMethod(nb::handle object) {
  std::string name;
  if (nb::try_cast(object, name)) {
    if (const std::optional<Method> method = method_named(name)) return *method;
  }
  Fail(ErrorKind::kValue, "method: got ", nb::cast<std::string>(nb::repr(object)),
       ", accepted are ", MethodNames());
}

inline Precision ToPrecision(nb::handle object) {
  if (object.is_none()) return Precision::kAuto;
  std::string name;
  if (nb::try_cast(object, name)) {
    if (const std::optional<Precision> precision = precision_named(name)) return *precision;
  }
  Fail(ErrorKind::kValue, "precision: got ", nb::cast<std::string>(nb::repr(object)),
       ", accepted are auto, float32, int16 and int8");
}

inline bool ToHeadsLast(nb::handle object) {
  std::string name;
  if (nb::try_cast(object, name)) {
    if (name == "BHND") return false;
    if (name == "BNHD") return true;
  }
  Fail(ErrorKind::kValue, "layout: got ", nb::cast<std::string>(nb::repr(object)),
       ", accepted are 'BHND' and 'BNHD'");
}

/// A string as a template's argument.
template <std::size_t kSize>
struct Literal {
  char text[kSize]{};
  // NOLINTNEXTLINE(google-explicit-constructor): Get<"name"> converts the string by it.
  constexpr Literal(const char (&from)[kSize]) { std::copy_n(from, kSize, text); }
};

/// Looks options up by names whose Python strings are made and hashed once, not once a call.
class OptionReader {
 public:
  explicit OptionReader(const nb::dict& options) : options_(options) {}

  template <Literal kName>
  nb::handle Get() {
    static PyObject* const name = PyUnicode_InternFromString(kName.text);
    const nb::handle given = PyDict_GetItem(options_.ptr(), name);
    taken_ += given.is_valid() ? 1 : 0;
    return given.is_valid() ? given : nb::handle(Py_None);
  }
  std::size_t taken() const { return taken_; }

 private:
  const nb::dict& options_;
  std::size_t taken_ = 0;
};

/// The options that are neither arrays nor the layout. What is missing counts as None.
inline Options ToOptions(OptionReader& option) {
  Options options;
  options.method = ToMethod(option.Get<"method">());
  options.is_causal = ToBool("is_causal", option.Get<"is_causal">());
  options.enable_gqa = ToBool("enable_gqa", option.Get<"enable_gqa">());
  options.scale =
      ToNumber<double>("scale", option.Get<"scale">(), "a finite number or None for 1/sqrt(D)");
  constexpr const char* kDial = "an integer of at least 1, or None for the default";
  options.n_hashes = ToNumber<std::int64_t>("n_hashes", option.Get<"n_hashes">(), kDial);
  options.cluster_size =
      ToNumber<std::int64_t>("cluster_size", option.Get<"cluster_size">(), kDial);
  options.tolerance = ToNumber<double>("tolerance", option.Get<"tolerance">(), "a number or None");
  options.max_density =
      ToNumber<double>("max_density", option.Get<"max_density">(), "a number or None");
  options.precision = ToPrecision(option.Get<"precision">());
  options.dropout_p =
      ToNumber<double>("dropout_p", option.Get<"dropout_p">(), "a number from 0 to 1")
          .value_or(0.0);
  options.seed = ToSeed(option.Get<"seed">());
  options.num_threads =
      ToNumber<int>("num_threads", option.Get<"num_threads">(), "a number of threads or None")
          .value_or(0);
  if (const nb::handle window = option.Get<"window">(); !window.is_none()) {
    const auto [left, right] =
        ToPair("window", window, "(left, right), two integers from 0 up or -1 for no bound");
    options.window = {left, right};
  }
  if (const nb::handle positions = option.Get<"positions">(); !positions.is_none()) {
    const auto [first_query, first_key] =
        ToPair("positions", positions, "(first_query, first_key), two integers from 0 up");
    options.positions = {first_query, first_key};
  }
  return options;
}

/// A call's Python arguments as the core takes them; keeps the arrays alive.
struct Call {
  std::optional<Input> query, key, value, attn_mask, key_padding_mask, query_padding_mask;
  Arguments arguments;
  Options options;
  bool heads_last = false;

  /// `options`: those of the keywords of smyrf.attention that are neither arrays of rows nor about
  /// what is returned. What is missing counts as None.
  Call(nb::handle query_, nb::handle key_, nb::handle value_, const nb::dict& options_) {
    OptionReader option(options_);
    heads_last = ToHeadsLast(option.Get<"layout">());
    query.emplace("query", query_);
    key.emplace("key", key_);
    arguments.query = query->view(heads_last);
    arguments.key = key->view(heads_last);
    if (!value_.is_none()) {
      value.emplace("value", value_);
      arguments.value = value->view(heads_last);
    }
    CheckLikeQuery("key", *key, *query);
    if (value) CheckLikeQuery("value", *value, *query);
    const auto mask = [](const char* name, nb::handle object, std::optional<Input>& keep,
                         std::optional<TensorView>& view, const char* accepted) {
      if (object.is_none()) return;
      keep.emplace(name, object, accepted);
      view = keep->view();
    };
    mask("attn_mask", option.Get<"attn_mask">(), attn_mask, arguments.attn_mask, kMask);
    mask("key_padding_mask", option.Get<"key_padding_mask">(), key_padding_mask,
         arguments.key_padding_mask, kPadding);
    mask("query_padding_mask", option.Get<"query_padding_mask">(), query_padding_mask,
         arguments.query_padding_mask, kPadding);

    options = ToOptions(option);
    if (option.taken() < options_.size()) {
      Fail(ErrorKind::kType, "options: got a name that is unknown");
    }
  }
};

}  // namespace smyrf::bindings
