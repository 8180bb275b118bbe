// Memory on both sides of a session, the runs between them, and the check of every byte.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "tools/bench/arena.h"
#include "tools/bench/pattern.h"
#include "tools/bench/session.h"
#include "tools/bench/workload.h"

namespace kvl::bench {

// Owned by the session's thread; outlived by the session. Failures leave a sentence in
// Session::error().
class TestBed {
 public:
  static Result<std::unique_ptr<TestBed>> open(Session& session, const WorkloadSpec& spec,
                                               bool foreign);
  // Frees both sides; what cannot be freed now goes with the session.
  ~TestBed();
  TestBed(const TestBed&) = delete;
  TestBed& operator=(const TestBed&) = delete;

  Session& session() { return session_; }
  const Workload& workload() const { return workload_; }
  std::span<std::byte> local() { return arena_->bytes(); }
  std::uint64_t remote_base() const { return remote_base_; }  // 0: not told
  double register_ms() const { return register_ms_; }         // the slower side

  // Starts transfer number `index` of the workload's rotation.
  Status start(Direction direction, std::size_t index, std::uint64_t user, bool with_note);
  // Writes the first page and shows the target a note that it answers.
  Status ping(std::size_t index);

  // Writes a different pattern over each arena.
  Status fill();
  // Breaks one byte of what a transfer has put into the destination.
  Status flip(Direction direction);
  // Both arenas, guards included, against what the first `transfers` transfers should have done
  // since fill().
  Result<CheckResult> verify(Direction direction, std::size_t transfers);

 private:
  TestBed(Session& session, const WorkloadSpec& spec) : session_(session), workload_(spec) {}
  Status open_sides(bool foreign);

  Session& session_;
  const Workload workload_;
  std::unique_ptr<Arena> arena_;
  std::array<MemoryHandle, 1> locals_;
  std::array<MemoryHandle, 1> remotes_;
  bool registered_ = false, remote_open_ = false;
  std::uint64_t remote_base_ = 0;
  double register_ms_ = 0;
};

}  // namespace kvl::bench
