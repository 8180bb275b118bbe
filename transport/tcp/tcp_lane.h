// A lane: one connection to a peer, and the frames that travel on it in both directions.
//
// Sending and receiving do not wait for each other. A lane holds buffers only while a frame is
// under way. Any failed Status from service() is the end of the lane; the Link cleans up.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "transport/base/unique_fd.h"
#include "transport/tcp/tcp_core.h"

namespace kvl::tcp {

// A bounce buffer under way between a socket and memory that a socket may not touch.
struct Stage {
  Bounce* bounce = nullptr;
  std::uint64_t bytes = 0;   // in it
  std::uint64_t copied = 0;  // receiving: already on their way out of it
  CopyTicket ticket;
  bool copying = false;
  bool sealed = false;                        // receiving: full, or the frame is over
  std::uint32_t first_run = 0, last_run = 0;  // pinned by the copy

  bool idle() const { return bytes == 0 && !copying; }
  void reset() {
    bytes = copied = 0;
    copying = sealed = false;
  }
};

class Lane {
 public:
  enum class Phase : std::uint8_t {
    dialing,   // connect() under way
    greeting,  // dialed: hello sent, welcome awaited. accepted: hello awaited
    parked,    // accepted, hello is right, but the peer's offer has not been accepted here yet
    open,
    closed,  // the socket is gone; copies to or from memory may still be under way
  };

  Lane(LinkCore& core, UniqueFd fd, std::uint64_t id);
  ~Lane();
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  // Sends and receives about `bytes_max` each way. The owner calls it while wants_service().
  Status service(std::uint64_t bytes_max);
  bool wants_service() const;
  // Edges: each stays in force until the socket says that it would block. After a hang-up the end
  // of the stream may lie right behind the data, without an edge of its own.
  void on_ready(bool readable, bool writable, bool hung_up) {
    if (readable || hung_up) rx_ready_ = true;
    if (writable) tx_blocked_ = false;
    rx_hung_up_ |= hung_up;
  }

  // From here on everything travels in records. `out` and `in`: 16 bytes, of this lane alone.
  void encrypt(crypto::Bytes out, crypto::Bytes in);
  // Pages of large writes of ours are sent from where they lie. After tune_lane().
  void enable_zerocopy(std::uint64_t bytes_min);
  // EPOLLERR: takes zero-copy notices. False: it is an error of the socket.
  bool take_notices();

  void assign(OutBatch& b);
  std::uint64_t load() const { return load_; }
  // Ends what can end at once; what has begun is ended with the peer's help.
  void cancel(OutBatch& b);

  // Closes the socket. settled(): no copy touches memory any more; call settle() until then.
  void close();
  bool settle();

  // Everything that was given to this lane and is not over.
  BatchList& writes() { return writes_; }
  BatchList& reads() { return reads_; }
  BatchList& waiting() { return waiting_; }

  int fd() const { return fd_.get(); }
  std::uint64_t id() const { return id_; }

  // The Link's notes about this lane.
  Phase phase = Phase::greeting;
  bool dialed = false;
  bool fence_answer_due = false;  // the peer waits for `fenced` until we have settled
  bool listed = false;            // in the Link's list of lanes to serve
  bool refusal_told = false;      // that runs of its peer were refused
  std::uint64_t peer = 0;         // 0: not known yet
  std::uint32_t index = 0, incarnation = 0;
  std::uint32_t peer_inflight_max = kBatchesInflightMax;
  std::int64_t deadline_ns = INT64_MAX;
  Nonce nonce{};  // of our greeting
  std::array<std::byte, sizeof(Greeting)> greeting{};
  std::size_t greeting_bytes = 0;

 private:
  struct Serve;  // a read request of the peer
  struct Seal {  // of an encrypted lane
    Seal(crypto::Bytes out, crypto::Bytes in) : sealer(out), opener(in) {}
    Sealer sealer;
    Opener opener;
    SealBuffer* tx = nullptr;
    SealBuffer* rx = nullptr;
  };
  struct Asked {
    std::uint64_t batch = 0;
    std::uint64_t bytes = 0;
    std::uint32_t runs = 0;
    bool arrived = false;
  };
  enum class Data : std::uint8_t { none, write, read };

  // tcp_lane_tx.cc
  Status send(std::uint64_t bytes_max);
  bool tx_has_work() const;
  bool build();
  bool append_frame();
  bool append_acks();
  bool append_request();
  bool append_serve();
  bool append_write();
  std::byte* head() { return tx_->head.data() + tx_head_; }
  std::size_t head_room() const { return TxBuffers::kHeadBytes - tx_head_; }
  void commit_head(std::size_t bytes);
  void tx_vector(std::byte* at, std::uint64_t bytes) {
    tx_->vectors[tx_count_++] = {at, bytes};
    tx_left_ += bytes;
    tx_built_ += bytes;
  }
  void append_done(const Serve& serve);
  bool copy_small(Serve& serve);
  bool append_data();
  void chunk_sent();
  void revalidate_tx();
  void pop_serve();
  bool may_ask() const {
    return asked_.size() < kReadRequestsMax && asked_runs_ + kAskRunsMin <= kReadRunsMax;
  }

