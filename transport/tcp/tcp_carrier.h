// Tells when a network interface has lost its carrier: its cable, its switch, or somebody took it
// down. TCP itself would wait for acknowledgements that cannot come.
#pragma once

#include <string>

#include "kvl/status.h"
#include "transport/base/unique_fd.h"

namespace kvl::tcp {

class CarrierWatch {
 public:
  // Not an interface of this host: unavailable. exhausted: no descriptor.
  static Result<CarrierWatch> open(const std::string& interface);

  // Readable when something has changed.
  int fd() const { return socket_.get(); }
  // Takes what the kernel has told since. True: the carrier was lost meanwhile, even if it is back.
  bool lost();

 private:
  CarrierWatch(UniqueFd socket, int index) : socket_(std::move(socket)), index_(index) {}

  UniqueFd socket_;
  int index_;
};

}  // namespace kvl::tcp
