// Threads of the standard library, for a host whose own threads want the same cores.
#include <algorithm>

#include "base/team.h"
#include "base/thread_team.h"

namespace smyrf {

int DefaultThreads() { return Processors(); }

int TeamSize(int asked) { return std::min(asked, kThreadsPerProcessor * Processors()); }

void RunTeam(int threads, const std::function<void()>& work) { RunThreads(threads, work); }

}  // namespace smyrf
