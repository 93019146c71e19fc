// Which instruction sets this machine has, and which of them the kernels use.
#include <atomic>
#include <string>

#include "cpu/kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace llmc {
namespace {

#if defined(__x86_64__)
// A bit of the features that cpuid names in leaf 7: register b, c, d of subleaf 0, a of subleaf 1.
bool HasLeaf7(int subleaf, char name, int bit) {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, subleaf, &a, &b, &c, &d)) return false;
  unsigned value = name == 'a' ? a : name == 'b' ? b : name == 'c' ? c : d;
  return value >> bit & 1;
}

bool HasAvx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool HasAvx512Bf16() { return HasAvx512() && HasLeaf7(1, 'a', 5); }
// On Intel's with AMX, asked for or withheld, products by pairs take 1.5 to 2 times as long as those
// of floats (benchmarks/results/cpu_ops.md).
bool HasFastBf16() {
  return HasAvx512Bf16() && (!__builtin_cpu_is("intel") || __builtin_cpu_is("cooperlake"));
}

// Linux hands out the tile registers on request, once for a process.
bool HasAmx() {
#if defined(LLMC_EMULATED_ISAS)
  return HasAvx512();
#elif defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return HasAvx512Bf16() && HasLeaf7(0, 'd', 22) && HasLeaf7(0, 'd', 24) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

struct Isa {
  const char* name;
  const Kernels* kernels;  // null where the machine lacks it
};

// Best first. avx512 has bfloat16 products where these are faster than those of floats.
struct Isas {
  Isa all[4] = {{"amx", nullptr},
                {"avx512", nullptr},
                {"avx2", nullptr},
                {"portable", &kPortableKernels}};

  Isas() {
#if defined(__x86_64__)
    if (HasAmx()) all[0].kernels = &kAmxKernels;
    if (HasAvx512()) all[1].kernels = HasFastBf16() ? &kAvx512Bf16Kernels : &kAvx512Kernels;
    if (HasAvx2()) all[2].kernels = &kAvx2Kernels;
#endif
  }

  const Isa* Find(const std::string& name) const {
    for (const Isa& isa : all)
      if (isa.kernels && (name == "auto" || name == isa.name)) return &isa;
    return nullptr;
  }
};

const Isas& AllIsas() {
  static const Isas isas;
  return isas;
}

std::atomic<const Isa*>& Active() {
  static std::atomic<const Isa*> active{AllIsas().Find("auto")};
  return active;
}

}  // namespace

const Kernels& ActiveKernels() { return *Active().load()->kernels; }

}  // namespace llmc

// Uses the instruction set `name` (auto: the best one) from now on; 1, or 0 where it is not there.
extern "C" int llmc_select_isa(const char* name) {
  const llmc::Isa* isa = llmc::AllIsas().Find(name);
  if (isa) llmc::Active() = isa;
  return isa != nullptr;
}

// The name of the instruction set in use.
extern "C" const char* llmc_active_isa() { return llmc::Active().load()->name; }

// The names of those the machine has, best first, separated by commas.
extern "C" const char* llmc_supported_isas() {
  static const std::string names = [] {
    std::string text;
    for (const llmc::Isa& isa : llmc::AllIsas().all)
      if (isa.kernels) text += (text.empty() ? "" : ",") + std::string(isa.name);
    return text;
  }();
  return names.c_str();
}
