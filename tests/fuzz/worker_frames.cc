// Frames between a worker and its rank processes: however a stream is cut, the frames are the same.
#include <sys/socket.h>

#include "tests/fuzz/fuzz.h"
#include "tools/worker/frames.h"
#include "transport/base/unique_fd.h"

namespace kvl::fuzz {
namespace {

struct Outcome {
  std::vector<std::pair<worker::Channel, std::vector<std::byte>>> frames;
  bool good = true;
};

Outcome read_stream(Bytes stream, std::size_t step) {
  int fds[2];
  require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0, "a socket pair");
  const UniqueFd writer(fds[0]), reader(fds[1]);
  worker::FrameReader frames;
  Outcome outcome;
  while (!stream.empty() && outcome.good) {
    const Bytes part = stream.first(std::min(step, stream.size()));
    require(worker::write_all(writer.get(), part), "the socket takes a part");
    stream = stream.subspan(part.size());
    outcome.good =
        frames.read(reader.get(), [&](worker::Channel channel, std::span<const std::byte> body) {
          outcome.frames.emplace_back(channel, std::vector(body.begin(), body.end()));
        });
  }
  return outcome;
}

}  // namespace

void fuzz_worker_frames(Bytes input) {
  if (input.empty() || input.size() > 32768) return;
  const Bytes stream = input.subspan(1);
  // A read takes a large buffer, so only so many of them.
  const std::size_t step = std::max(std::to_integer<std::size_t>(input[0]) + 1, stream.size() / 16);
  const Outcome whole = read_stream(stream, stream.size() + 1);
  const Outcome cut = read_stream(stream, step);
  require(whole.good == cut.good && whole.frames == cut.frames, "frames do not depend on reads");
  std::size_t bytes = 0;
  for (const auto& [channel, body] : whole.frames) {
    const auto again = worker::frame(channel, body);
    require(std::equal(again.begin(), again.end(), stream.begin() + static_cast<long>(bytes)),
            "a frame encodes to itself");
    bytes += again.size();
  }
}

Seeds seeds_worker_frames() {
  using worker::Channel;
  const std::byte step{3};
  const auto a = worker::frame(Channel::command, seed("abc"));
  const auto b = worker::frame(Channel::gathered, seed(std::string(300, 'x')));
  const auto c = worker::frame(Channel::event, {});
  return {join({{&step, 1}, a, b, c}), join({{&step, 1}, b, Bytes(a).first(6)})};
}

}  // namespace kvl::fuzz
