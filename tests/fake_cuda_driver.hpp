// A libcuda.so.1 for machines without a GPU: launches run the kernels of one .cu file on the CPU, thread by thread.
//
// tests/fake_cuda.py puts this file before the .cu file's text, and a table of its kernels and the driver's functions
// (DRIVER below) after it. Threads of a block run one after the other, so kernels that wait for each other do not work.
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct coordinates { unsigned x, y, z; };
static coordinates gridDim, blockDim, blockIdx, threadIdx;

template <typename T> T atomicAdd(T* to, T value) {
  const T before = *to;
  *to += value;
  return before;
}

namespace fake {

struct kernel {
  const char* name;
  void (*call)(void** parameters);
  int parameters;
  size_t sizes[32];
};

template <auto F> struct unpacked;
template <typename... A, void (*F)(A...)> struct unpacked<F> {
  template <size_t... I> static void call(void** parameters, std::index_sequence<I...>) {
    F(*static_cast<A*>(parameters[I])...);
  }
  static void call(void** parameters) { call(parameters, std::index_sequence_for<A...>{}); }
  static kernel entry(const char* name) { return {name, &unpacked::call, (int)sizeof...(A), {sizeof(A)...}}; }
};

struct launch { char name[128]; unsigned grid[3], block[3], shared_bytes; void* stream; };
static launch last;
static int launches, modules, retained, initialised;
static void* context;
static std::string image;

}  // namespace fake

#define DRIVER                                                                                                        \
  extern "C" {                                                                                                        \
  int cuInit(unsigned) { return fake::initialised = 1, 0; }                                                           \
  int cuDriverGetVersion(int* version) { return *version = 13000, 0; }                                                \
  int cuGetErrorString(int code, const char** text) {                                                                 \
    *text = code == 500 ? "named symbol not found" : code == 700 ? "an illegal memory access was encountered" : 0;    \
    return *text ? 0 : 1;                                                                                             \
  }                                                                                                                   \
  int cuCtxGetCurrent(void** now) { return *now = fake::context, fake::initialised ? 0 : 3; }                         \
  int cuDeviceGet(int* device, int ordinal) { return *device = ordinal + 40, 0; }                                     \
  int cuDevicePrimaryCtxRetain(void** now, int device) {                                                              \
    *now = (void*)(size_t)(device + 1000);                                                                            \
    return ++fake::retained, 0;                                                                                       \
  }                                                                                                                   \
  int cuCtxSetCurrent(void* now) { return fake::context = now, 0; }                                                   \
  int cuModuleLoadData(void** module, const char* image) {                                                            \
    fake::image = image;                                                                                              \
    if (fake::image == "damaged") return 200;                                                                         \
    return *module = (void*)(size_t)++fake::modules, 0;                                                               \
  }                                                                                                                   \
  int cuModuleGetFunction(void** function, void*, const char* name) {                                                 \
    for (auto& one : fake_kernels)                                                                                    \
      if (!std::strcmp(one.name, name)) return *function = &one, 0;                                                   \
    return 500;                                                                                                       \
  }                                                                                                                   \
  int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,    \
                     unsigned shared_bytes, void* stream, void** parameters, void** extra) {                          \
    if (extra || !gx || !gy || !gz || !fake::context) return 1;                                                       \
    if ((size_t)stream == 700) return 700;                                                                            \
    auto* one = static_cast<fake::kernel*>(function);                                                                 \
    fake::last = {{}, {gx, gy, gz}, {bx, by, bz}, shared_bytes, stream};                                              \
    std::snprintf(fake::last.name, sizeof fake::last.name, "%s", one->name);                                          \
    ++fake::launches;                                                                                                 \
    gridDim = {gx, gy, gz}, blockDim = {bx, by, bz};                                                                  \
    for (blockIdx.z = 0; blockIdx.z < gz; ++blockIdx.z)                                                               \
      for (blockIdx.y = 0; blockIdx.y < gy; ++blockIdx.y)                                                             \
        for (blockIdx.x = 0; blockIdx.x < gx; ++blockIdx.x)                                                           \
          for (threadIdx.z = 0; threadIdx.z < bz; ++threadIdx.z)                                                      \
            for (threadIdx.y = 0; threadIdx.y < by; ++threadIdx.y)                                                    \
              for (threadIdx.x = 0; threadIdx.x < bx; ++threadIdx.x) one->call(parameters);                           \
    return 0;                                                                                                         \
  }                                                                                                                   \
  fake::launch* fake_last_launch() { return &fake::last; }                                                            \
  int fake_count(const char* what) {                                                                                  \
    const std::string name = what;                                                                                    \
    return name == "launches" ? fake::launches : name == "modules" ? fake::modules : fake::retained;                  \
  }                                                                                                                   \
  const char* fake_image() { return fake::image.c_str(); }                                                            \
  void fake_leave_context() { fake::context = nullptr; }                                                              \
  }
