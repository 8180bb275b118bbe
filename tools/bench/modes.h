// What `kvlane bench` can do, one function per mode. Each prints its results on standard output,
// the reason of a failure on standard error, and returns the exit status: 0 done, 1 it failed or a
// byte was wrong.
#pragma once

#include "tools/bench/row.h"

namespace kvl::bench {

int run_rows(const Bench& bench);
int run_latency(const Bench& bench);
int run_figures(const Bench& bench);
int run_scaling(const Bench& bench);
// Answers benches until Ctrl-C. `child`: for one peer, of this program.
int run_serve(const Bench& bench, bool child);
int run_serve_fleet(const Bench& bench);
int run_compare(const Bench& bench);

// "kvlane bench: <sentence>" on standard error; nothing for an empty one.
int fail(const std::string& sentence);

}  // namespace kvl::bench
