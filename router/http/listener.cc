// Binding and accepting. A shortage (of descriptors, of allowed connections) is waited out.
#include "router/http/listener.h"

#include <algorithm>
#include <boost/asio/error.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/socket_base.hpp>
#include <memory>
#include <utility>

#include "kvl/security.h"

namespace kvl::http {
namespace {

constexpr double kRetrySecs = 0.05;

using ReusePort = asio::detail::socket_option::boolean<SOL_SOCKET, SO_REUSEPORT>;

}  // namespace

Result<std::shared_ptr<TlsContext>> secure_listener(const ListenerSecurity& security,
                                                    std::string* error) {
  const TlsFiles& files = security.tls;
  ErrorCode failed;
  if (security.host != "localhost") (void)asio::ip::make_address(security.host, failed);
  if (!failed) {
    KVL_TRY(check_listener(security.component + ".host", security.host,
                           security.authenticates || !files.ca.empty(), security.insecure, error));
  }
  if (!files.cert.empty() || !files.key.empty()) return TlsContext::server(files, error);
  if (files.ca.empty()) return std::shared_ptr<TlsContext>();
  if (error != nullptr) {
    *error = security.component + ".tls_client_ca_path needs " + security.component +
             ".tls_cert_path and tls_key_path";
  }
  return Status{Code::invalid_argument, "the options of a listener"};
}

Result<Acceptor> listen(Loop& loop, const ListenOptions& options, std::string* error) {
  ErrorCode failed;
  const std::string host = options.host == "localhost" ? "127.0.0.1" : options.host;
  const asio::ip::address address = asio::ip::make_address(host, failed);
  const auto fail = [&](Code code, const char* context) {
    if (error != nullptr) {
      *error = "cannot listen on " + options.host + ":" + std::to_string(options.port) + ": " +
               failed.message();
    }
    return Status{code, context, failed.value()};
  };
  if (failed) return fail(Code::invalid_argument, "the host to listen on is not an IP address");
  const Endpoint endpoint(address, options.port);
  Acceptor acceptor(loop.io());
  acceptor.open(endpoint.protocol(), failed);
  if (failed) return fail(Code::unavailable, "open a listening socket");
  acceptor.set_option(asio::socket_base::reuse_address(true), failed);
  if (!failed && options.share_port) acceptor.set_option(ReusePort(true), failed);
  if (failed) return fail(Code::unavailable, "set up a listening socket");
  acceptor.bind(endpoint, failed);
  if (failed) {
    return fail(failed == asio::error::address_in_use ? Code::unavailable : Code::invalid_argument,
                "bind the port");
  }
  acceptor.listen(asio::socket_base::max_listen_connections, failed);
  if (failed) return fail(Code::unavailable, "listen on the port");
  return acceptor;
}

Listener::Listener(SessionContext& context, Acceptor acceptor, std::size_t connections_max)
    : context_(context),
      acceptor_(std::move(acceptor)),
      connections_max_(connections_max),
      port_(acceptor_.local_endpoint().port()) {
  context_.loop.watch(*this);
}

void Listener::start() { accept(); }

void Listener::accept() {
  if (accepting_ || !acceptor_.is_open()) return;
  // Everybody is being answered: the next one waits in the kernel's backlog.
  if (context_.open >= connections_max_ && oldest_idle() == nullptr) {
    return set_deadline(after_seconds(kRetrySecs));
  }
  accepting_ = true;
  acceptor_.async_accept(from_, [this](ErrorCode error, Socket socket) {
    accepting_ = false;
    if (error == asio::error::operation_aborted) return;
    if (error) return set_deadline(after_seconds(kRetrySecs));
    if (may_enter()) {
      const auto session = std::make_shared<Session>(context_, std::move(socket), from_.address());
      sessions_.push_back(*session);
      session->start();
    }
    accept();
  });
}

// Whether one more connection is served. A full house closes the connection that has waited longest
// without a request: who sends one at once gets in, also during a flood of silent ones.
bool Listener::may_enter() {
  const std::uint32_t most = context_.limits.per_address_max;
  if (most > 0) {
    const auto of = context_.by_address.find(from_.address());
    if (of != context_.by_address.end() && of->second >= most) {
      context_.counters.refused.add(Refusal::crowded_address, from_.address().to_string());
      return false;
    }
  }
  if (context_.open < connections_max_) return true;
  if (Session* const oldest = oldest_idle()) {
    context_.counters.refused.add(Refusal::crowded, from_.address().to_string());
    oldest->close();
  }
  return true;
}

Session* Listener::oldest_idle() {
  const auto oldest = std::find_if(sessions_.begin(), sessions_.end(),
                                   [](const Session& session) { return session.idle(); });
  return oldest == sessions_.end() ? nullptr : &*oldest;
}

void Listener::on_deadline() { accept(); }

void Listener::stop() {
  context_.stopping = true;
  clear_deadline();
  ErrorCode ignored;
  acceptor_.close(ignored);
  // stop() may unlink the session that it is called on.
  for (auto at = sessions_.begin(); at != sessions_.end();) (at++)->stop();
}

void Listener::close_sessions() {
  for (auto at = sessions_.begin(); at != sessions_.end();) (at++)->close();
}

}  // namespace kvl::http