  // tcp_lane_zerocopy.cc
  ssize_t transmit();
  bool zerocopy_pays(const iovec& vector) const;

  // tcp_lane_seal.cc
  bool tx_sealed() const;  // records wait for the socket
  bool rx_sealed() const;  // a record waits to be opened
  ssize_t transmit_sealed();
  Status flush_sealed();
  Status read_sealed(std::uint64_t& received);
  void drop_seal();

  // tcp_lane_stage.cc
  bool append_stage();
  bool start_copy(Stage& stage, RunList& list, bool to_runs, std::uint64_t& epoch, Code& code);
  bool copy_done(Stage& stage, RunList& list);
  void pump_rx_stages();
  Status consume_staged();
  void drop_stages();
  void drop_stages(std::array<Stage, 2>& stages);
  bool stages_busy() const;

  // tcp_lane_rx.cc
  Status receive(std::uint64_t bytes_max);
  Status consume();
  Status consume_data();
  Status read_more(std::uint64_t& bytes);
  Status finish_frame();
  Status finish_write();
  void scatter(std::size_t bytes);
  void revalidate_rx();
  ssize_t read_head(std::size_t& wanted);
  ssize_t read_stage(std::size_t& wanted);
  ssize_t read_data(std::size_t& wanted);

  // tcp_lane_frames.cc
  Status begin_frame(const FrameHeader& header, const std::byte* body);
  Status begin_write(const FrameHeader& header, const std::byte* body);
  Status begin_read_data(const FrameHeader& header);
  Status on_read_done(const FrameHeader& header);
  Status on_read_request(const FrameHeader& header, const std::byte* body);
  Status on_acks(const FrameHeader& header, const std::byte* body);

  static constexpr std::uint32_t kAskRunsMin = 64;         // no sliver of a request
  static constexpr std::uint64_t kCopyBytesMax = 8 << 10;  // below, a copy beats a vector or a call
  static constexpr int kCallsMax = 32;  // system calls per service() and direction

  LinkCore& core_;
  Status fault_;  // found where no Status can be returned; ends the lane
  UniqueFd fd_;
  const std::uint64_t id_;
  std::uint64_t load_ = 0;
  BatchList writes_, reads_, waiting_;
  std::unique_ptr<Seal> seal_;

  // Sending: a chunk is what the next sendmsg() takes.
  TxBuffers* tx_ = nullptr;
  bool tx_blocked_ = false;
  bool tx_serve_turn_ = false;
  std::size_t tx_next_ = 0, tx_count_ = 0, tx_head_ = 0;
  std::uint64_t tx_left_ = 0;                 // bytes of the chunk
  std::uint64_t tx_built_ = 0, tx_sent_ = 0;  // positions of the byte stream
  Data tx_data_ = Data::none;
  bool tx_staged_ = false;
  RunList tx_list_;
  std::size_t tx_ref_ = SIZE_MAX;      // first vector into memory a peer chose
  bool tx_serve_over_ = false;         // the chunk ends the first Serve
  std::uint64_t tx_zerocopy_min_ = 0;  // 0: off
  std::size_t tx_offered_ = 0;         // bytes of the last call
  int tx_stage_ = -1;                  // the stage that the chunk sends
  unsigned tx_stage_first_ = 0;
  std::array<Stage, 2> tx_stages_;
  Ring<WireAck> acks_;
  Ring<Asked> asked_;
  std::uint32_t asked_runs_ = 0;

  // Receiving.
  RxBuffers* rx_ = nullptr;
  bool rx_ready_ = false;
  bool rx_hung_up_ = false;
  bool rx_held_ = false;  // stopped by a backlog of events or by a copy
  bool rx_in_data_ = false;
  bool rx_bulk_ = false;  // the last frame was large: expect its like
  bool rx_staged_ = false;
  std::size_t rx_begin_ = 0, rx_end_ = 0;  // buffered bytes
  std::size_t rx_head_guess_ = sizeof(FrameHeader);
  std::size_t rx_next_ = 0, rx_count_ = 0;  // vectors
  std::uint64_t rx_vectors_bytes_ = 0;      // in them
  std::uint64_t rx_left_ = 0;               // data bytes of the frame
  std::uint64_t rx_epoch_ = 0;
  FrameHeader rx_header_;
  RunList rx_list_;
  std::array<std::byte, kNoteBytesMax> rx_note_{};
  unsigned rx_stage_ = 0;
  std::array<Stage, 2> rx_stages_;

  // The write batch of the peer that is arriving.
  bool in_write_ = false;
  std::uint64_t in_batch_ = 0, in_bytes_ = 0;
  Code in_code_ = Code::ok;

  // Read requests of the peer.
  struct Serve {
    std::uint64_t batch = 0;
    std::uint64_t bytes = 0;
    std::uint64_t epoch = 0;
    std::uint32_t first = 0, runs = 0;
    Code code = Code::ok;
    bool staged = false;
  };
  Ring<Serve> serves_;
  std::unique_ptr<RunView[]> serve_views_;  // kReadRunsMax, from the first request on
  std::uint32_t serve_first_ = 0, serve_runs_ = 0;
};

}  // namespace kvl::tcp
