// Working memory that a program keeps for its calls.
#pragma once

#include <cstdint>
#include <memory>

#include "smyrf/export.h"
namespace smyrf {

/// Working memory of calls (Options::workspace): it grows to what the largest of them needed and is
/// used again by the next. Each thread of a call has a part of its own. It serves one call at a
/// time: a call that is given one in use throws Error and writes nothing. Results have the same
/// bits with every workspace.
///
/// Calls without one use memory that each thread keeps until it ends. A workspace is for programs
/// that want to know how much that is, to release it, or not to leave any in threads that are not
/// theirs. What a call holds only while it runs (plans, partial results, large arrays) is no part
/// of either.
class Workspace {
 public:
  SMYRF_API Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  Workspace(Workspace&&) = delete;
  Workspace& operator=(Workspace&&) = delete;
  SMYRF_API ~Workspace();  ///< not while a call uses it

  /// What it holds. Throws Error while a call uses it.
  SMYRF_API std::int64_t bytes() const;
  /// Releases all of it. Throws Error while a call uses it.
  SMYRF_API void clear();

 private:
  friend class WorkspaceUse;
  struct Memory;
  std::unique_ptr<Memory> memory_;
};

}  // namespace smyrf
