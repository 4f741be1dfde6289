// Enough of CUDA to run kernels whose threads work together, on the CPU: the threads of a block are coroutines that run
// one after the other from barrier to barrier, so that a missing barrier shows. tests/emulated_gpu.py puts this file
// before a .cu file's text and EMULATE after it; __CUDA_ARCH__ is defined, so the device's side of the code is taken.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __CUDACC__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static

struct alignas(16) uint4 { unsigned x, y, z, w; };
struct coordinates { unsigned x, y, z; };
static coordinates blockIdx, blockDim, threadIdx;
alignas(16) static unsigned char emulated_shared_memory[48 * 1024];

namespace emulated {

enum state { running, at_warp, at_block, done };
struct thread {
  ucontext_t context;
  std::vector<char> stack;
  state now;
  unsigned exchange;
};
static std::vector<thread> threads;
static ucontext_t scheduler;
static unsigned current;
static void (*call)(void**);
static void** parameters;

static void wait(state at) {
  const unsigned self = current;
  threads[self].now = at;
  swapcontext(&threads[self].context, &scheduler);
}
static void body() {
  call(parameters);
  wait(done);
}

// Barriers whose threads have all come let them go on; false where nobody can: threads of a warp or block went apart.
static bool release() {
  bool moved = false, whole_block = true, all_done = true;
  for (size_t first = 0; first < threads.size(); first += 32) {
    bool whole_warp = true;
    for (size_t i = first; i < first + 32 && i < threads.size(); ++i) {
      whole_warp &= threads[i].now == at_warp;
      whole_block &= threads[i].now == at_block;
      all_done &= threads[i].now == done;
    }
    for (size_t i = first; whole_warp && i < first + 32 && i < threads.size(); ++i) threads[i].now = running, moved = true;
  }
  for (auto& one : threads)
    if (whole_block) one.now = running, moved = true;
  return moved || all_done;
}

static bool run_block(bool reversed) {
  for (auto& one : threads) {
    one.stack.resize(64 * 1024);
    one.now = running;
    getcontext(&one.context);
    one.context.uc_stack.ss_sp = one.stack.data();
    one.context.uc_stack.ss_size = one.stack.size();
    one.context.uc_link = &scheduler;
    makecontext(&one.context, body, 0);
  }
  for (;;) {
    bool any = false;
    for (size_t i = 0; i < threads.size(); ++i) {
      const unsigned t = (unsigned)(reversed ? threads.size() - 1 - i : i);
      if (threads[t].now != running) continue;
      any = true;
      current = threadIdx.x = t;
      swapcontext(&scheduler, &threads[t].context);
    }
    if (!any) return true;
    if (!release()) return false;
  }
}

struct kernel {
  const char* name;
  void (*call)(void**);
};
template <auto F> struct unpacked;
template <typename... A, void (*F)(A...)> struct unpacked<F> {
  template <size_t... I> static void call(void** p, std::index_sequence<I...>) { F(*static_cast<A*>(p[I])...); }
  static void call(void** p) { call(p, std::index_sequence_for<A...>{}); }
};

}  // namespace emulated

inline void __syncthreads() { emulated::wait(emulated::at_block); }
inline void __syncwarp() { emulated::wait(emulated::at_warp); }
inline unsigned __shfl_sync(unsigned, unsigned value, int lane) {
  const unsigned self = emulated::current;
  emulated::threads[self].exchange = value;
  __syncwarp();
  const unsigned got = emulated::threads[self / 32 * 32 + ((unsigned)lane & 31u)].exchange;
  __syncwarp();
  return got;
}
inline unsigned __ballot_sync(unsigned, bool value) {
  const unsigned self = emulated::current;
  emulated::threads[self].exchange = value;
  __syncwarp();
  unsigned bits = 0;
  for (unsigned lane = 0; lane < 32; ++lane) bits |= emulated::threads[self / 32 * 32 + lane].exchange << lane;
  __syncwarp();
  return bits;
}
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline float __fmul_rn(float a, float b) { return a * b; }
template <typename T> T __ldg(const T* from) { return *from; }

#define EMULATE                                                                                                       \
  extern "C" int emulate(const char* name, const unsigned* grid, const unsigned* block, unsigned shared_bytes,        \
                         void** parameters, int reversed) {                                                           \
    for (auto& one : emulated_kernels) {                                                                              \
      if (std::strcmp(one.name, name)) continue;                                                                      \
      if (shared_bytes > sizeof emulated_shared_memory || block[0] % 32 || block[1] != 1 || block[2] != 1) return 1;  \
      emulated::call = one.call, emulated::parameters = parameters;                                                   \
      emulated::threads.resize(block[0]);                                                                             \
      blockDim = {block[0], 1, 1}, threadIdx = {};                                                                    \
      for (unsigned z = 0; z < grid[2]; ++z)                                                                          \
        for (unsigned y = 0; y < grid[1]; ++y)                                                                        \
          for (unsigned x = 0; x < grid[0]; ++x) {                                                                    \
            std::memset(emulated_shared_memory, 0xa5, sizeof emulated_shared_memory);                                 \
            blockIdx = {x, y, z};                                                                                     \
            if (!emulated::run_block(reversed)) return 2;                                                             \
          }                                                                                                           \
      return 0;                                                                                                       \
    }                                                                                                                 \
    return 3;                                                                                                         \
  }
