// Runs checks, and knows where one cannot apply.
#include "tests/transport/conformance/check.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "tests/support/log_guard.h"
#include "tests/transport/conformance/alloc_count.h"

namespace kvl::conformance {
namespace {

// Everything that is not tested somewhere stands here, with its reason. "*": every check.
struct Exception {
  std::string_view transport, check, reason;
};
constexpr std::string_view kNoHmem = "memory of a GPU is the NIC's to register (FI_HMEM)";
constexpr std::string_view kNoDmabuf = "memory of a GPU is the NIC's to register, by its dmabuf";
constexpr Exception kExceptions[] = {
    {"sim", "post_and_poll_do_not_allocate", "its packets and its wires live in this process"},
    {"sim", "arrivals_wake_sleepers", "virtual time: nobody sleeps, wait_fd() is -1"},
    {"sim", "idle_peer_death_is_noticed", "like an idle RC peer: the engine's heartbeat notices"},
    {"sim", "device_memory", "simulates a NIC of host memory"},
    {"sim", "registration_beside_polls", "one thread drives the whole world"},
    {"libfabric(tcp)", "device_memory", kNoHmem},
    {"libfabric(verbs)", "device_memory", kNoHmem},
    {"libfabric(shm)", "*", "refused by name: it loses completions and faults at close"},
    {"verbs", "device_memory", kNoDmabuf},
    {"verbs(fake)", "device_memory", kNoDmabuf},
    {"libfabric(given_library)", "device_memory", kNoHmem},
    {"libfabric(fake_efa)", "post_and_poll_do_not_allocate", "its packets live in this process"},
    {"ucx(tcp)", "device_memory", "memory of a GPU needs a UCX that was built for it"},
};

#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif

// Another libfabric than the system's, with its provider tcp: where the environment names one.
constexpr std::string_view kGivenLibrary = "given_library";
constexpr const char* kLibraryVariable = "KVL_TEST_LIBFABRIC";

// Kinds of device that a transport has only when it is asked for them.
struct Flavour {
  std::string_view transport, name, setting;
};
constexpr Flavour kFlavours[] = {
    {"libfabric", "tcp", "libfabric.providers"},
    {"libfabric", "shm", "libfabric.providers"},
    {"libfabric", "verbs", "libfabric.providers"},
    {"libfabric", kFakeEfa, ""},
    {"libfabric", kGivenLibrary, "libfabric.providers"},
    {"ucx", "tcp", "ucx.transports"},
};

}  // namespace

std::vector<Check> all_checks() {
  std::vector<Check> all;
  for (const auto part : {batch_checks, lifetime_checks, note_checks, peer_checks, memory_checks}) {
    for (Check& check : part()) all.push_back(std::move(check));
  }
  return all;
}

std::vector<Variant> all_kinds() {
  std::vector<Variant> all{{"sim"}};
  for (const auto& transport : make_transports(Settings{})) {
    Variant plain{std::string(transport->name())};
    bool flavours = false;
    for (const Flavour& flavour : kFlavours) {
      if (flavour.transport != plain.transport) continue;
      flavours = true;
      all.push_back(plain);
      all.back().flavour = flavour.name;
      if (flavour.setting.empty()) continue;
      if (flavour.name == kGivenLibrary) {
        const char* const file = std::getenv(kLibraryVariable);
        all.back().flags = {{std::string(flavour.setting), "tcp"},
                            {"libfabric.library", file == nullptr ? "" : file}};
        continue;
      }
      all.back().flags = {{std::string(flavour.setting), std::string(flavour.name)}};
    }
    if (!flavours) all.push_back(plain);
  }
  return all;
}

bool nothing_applies(const Variant& variant) {
  return std::any_of(std::begin(kExceptions), std::end(kExceptions), [&](const Exception& one) {
    return one.transport == variant.kind() && one.check == "*";
  });
}

std::string missing_here(const Variant& variant) {
  if (nothing_applies(variant)) return "";  // the table says why
  if (variant.transport == "sim" || variant.flavour == kFakeEfa) return "";
  if (variant.transport == "ucx" && kThreadSanitizer) {
    return "UCX's hooks of memory calls do not live with ThreadSanitizer";
  }
  if (variant.flavour == kGivenLibrary && std::getenv(kLibraryVariable) == nullptr) {
    return std::string(kLibraryVariable) + " names no other libfabric.so.1 to try";
  }
  const std::unique_ptr<Transport> transport = make_transport_of(variant);
  return transport->devices().empty() ? transport->why_unusable() : "";
}

std::string run_check(const Check& check, const Variant& variant, std::uint64_t seed) {
  // Links may say aloud that a peer died or sent nonsense: that is what is done to them here.
  const test::ExpectLog expected("");
  try {
    std::function<std::string()> violations;
    {
      Harness harness(variant, seed);
      violations = harness.violations();
      check.run(harness);
      harness.finish();
    }
    return violations();
  } catch (const Broken& broken) {
    return broken.why;
  }
}

std::string not_applicable(const Check& check, const Variant& variant) {
  if (variant.transport == "sim" && variant.mode != Mode::one_thread) {
    return "one thread drives the whole simulated world";
  }
  if (variant.flavour == kFakeEfa && variant.mode == Mode::processes) {
    return "the fake EFA lives in one process";
  }
  for (const Exception& exception : kExceptions) {
    if (exception.transport == variant.kind() &&
        (exception.check == check.name || exception.check == "*")) {
      return std::string(exception.reason);
    }
  }
  if (check.name == "post_and_poll_do_not_allocate" && !kCountsAllocations) {
    return "operator new belongs to the sanitizer in this build";
  }
  return "";
}

}  // namespace kvl::conformance
