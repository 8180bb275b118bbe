// An RDMA device that moves no pages and completes at once, behind libibverbs' table of entry
// points: what is left is the cost of the verbs transport. Messages are delivered. One thread, one
// at a time.
#pragma once

#include "transport/verbs/verbs_api.h"

namespace kvl::bench {

verbs::VerbsApi null_rdma_api();

}  // namespace kvl::bench
