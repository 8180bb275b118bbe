// The store that the options ask for.
#pragma once

#include <memory>
#include <string>

#include "kvl/bootstrap_server.h"
#include "router/bootstrap/etcd_store.h"
#include "router/http/loop.h"

namespace kvl::bootstrap {

// Reads the options of etcd, and its password from where they say. invalid_argument, not_found,
// permission; `error` (optional) receives the sentence for people.
Result<EtcdStoreOptions> etcd_options(const BootstrapServerOptions& options, std::string* error);

// A store and how it is told that its loop will end. The clock and the loop outlive it.
struct OpenStore {
  std::unique_ptr<Store> store;
  EtcdStore* etcd = nullptr;  // the same, where it is one
};
Result<OpenStore> make_store(http::Loop& loop, const Clock& clock,
                             const BootstrapServerOptions& options, std::string* error);

}  // namespace kvl::bootstrap
