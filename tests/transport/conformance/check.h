// The list of checks. Each proves promises of kvl/transport.h, numbered as there.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tests/transport/conformance/harness.h"

namespace kvl::conformance {

struct Check {
  std::string_view name;
  std::vector<int> promises;
  void (*run)(Harness&);  // throws Broken
};
inline constexpr int kPromises = 18;

std::vector<Check> batch_checks();
std::vector<Check> lifetime_checks();
std::vector<Check> note_checks();
std::vector<Check> peer_checks();
std::vector<Check> memory_checks();
std::vector<Check> all_checks();

// "" or what is broken.
std::string run_check(const Check& check, const Variant& variant, std::uint64_t seed);

// Every transport of the registry and "sim", each kind of device once, as plain variants in one
// thread.
std::vector<Variant> all_kinds();

// No check is for this kind, for a reason that not_applicable() has.
bool nothing_applies(const Variant& variant);
// "", or why this kind cannot run on this machine at all.
std::string missing_here(const Variant& variant);

// Where a check cannot apply, and why; "" where it does.
std::string not_applicable(const Check& check, const Variant& variant);

}  // namespace kvl::conformance
