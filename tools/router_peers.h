// Flags of sglang-router and vllm-router that are not ours: their command lines are taken as they
// are, and each of these flags is answered in a sentence.
#pragma once

#include <string>
#include <vector>

#include "tools/program.h"

namespace kvl::tools {

struct PeerFlags {
  std::vector<std::string> without_effect;  // sentences, to be told at the start
  std::string refused;                      // the first that asks for what is not here
};

// What was given is noted in `given`, which must outlive the parse; a flag that one of our settings
// stands for goes to `settings`.
void add_peer_flags(CLI::App& command, PeerFlags& given, SettingFlags& settings);

}  // namespace kvl::tools
