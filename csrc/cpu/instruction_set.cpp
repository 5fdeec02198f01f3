#include "instruction_set.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace micron {
namespace {

constexpr InstructionSet ALL[] = {
    InstructionSet::portable, InstructionSet::avx2, InstructionSet::avx512, InstructionSet::avx512_bf16};

bool cpu_has(InstructionSet set) {
#ifdef MICRON_X86
  __builtin_cpu_init();
  switch (set) {
    case InstructionSet::portable:
      return true;
    case InstructionSet::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
             __builtin_cpu_supports("f16c");
    case InstructionSet::avx512:
      return cpu_has(InstructionSet::avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd");
    case InstructionSet::avx512_bf16:
      return cpu_has(InstructionSet::avx512) && __builtin_cpu_supports("avx512bf16");
  }
#endif
  return set == InstructionSet::portable;
}

// ATEN_CPU_CAPABILITY is the variable by which torch's own kernels are chosen.
InstructionSet allowed_by_environment() {
  const char* value = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string capability = value == nullptr ? "" : value;
  if (capability == "default") return InstructionSet::portable;
  if (capability == "avx2") return InstructionSet::avx2;
  return InstructionSet::avx512_bf16;
}

InstructionSet best() {
  InstructionSet result = InstructionSet::portable;
  for (InstructionSet set : ALL) {
    if (set <= allowed_by_environment() && cpu_has(set)) result = set;
  }
  return result;
}

std::atomic<InstructionSet>& current() {
  static std::atomic<InstructionSet> value{best()};
  return value;
}

}  // namespace

InstructionSet instruction_set() { return current().load(std::memory_order_relaxed); }

const char* name_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::portable:
      return "portable";
    case InstructionSet::avx2:
      return "avx2";
    case InstructionSet::avx512:
      return "avx512";
    case InstructionSet::avx512_bf16:
      return "avx512_bf16";
  }
  return "?";
}

std::vector<std::string> supported_instruction_sets() {
  std::vector<std::string> names;
  for (InstructionSet set : ALL) {
    if (cpu_has(set)) names.emplace_back(name_of(set));
  }
  return names;
}

void set_instruction_set(const std::string& name) {
  for (InstructionSet set : ALL) {
    if (name != name_of(set)) continue;
    if (!cpu_has(set)) throw std::invalid_argument("this CPU or this build does not have " + name);
    current().store(set, std::memory_order_relaxed);
    return;
  }
  throw std::invalid_argument("instruction set '" + name + "' is not one of portable, avx2, avx512, avx512_bf16");
}

}  // namespace micron
