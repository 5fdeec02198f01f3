// The native operators, and what was built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include "cpu/common.h"
#include "cpu/instruction_set.h"
#include "schemas.h"

STABLE_TORCH_LIBRARY_FRAGMENT(micron_native, m) { micron::define_operators(m); }

#ifndef MICRON_BUILD_FLAGS
#define MICRON_BUILD_FLAGS "unknown"
#endif
#ifndef MICRON_TORCH_VERSION
#define MICRON_TORCH_VERSION "unknown"
#endif
#ifndef MICRON_CUDA_ARCHITECTURES
#define MICRON_CUDA_ARCHITECTURES ""
#endif
#ifndef MICRON_NO_CUDA_REASON
#define MICRON_NO_CUDA_REASON "not built"
#endif

extern "C" const char* const micron_sources;  // setup.py writes it

PYBIND11_MODULE(_native, m) {
  m.attr("compiler") = __VERSION__;
  m.attr("flags") = MICRON_BUILD_FLAGS;
  m.attr("torch") = MICRON_TORCH_VERSION;
  m.attr("cuda_architectures") = MICRON_CUDA_ARCHITECTURES;
  m.attr("no_cuda_reason") = MICRON_NO_CUDA_REASON;
  m.attr("sources") = micron_sources;
  m.def("instruction_set", [] { return micron::name_of(micron::instruction_set()); },
        "The instruction set in use.");
  m.def("supported_instruction_sets", &micron::supported_instruction_sets,
        "Those that were compiled and that this CPU has, slowest first.");
  m.def("take_scratch_peak", &micron::take_scratch_peak,
        "The most bytes of scratch that kernels held at a time since the last call.");
  m.def("set_instruction_set", &micron::set_instruction_set, "Use another of them from now on: for tests.");
}
