// Statistics as bytes.
#include <string>
#include <string_view>

#include "base/archive.h"
#include "methods/method.h"
#include "run/problem.h"
#include "smyrf/statistics.h"

namespace smyrf {
namespace {

const Frame kFrame{"statistics", "smyrfsta", 3};

template <class Archive, class AnyHead>
void VisitHead(Archive& archive, AnyHead& head) {
  archive(head.density, head.seconds, head.planning_seconds, head.dense, head.non_finite,
          head.expected_error, head.expected_lse_error, head.expected_work, head.precision);
}

template <class Archive, class AnyStatistics>
void VisitFields(Archive& archive, AnyStatistics& statistics) {
  archive(statistics.method, statistics.reason, statistics.batch, statistics.query_heads,
          statistics.planning_seconds, statistics.execution_seconds, statistics.instruction_set);
}

bool IsSound(const Statistics& statistics) {
  const AttentionMethod* method = FindMethod(statistics.method);
  return method != nullptr && !method->info().chooses && statistics.batch >= 0 &&
         statistics.query_heads >= 0 &&
         static_cast<double>(statistics.batch) * static_cast<double>(statistics.query_heads) <=
             kMaxAllRows;
}

}  // namespace

std::string Statistics::to_bytes() const {
  return ToBytes(kFrame, [&](Writer& writer) {
    VisitFields(writer, *this);
    for (const Head& head : heads) VisitHead(writer, head);
  });
}

Statistics Statistics::from_bytes(std::string_view bytes) {
  Statistics statistics;
  FromBytes(kFrame, bytes, [&](Reader& reader) {
    VisitFields(reader, statistics);
    if (!IsSound(statistics)) RefuseBytes(kFrame.what);
    // Each takes bytes, so that a number that is too large ends with them.
    for (std::int64_t i = 0; i < statistics.batch * statistics.query_heads; ++i) {
      VisitHead(reader, statistics.heads.emplace_back());
    }
  });
  return statistics;
}

}  // namespace smyrf
