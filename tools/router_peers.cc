#include "tools/router_peers.h"

#include <array>

namespace kvl::tools {
namespace {

// A flag whose absence changes what requests get is refused; one that tunes what works otherwise
// here has no effect.
enum class Answer : std::uint8_t { no_effect, refused };

struct Row {
  std::string_view name;
  bool value;  // it takes one
  Answer answer;
  std::string_view why;
};

constexpr std::string_view kCost = "policy cost weighs queue against prefix and needs no threshold";
constexpr std::string_view kCapacity =
    "the index is bounded by the workers' own capacity, or router.cache_tokens";
constexpr std::string_view kBreaker =
    "workers are judged by --health-failure-threshold failures in a row and by health checks";
constexpr std::string_view kBackoff = "another worker is asked at once";
constexpr std::string_view kDiscovery = "workers are added by POST /workers";
constexpr std::string_view kVllm = "vLLM's two-step transfers are not spoken here";
constexpr std::string_view kTokens = "requests are not tokenised here";

constexpr std::array kRows{
    Row{"cache-threshold", true, Answer::no_effect, kCost},
    Row{"balance-abs-threshold", true, Answer::no_effect, kCost},
    Row{"balance-rel-threshold", true, Answer::no_effect, kCost},
    Row{"eviction-interval-secs", true, Answer::no_effect, kCapacity},
    Row{"eviction-interval", true, Answer::no_effect, kCapacity},
    Row{"max-tree-size", true, Answer::no_effect, kCapacity},
    Row{"bucket-adjust-interval-secs", true, Answer::no_effect,
        "boundaries are made anew every 64 prompts"},
    Row{"assignment-mode", true, Answer::no_effect,
        "policy manual gives a new session to the worker with the fewest requests"},
    Row{"retry-initial-backoff-ms", true, Answer::no_effect, kBackoff},
    Row{"retry-max-backoff-ms", true, Answer::no_effect, kBackoff},
    Row{"retry-backoff-multiplier", true, Answer::no_effect, kBackoff},
    Row{"retry-jitter-factor", true, Answer::no_effect, kBackoff},
    Row{"cb-failure-threshold", true, Answer::no_effect, kBreaker},
    Row{"cb-success-threshold", true, Answer::no_effect, kBreaker},
    Row{"cb-timeout-duration-secs", true, Answer::no_effect, kBreaker},
    Row{"cb-window-duration-secs", true, Answer::no_effect, kBreaker},
    Row{"disable-circuit-breaker", false, Answer::no_effect, kBreaker},
    Row{"worker-startup-timeout-secs", true, Answer::no_effect,
        "the router serves at once, and a worker as soon as it answers"},
    Row{"worker-startup-check-interval", true, Answer::no_effect,
        "see --health-check-interval-secs"},
    Row{"prometheus-host", true, Answer::no_effect, "metrics are served on --host"},
    Row{"log-level", true, Answer::no_effect, "see kvlane --log"},
    Row{"log-dir", true, Answer::no_effect, "logs go to standard error"},
    Row{"request-id-headers", true, Answer::no_effect, "headers reach the workers as they are"},
    Row{"model-path", true, Answer::no_effect, kTokens},
    Row{"tokenizer-path", true, Answer::no_effect, kTokens},
    Row{"api-key", true, Answer::refused,
        "everybody can see a command line: put the key into a file, --api-key-file"},
    Row{"max-concurrent-requests", true, Answer::refused,
        "see --max-connections and --max-requests-per-second-per-address"},
    Row{"rate-limit-tokens-per-second", true, Answer::refused,
        "see --max-requests-per-second-per-address"},
    Row{"service-discovery", false, Answer::refused, kDiscovery},
    Row{"selector", true, Answer::refused, kDiscovery},
    Row{"prefill-selector", true, Answer::refused, kDiscovery},
    Row{"decode-selector", true, Answer::refused, kDiscovery},
    Row{"enable-igw", false, Answer::refused, "one router serves one model"},
    Row{"dp-aware", false, Answer::refused, "data-parallel ranks are the workers' own choice"},
    Row{"vllm-pd-disaggregation", false, Answer::refused, kVllm},
    Row{"vllm-discovery-address", true, Answer::refused, kVllm},
    Row{"kv-connector", true, Answer::refused, kVllm},
};

}  // namespace

void add_peer_flags(CLI::App& command, PeerFlags& given, SettingFlags& settings) {
  constexpr const char* kGroup = "Taken from command lines of sglang-router and vllm-router";
  for (const Row& row : kRows) {
    const std::string name = "--" + std::string(row.name);
    const std::string sentence =
        name + (row.answer == Answer::refused ? " is not here: " : " has no effect: ") +
        std::string(row.why);
    const auto note = [&given, &row, sentence] {
      if (row.answer == Answer::no_effect) {
        given.without_effect.push_back(sentence);
      } else if (given.refused.empty()) {
        given.refused = sentence;
      }
    };
    const std::string help =
        (row.answer == Answer::refused ? "refused: " : "no effect: ") + std::string(row.why);
    CLI::Option* option = nullptr;
    if (row.value) {
      option = command.add_option_function<std::vector<std::string>>(
          name, [note](const std::vector<std::string>&) { note(); }, help);
      option->type_name("VALUE");
    } else {
      option = command.add_flag_callback(name, note, help);
    }
    option->group(kGroup);
  }
  command
      .add_flag_callback(
          "--disable-retries",
          [&settings] { settings.emplace_back("router.retry_max_retries", "0"); },
          "--retry-max-retries 0")
      ->group(kGroup);
}

}  // namespace kvl::tools
