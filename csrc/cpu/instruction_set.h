// Which instruction set the CPU kernels use. Every kernel.cpp is compiled once per set, in a namespace of that
// name; MICRON_X86 is defined by setup.py where the x86 sets are compiled.
#pragma once

#include <string>
#include <vector>

#ifdef MICRON_X86
#define MICRON_FOR_EACH_INSTRUCTION_SET(X) X(portable) X(avx2) X(avx512)
#else
#define MICRON_FOR_EACH_INSTRUCTION_SET(X) X(portable)
#endif
// What one instruction set has of an operator that goes forward and backward.
#define MICRON_DECLARE_BOTH_WAYS(set) \
  namespace set {                     \
  void forward(const Forward&);       \
  void backward(const Backward&);     \
  }

namespace micron {

enum class InstructionSet { portable, avx2, avx512, avx512_bf16 };

// The best one that was compiled, that this CPU has and that ATEN_CPU_CAPABILITY allows, unless
// set_instruction_set chose another.
InstructionSet instruction_set();
const char* name_of(InstructionSet set);
std::vector<std::string> supported_instruction_sets();
void set_instruction_set(const std::string& name);

}  // namespace micron

// Calls <instruction set>::function(arguments) of the enclosing namespace.
#ifdef MICRON_X86
#define MICRON_DISPATCH(function, arguments)         \
  switch (::micron::instruction_set()) {             \
    case ::micron::InstructionSet::avx512_bf16:      \
    case ::micron::InstructionSet::avx512:           \
      return avx512::function(arguments);            \
    case ::micron::InstructionSet::avx2:             \
      return avx2::function(arguments);              \
    case ::micron::InstructionSet::portable:         \
      return portable::function(arguments);          \
  }
#else
#define MICRON_DISPATCH(function, arguments) return portable::function(arguments)
#endif
