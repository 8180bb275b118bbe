// The suite has teeth: each mutant is found out by the check that stands for its promise.
#include "tests/transport/conformance/mutants.h"

#include <gtest/gtest.h>

#include <ostream>
#include <string>

#include "tests/transport/conformance/check.h"

namespace kvl::conformance {
namespace {

struct Case {
  Mutation mutation;
  std::string_view check;
};

void PrintTo(const Case& c, std::ostream* out) { *out << name_of(c.mutation); }

std::string verdict(Mutation mutation, std::string_view name) {
  Variant variant;
  variant.transport = "sim";
  variant.mutate = [mutation](std::unique_ptr<Link> link, const Clock&) {
    return make_mutant(mutation, std::move(link));
  };
  for (const Check& check : all_checks()) {
    if (check.name == name) return run_check(check, variant, 1);
  }
  return "";
}

class Mutants : public testing::TestWithParam<Case> {};

TEST_P(Mutants, IsFoundOut) {
  const Case& c = GetParam();
  EXPECT_EQ(verdict(Mutation::none, c.check), "") << "the check condemns an honest Link";
  const std::string why = verdict(c.mutation, c.check);
  EXPECT_NE(why, "") << c.check << " lets the mutant " << name_of(c.mutation) << " live";
  RecordProperty("verdict", why);
}

INSTANTIATE_TEST_SUITE_P(
    All, Mutants,
    testing::Values(Case{Mutation::event_twice, "each_batch_ends_once"},
                    Case{Mutation::event_lost, "each_batch_ends_once"},
                    Case{Mutation::event_early, "event_means_in_place"},
                    Case{Mutation::byte_too_many, "bytes_are_right"},
                    Case{Mutation::cuts_ignored, "bytes_are_right"},
                    Case{Mutation::note_early, "notes_come_after_bytes"},
                    Case{Mutation::note_twice, "notes_carry_their_bytes"},
                    Case{Mutation::note_lost, "notes_carry_their_bytes"},
                    Case{Mutation::stale_peer_taken, "stale_ids_are_refused"},
                    Case{Mutation::refused_but_done, "refused_batches_have_no_effect"},
                    Case{Mutation::exhausted_for_ever, "exhausted_clears"},
                    Case{Mutation::early_posts_lost, "batches_before_peer_up_are_kept"},
                    Case{Mutation::token_ignored, "token_is_respected"},
                    Case{Mutation::access_ignored, "target_checks_every_run"},
                    Case{Mutation::cancel_is_too_quick, "cancel_in_flight"},
                    Case{Mutation::close_is_a_pretence, "fence_holds"},
                    Case{Mutation::peer_down_lost, "links_meet_again"},
                    Case{Mutation::poll_without_bound, "poll_is_bounded"}),
    [](const testing::TestParamInfo<Case>& param) {
      return std::string(name_of(param.param.mutation));
    });

}  // namespace
}  // namespace kvl::conformance
