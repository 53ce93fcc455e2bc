// The default pool of the Python extension: threads of PyTorch's OpenMP where the process has
// PyTorch, else those of the standard library.
//
// A second pool beside PyTorch's would fight it for the cores: threads of OpenMP spin for a while
// when a section is over. But an extension that is linked to libgomp doesn't start where there is
// none, and one that brings a copy along has a second pool. So PyTorch's is looked up at run time.
#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string_view>

#include "base/lost_pool.h"
#include "base/thread_team.h"

namespace smyrf {
namespace {

/// The functions that GCC calls for `#pragma omp parallel`, which LLVM's and Intel's OpenMP have
/// too.
struct OpenMp {
  void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);
  int (*max_threads)();
  int (*processors)();
};

/// How many libraries this process has loaded so far, those since unloaded included.
unsigned long long LibrariesLoaded() {
  unsigned long long loaded = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* result) {
        *static_cast<unsigned long long*>(result) = info->dlpi_adds;
        return 1;  // every library is told the same number
      },
      &loaded);
  return loaded;
}

template <typename Function>
bool Find(void* library, const char* name, Function*& found) {
  found = reinterpret_cast<Function*>(dlsym(library, name));
  return found != nullptr;
}

/// PyTorch's OpenMP, or null as long as the process has none.
const OpenMp* PyTorchOpenMp() {
  static std::atomic<const OpenMp*> known{nullptr};
  static std::atomic<unsigned long long> looked_at{0};
  if (const OpenMp* openmp = known) return openmp;
  // A look costs 20 microseconds, this question less than one.
  const unsigned long long loaded = LibrariesLoaded();
  if (loaded == looked_at) return nullptr;
  static OpenMp functions;
  static std::mutex mutex;
  const std::scoped_lock lock(mutex);
  // Symbols are looked up in what a library needs, too. It stays loaded, as it does in Python.
  void* torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  if (known == nullptr && torch != nullptr && Find(torch, "GOMP_parallel", functions.parallel) &&
      Find(torch, "omp_get_max_threads", functions.max_threads) &&
      Find(torch, "omp_get_num_procs", functions.processors)) {
    known = &functions;
  }
  looked_at = loaded;
  return known;
}

/// OMP_NUM_THREADS, as OpenMP would read it, else the processors.
int StandardSize() {
  const char* text = std::getenv("OMP_NUM_THREADS");
  if (text == nullptr) return Processors();
  const std::string_view view(text);
  int threads = 0;
  std::from_chars(view.data(), view.data() + view.size(), threads);
  return threads > 0 ? threads : Processors();
}

class PythonPool : public ThreadPool {
 public:
  int size() const override {
    if (const OpenMp* openmp = PyTorchOpenMp()) return PoolIsLost() ? 1 : openmp->max_threads();
    return standard_->size();
  }

  void run(int threads, const std::function<void()>& work) override {
    const OpenMp* openmp = PyTorchOpenMp();
    if (openmp == nullptr) return standard_->run(threads, work);
    const int most = std::min(threads, kThreadsPerProcessor * openmp->processors());
    if (most <= 1 || PoolIsLost()) return work();
    openmp->parallel([](void* data) { (*static_cast<const std::function<void()>*>(data))(); },
                     const_cast<void*>(static_cast<const void*>(&work)),
                     static_cast<unsigned>(most), 0);
  }

 private:
  const std::unique_ptr<ThreadPool> standard_ =
      StandardThreads(StandardSize(), kThreadsPerProcessor* Processors());
};

}  // namespace

ThreadPool& default_thread_pool() {
  // Never destroyed: when Python ends, another of its threads may still compute.
  static ThreadPool& pool = *std::make_unique<PythonPool>().release();
  return pool;
}

}  // namespace smyrf
