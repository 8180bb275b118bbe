// A small write, its note, and the note that answers it: there and back.
#pragma once

#include <string>

#include "tools/bench/row.h"

namespace kvl::bench {

// One row: the engine over `transport` with `progress`, beside TCP sockets and shared memory with a
// futex, all in turns.
Status measure_latency(const Bench& bench, std::string_view transport, std::string_view progress,
                       Row& row, std::string* error);
std::vector<Column> latency_columns();

}  // namespace kvl::bench
