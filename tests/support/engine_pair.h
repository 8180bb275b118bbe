// Engines for tests: settings in one line, waiting for an event with a deadline.
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kvl/engine.h"

namespace kvl::test {

using Flags = std::vector<std::pair<std::string, std::string>>;

// Settings of the engine and every transport, listening on loopback, environment ignored.
inline Settings engine_test_settings(Flags flags = {}) {
  std::vector<Setting> rows = engine_settings();
  for (Setting& row : transport_settings()) rows.push_back(std::move(row));
  Flags all{{"listen", "127.0.0.1:0"}};
  all.insert(all.end(), flags.begin(), flags.end());
  std::string error;
  auto settings =
      Settings::load(std::move(rows), {.environment = false, .flags = std::move(all)}, &error);
  EXPECT_TRUE(settings.ok()) << error;
  return std::move(settings).value();
}

// An engine with the events it has shown so far. Every wait ends after 10 s with a failure.
class TestEngine {
 public:
  explicit TestEngine(Flags flags = {}) {
    std::string error;
    auto opened = Engine::open(engine_test_settings(std::move(flags)), &error);
    EXPECT_TRUE(opened.ok()) << opened.status().to_string() << " " << error;
    if (opened) engine_ = std::move(*opened);
  }
  Engine* operator->() { return engine_.get(); }
  Engine& get() { return *engine_; }
  void close() { engine_.reset(); }
  explicit operator bool() const { return engine_ != nullptr; }

  // Takes what is there; true when anything came.
  bool pump() {
    EngineEvent taken[16];
    const std::size_t count = engine_->poll(taken);
    for (std::size_t i = 0; i < count; ++i) events_.push_back(std::move(taken[i]));
    return count > 0;
  }
  // The first event that `wanted` accepts, removed from the list. `others` are driven meanwhile
  // (needed with progress = caller).
  EngineEvent wait(const std::function<bool(const EngineEvent&)>& wanted,
                   const std::vector<TestEngine*>& others = {}) {
    const SteadyClock clock;
    const std::int64_t end_ns = clock.now_ns() + 10'000'000'000;
    while (true) {
      for (auto event = events_.begin(); event != events_.end(); ++event) {
        if (!wanted(*event)) continue;
        EngineEvent found = std::move(*event);
        events_.erase(event);
        return found;
      }
      if (clock.now_ns() > end_ns) break;
      bool moved = pump();
      for (TestEngine* other : others) moved |= other->pump();
      if (!moved) engine_->wait(others.empty() ? 50 : 1);
    }
    ADD_FAILURE() << "the awaited event did not come within 10 s; " << events_.size()
                  << " other events are there";
    return {};
  }
  EngineEvent wait(EngineEvent::Kind kind, const std::vector<TestEngine*>& others = {}) {
    return wait([kind](const EngineEvent& event) { return event.kind == kind; }, others);
  }
  bool has(EngineEvent::Kind kind) const {
    for (const EngineEvent& event : events_) {
      if (event.kind == kind) return true;
    }
    return false;
  }

 private:
  std::unique_ptr<Engine> engine_;
  std::deque<EngineEvent> events_;
};

}  // namespace kvl::test
