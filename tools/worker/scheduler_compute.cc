// What is computed next: one job at a time, made of the output tokens of every decoding request and
// a chunk of those that prefill; with --kv-only a chunk of one request.
#include <algorithm>
#include <cstring>

#include "worker/kv_only.h"
#include "worker/metadata.h"
#include "worker/scheduler.h"
#include "worker/tokenizer.h"

namespace kvl::worker {

void Scheduler::start_job() {
  if (job_ != nullptr || rank_lost_) return;
  job_ = std::make_unique<Job>();
  ComputeJob job;
  job.id = job_->id = next_job_++;
  if (!(options_.kv_only ? compose_kv(job) : compose_forward(job))) {
    job_.reset();
    return;
  }
  job_->kind = job.kind;
  job_->ranks_left = ranks_;
  for (Job::Part& part : job_->parts) {
    part.sequence->in_job = true;
    if (part.logits) job_->logits.emplace_back(options_.model.vocab);
  }
  send(std::move(job));
}

bool Scheduler::compose_forward(ComputeJob& job) {
  std::uint32_t budget = options_.chunk_tokens;
  for (const SequencePtr& sequence : sequences_) {
    Segment segment;
    segment.position = sequence->computed;
    if (sequence->state == State::decoding) {
      segment.tokens = {sequence->output.back().token};
      segment.logits = true;
    } else if (sequence->state == State::prefilling && budget > 0) {
      const std::uint32_t end = std::min(sequence->prompt_tokens, sequence->computed + budget);
      const auto& tokens = sequence->request.tokens;
      segment.tokens.assign(tokens.begin() + sequence->computed, tokens.begin() + end);
      segment.logits = end == sequence->prompt_tokens;
      segment.handoff = sequence->way == Way::prefill;
      if (segment.handoff) segment.room = sequence->request.session->room;
      budget -= end - sequence->computed;
    } else {
      continue;
    }
    const auto count = static_cast<std::uint32_t>(segment.tokens.size());
    segment.pages = sequence->hold.pages;
    job_->parts.push_back({sequence, count, segment.logits});
    job.batch.push_back(std::move(segment));
  }
  return !job.batch.empty();
}

bool Scheduler::compose_kv(ComputeJob& job) {
  const std::uint64_t token_bytes = options_.model.kv.bytes_per_token();
  const auto chunk = static_cast<std::uint32_t>(
      std::max<std::uint64_t>(options_.page_tokens, options_.chunk_bytes / token_bytes));
  for (const SequencePtr& sequence : sequences_) {
    const bool fills = sequence->state == State::prefilling;
    if (!fills && sequence->state != State::verifying) continue;
    job.kind = fills ? ComputeJob::Kind::fill : ComputeJob::Kind::verify;
    job.kv.content = *sequence->request.content;
    job.kv.pages = sequence->hold.pages;
    job.kv.first_token = sequence->computed;
    job.kv.end_token = std::min(sequence->prompt_tokens, sequence->computed + chunk);
    job.kv.handoff = fills && sequence->way == Way::prefill;
    if (job.kv.handoff) job.kv.room = sequence->request.session->room;
    job_->parts.push_back({sequence, job.kv.end_token - job.kv.first_token, false});
    return true;
  }
  return false;
}

void Scheduler::on_output(const RankOutput& output) {
  if (job_ == nullptr || output.job != job_->id) return;
  if (job_->code == Code::ok) job_->code = output.code;
  for (std::size_t i = 0; i < output.logits.size() && i < job_->logits.size(); ++i) {
    const std::vector<float>& columns = output.logits[i];
    if (output.vocab_first + columns.size() > job_->logits[i].size()) continue;
    std::copy(columns.begin(), columns.end(), job_->logits[i].begin() + output.vocab_first);
  }
  std::vector<std::uint32_t> wrong;
  std::set_union(job_->wrong_pages.begin(), job_->wrong_pages.end(), output.wrong_pages.begin(),
                 output.wrong_pages.end(), std::back_inserter(wrong));
  job_->wrong_pages = std::move(wrong);
  if (--job_->ranks_left > 0) return;
  const std::unique_ptr<Job> job = std::move(job_);
  finish_job(*job);
}

void Scheduler::finish_job(Job& job) {
  std::size_t row = 0;
  for (Job::Part& part : job.parts) {
    const SequencePtr& sequence = part.sequence;
    sequence->in_job = false;
    const std::vector<float>* const logits = part.logits ? &job.logits[row++] : nullptr;
    if (sequence->state == State::ending) {
      settle_end(sequence);
      continue;
    }
    if (job.code != Code::ok) {
      fail(sequence, {job.code, "a rank could not compute the batch"});
      continue;
    }
    sequence->computed += part.tokens;
    if (job.kind == ComputeJob::Kind::verify) {
      sequence->figures.pages_wrong += static_cast<std::uint32_t>(job.wrong_pages.size());
      if (sequence->computed == sequence->prompt_tokens) finish_verify(sequence);
      continue;
    }
    OutputToken token;
    const auto index = static_cast<std::uint32_t>(sequence->output.size());
    if (logits != nullptr) {
      const Sampled sampled = sample(*logits, sequence->request.sampling, index);
      token = {sampled.token, sampled.logprob, digest(*logits)};
    } else if (job.kind == ComputeJob::Kind::fill) {
      token = {pseudo_token(*sequence->request.content, 0), 0.0F, 0};
    }
    if (sequence->state == State::decoding) {
      advance(sequence, token);
    } else if (sequence->computed == sequence->prompt_tokens) {
      finish_prefill(sequence, token);
    }
  }
}

// The whole prompt's KV is in place and `token` is the first of the output.
void Scheduler::finish_prefill(const SequencePtr& sequence, const OutputToken& token) {
  cache_.publish(sequence->hold, sequence->chain);
  mark(*sequence, Stage::prefill_done);
  if (sequence->way == Way::prefill) {
    sequence->state = State::transferring;
    sequence->output = {token};
    send(FinishPrefill{sequence->request.session->room, encode_metadata(token)});
    if (sequence->ranks_open == 0 && !sequence->room_failed) on_room_committed(sequence);
    return;
  }
  sequence->state = options_.kv_only ? State::verifying : State::decoding;
  if (options_.kv_only) sequence->computed = 0;
  advance(sequence, token);
}

void Scheduler::advance(const SequencePtr& sequence, const OutputToken& token) {
  const SamplingParams& sampling = sequence->request.sampling;
  sequence->output.push_back(token);
  if (sequence->output.size() == 1) mark(*sequence, Stage::first_token);
  emit(*sequence, {token});
  if (sequence->state == State::verifying) return;
  const bool stopped = token.token == kEos && !sampling.ignore_eos;
  if (stopped || sequence->output.size() >= sampling.max_new_tokens) succeed(sequence, stopped);
}

// Every byte has been compared: now the rest of the output, which nothing is computed for.
void Scheduler::finish_verify(const SequencePtr& sequence) {
  const auto pages = static_cast<std::uint32_t>(sequence->hold.pages.size());
  sequence->figures.pages_verified = pages;
  sequence->figures.pages_wrong = std::min(pages, sequence->figures.pages_wrong);
  figures_.pages_verified += pages;
  figures_.pages_wrong += sequence->figures.pages_wrong;
  std::vector<OutputToken> rest;
  for (std::uint32_t i = 1; i < sequence->request.sampling.max_new_tokens; ++i) {
    rest.push_back({pseudo_token(*sequence->request.content, i), 0.0F, 0});
  }
  if (!rest.empty()) emit(*sequence, std::move(rest));
  if (sequence->figures.pages_wrong > 0) {
    return fail(sequence, {Code::corrupt, "pages arrived with wrong bytes"});
  }
  succeed(sequence, false);
}

}  // namespace kvl::worker
