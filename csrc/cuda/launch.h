// What every cuda.cu uses to reach its GPU. With MICRON_EMULATED the same sources are compiled by the C++ compiler
// and run thread by thread on a CPU: tests/kernels/emulator.
#pragma once

#ifdef MICRON_EMULATED
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include "emulator.h"
#else
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#endif

#include "../tensor.h"

#ifdef MICRON_EMULATED
#define MICRON_CUDA_OPERATORS(m) STABLE_TORCH_LIBRARY_IMPL(micron_emulated, CPU, m)
#else
#define MICRON_CUDA_OPERATORS(m) STABLE_TORCH_LIBRARY_IMPL(micron_native, CUDA, m)
#define MICRON_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#endif

namespace micron::cuda {

#ifdef MICRON_EMULATED

using emulator::ask_for_shared_memory;

#else

inline void check(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

inline void ask_for_shared_memory(const void* kernel, size_t bytes) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "this GPU has too little shared memory");
}

// A function of torch's CUDA library. It is looked up where torch has loaded that: naming it would make this extension
// need libtorch_cuda, and unloadable beside a torch for CPUs.
template <class Function>
Function of_torch(const char* name) {
  void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  void* function = library == nullptr ? nullptr : dlsym(library, name);
  STD_TORCH_CHECK(function != nullptr, name, ": not found; torch has not loaded its CUDA library, or has no such");
  return reinterpret_cast<Function>(function);
}

// torch's current stream.
inline cudaStream_t current_stream(int32_t device) {
  static const auto get = of_torch<AOTITorchError (*)(int32_t, void**)>("aoti_torch_get_current_cuda_stream");
  void* stream = nullptr;
  STD_TORCH_CHECK(get(device, &stream) == 0, "torch has no current stream for CUDA device ", device);
  return static_cast<cudaStream_t>(stream);
}

#endif

// The device of a tensor, made current as long as this lives, and torch's stream there.
class Device {
 public:
#ifdef MICRON_EMULATED
  explicit Device(const Tensor&) {}
  int multiprocessors() const { return 3; }
#else
  explicit Device(const Tensor& x) : guard_(x.get_device_index()), stream_(current_stream(x.get_device_index())) {}

  int multiprocessors() const {
    int device = 0, count = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    return count;
  }
#endif

  template <class... Parameters, class... Arguments>
  void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
              const Arguments&... arguments) const {
    constexpr size_t WITHOUT_ASKING = 48 * 1024, MOST_STATIC = 8 * 1024;  // a block's, of both kinds together
    if (shared > WITHOUT_ASKING - MOST_STATIC) ask_for_shared_memory(reinterpret_cast<const void*>(kernel), shared);
#ifdef MICRON_EMULATED
    emulator::launch(grid, block, shared, MOST_STATIC, reinterpret_cast<const void*>(kernel),
                     [&] { kernel(arguments...); });
#else
    kernel<<<grid, block, shared, stream_>>>(arguments...);
    check(cudaGetLastError(), "launch");
#endif
  }

  // result = factor · a b for each of the matrices, by torch.
  void batched_product(const Tensor& result, const Tensor& a, const Tensor& b, double factor) const {
#ifdef MICRON_EMULATED
    const auto multiply = aoti_torch_cpu_baddbmm_out;
#else
    using Multiply = AOTITorchError (*)(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, double,
                                        double);
    static const auto multiply = of_torch<Multiply>("aoti_torch_cuda_baddbmm_out");
#endif
    const double keep_nothing = 0;
    TORCH_ERROR_CODE_CHECK(multiply(result.get(), result.get(), a.get(), b.get(), keep_nothing, factor));
  }

#ifndef MICRON_EMULATED
 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
#endif
};

}  // namespace micron::cuda
