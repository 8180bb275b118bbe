// One row of results: two processes, one workload, all its phases and its baselines.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "bench/support/output.h"
#include "bench/support/raw_socket.h"
#include "tools/bench/bench_options.h"
#include "tools/bench/child_process.h"
#include "tools/bench/contender.h"
#include "tools/bench/session.h"

namespace kvl::bench {

using Flags = std::vector<std::pair<std::string, std::string>>;

// The serving process of one row or mode, and the session with it. The child goes last.
struct Pair {
  std::unique_ptr<ChildProcess> child;
  std::unique_ptr<Session> session;
  double spawn_ms = 0;  // fork to its first line
};

// How `kvlane bench` reads all settings from file, environment and flags.
using LoadSettings = std::function<Result<Settings>(const Flags&)>;

// What every mode needs.
struct Bench {
  BenchOptions options;
  LoadSettings settings;
  std::function<void(const std::string&)> progress;  // one short line for a person who waits

  // Flags of both engines for a transport as the user wrote it. Fails with a sentence.
  Result<Flags> engine_flags(std::string_view transport, std::string* error) const;
  // The same for a measured load: one thread a side unless the user said --progress=thread, as the
  // baselines have it.
  Result<Flags> load_flags(std::string_view transport, std::string* error) const;
  // Starts the serving process and connects to it.
  Result<Pair> start_pair(const Flags& flags, std::string* error) const;
};

// Which raw-socket baseline is the equal of an engine with these settings.
RawSocketOptions raw_options_for(const Settings& settings);

// Measures one row. The Row is filled as far as it came. `error` gets a sentence on failure;
// wrong bytes are no failure: see the row's wrong_bytes.
Status measure_row(const Bench& bench, const WorkloadSpec& spec, Direction direction, Row& row,
                   std::string* error);

// The same on a session that exists: fills everything that one bed can tell.
Status measure_bed(const Bench& bench, TestBed& bed, const Settings& settings, Direction direction,
                   Row& row);

// Moves and checks outside of any timed part. All transfers, or at most 64 MiB of them when
// `all` is false. Sets wrong_bytes; what was wrong goes to `detail`.
Status verify_bed(TestBed& bed, Direction direction, bool all, bool flip,
                  std::uint64_t& wrong_bytes, std::string& detail);

// Columns of the text table of rows.
std::vector<Column> row_columns();

}  // namespace kvl::bench
