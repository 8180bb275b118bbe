// A listening port and the sessions that came in by it.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "kvl/status.h"
#include "kvl/tls.h"
#include "router/http/session.h"

namespace kvl::http {

struct ListenOptions {
  std::string host;  // "0.0.0.0", "::", "127.0.0.1", "localhost"
  std::uint16_t port = 0;
  bool share_port = false;  // SO_REUSEPORT: several loops listen on one port
};

// What a listener is asked before it is bound.
struct ListenerSecurity {
  std::string component;  // "router": its settings are router.host, router.tls_cert_path, ...
  std::string host;
  TlsFiles tls;                // empty: plain
  bool authenticates = false;  // clients show a secret or a key
  bool insecure = false;
};

// The listener's TLS; null: plain. permission: a host beyond loopback, and nothing that tells
// clients from strangers; else as TlsContext::server(). A host that is none is left to listen().
// `error` receives what to do.
Result<std::shared_ptr<TlsContext>> secure_listener(const ListenerSecurity& security,
                                                    std::string* error);

// A bound, listening socket. unavailable: port in use; invalid_argument: not an address of this
// machine; `error` receives a sentence that names the address.
Result<Acceptor> listen(Loop& loop, const ListenOptions& options, std::string* error);

class Listener final : public Timed {
 public:
  // `connections_max`: beyond it the one that has waited longest without a request is closed for
  // each new one; while all are being answered, new ones wait in the kernel's backlog.
  Listener(SessionContext& context, Acceptor acceptor, std::size_t connections_max);

  void start();
  // Accepts no more; sessions end after the answer in progress.
  void stop();
  // Ends every session now.
  void close_sessions();

  std::uint16_t port() const { return port_; }
  void on_deadline() override;

 private:
  void accept();
  bool may_enter();
  Session* oldest_idle();

  SessionContext& context_;
  Acceptor acceptor_;
  std::size_t connections_max_;
  std::uint16_t port_;
  bool accepting_ = false;
  Endpoint from_;  // of the connection being accepted
  boost::intrusive::list<Session, boost::intrusive::base_hook<SessionHook>,
                         boost::intrusive::constant_time_size<false>>
      sessions_;
};

}  // namespace kvl::http
