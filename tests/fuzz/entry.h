// How a program runs a target: choose one, then give it inputs, as libFuzzer does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "tests/fuzz/fuzz.h"

namespace kvl::fuzz {

// Ends the program with a list of what there is when there is no such target.
void choose(std::string_view name);

}  // namespace kvl::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
