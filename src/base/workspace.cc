#include "base/workspace.h"

#include <mutex>

#include "base/message.h"

namespace smyrf {

using kernels::ThreadMemory;

namespace kernels {

std::int64_t ThreadMemory::bytes() const {
  auto sum = static_cast<std::int64_t>(sizeof(ThreadMemory)) + BytesOf(scratches_);
  for (const auto& scratch : scratches_) sum += scratch != nullptr ? scratch->bytes() : 0;
  for (std::size_t i = 0; i < kept_count_; ++i) sum += BytesOf(kept_[i]);
  return sum;
}

std::size_t ThreadMemory::GiveNumber(std::atomic<std::size_t>& number) {
  static constinit std::atomic<std::size_t> last{0};
  const std::size_t mine = ++last;
  std::size_t given = 0;
  return number.compare_exchange_strong(given, mine) ? mine : given;
}

ThreadMemory& ThreadMemory::MakeOwn() {
  struct Own {
    ThreadMemory memory;
    Own() { current_ = &memory; }
    Own(const Own&) = delete;
    Own& operator=(const Own&) = delete;
    Own(Own&&) = delete;
    Own& operator=(Own&&) = delete;
    ~Own() { current_ = nullptr; }
  };
  thread_local Own own;
  return own.memory;
}

}  // namespace kernels

struct Workspace::Memory {
  std::atomic<bool> busy{false};  ///< a call has it
  std::mutex mutex;               ///< of what follows: a call's threads come and go
  std::vector<std::unique_ptr<ThreadMemory>> idle;
  std::size_t parts = 0;  ///< made so far

  void Begin() {
    if (!busy.exchange(true)) return;
    Fail(ErrorKind::kValue,
         "workspace: another call is using it, and it serves one at a time; give each call that "
         "runs at the same time one of its own");
  }
  /// The part that was put back last: that of the thread that made the last call.
  std::unique_ptr<ThreadMemory> Take() {
    const std::scoped_lock lock(mutex);
    if (idle.empty()) {
      idle.reserve(parts + 1);  // Put must not allocate
      auto made = std::make_unique<ThreadMemory>();
      ++parts;
      return made;
    }
    auto part = std::move(idle.back());
    idle.pop_back();
    return part;
  }
  void Put(std::unique_ptr<ThreadMemory> part) noexcept {
    const std::scoped_lock lock(mutex);
    idle.push_back(std::move(part));
  }
};

Workspace::Workspace() : memory_(std::make_unique<Memory>()) {}
Workspace::~Workspace() = default;

std::int64_t Workspace::bytes() const {
  memory_->Begin();
  std::int64_t sum = 0;
  for (const auto& part : memory_->idle) sum += part->bytes();
  memory_->busy = false;
  return sum;
}

void Workspace::clear() {
  memory_->Begin();
  memory_->idle.clear();
  memory_->parts = 0;
  memory_->busy = false;
}

WorkspaceUse::WorkspaceUse(Workspace* workspace) {
  if (workspace != nullptr) workspace->memory_->Begin();
  busy_ = workspace;
  try {
    Enter(workspace);
  } catch (...) {
    if (busy_ != nullptr) busy_->memory_->busy = false;
    throw;
  }
}

WorkspaceUse::WorkspaceUse(Workspace* workspace, const ThreadMemory* caller) {
  if (ThreadMemory::Made() != caller) Enter(workspace);
}

void WorkspaceUse::Enter(Workspace* workspace) {
  before_ = ThreadMemory::Made();
  if (workspace != nullptr) {
    part_ = workspace->memory_->Take();
    workspace_ = workspace;
  } else if (before_ != nullptr && before_->in_use_) {
    // A pool may let a thread that waits for one call's section work in another call's: what the
    // first call works in must stay as it is.
    part_ = std::make_unique<ThreadMemory>();
  } else if (before_ == nullptr) {
    before_ = &ThreadMemory::Current();
  }
  ThreadMemory::current_ = part_ != nullptr ? part_.get() : before_;
  ThreadMemory::current_->in_use_ = true;
  entered_ = true;
}

WorkspaceUse::~WorkspaceUse() {
  if (entered_) {
    ThreadMemory::current_->in_use_ = false;
    ThreadMemory::current_ = before_;
    if (workspace_ != nullptr) workspace_->memory_->Put(std::move(part_));
  }
  if (busy_ != nullptr) busy_->memory_->busy = false;
}

}  // namespace smyrf
