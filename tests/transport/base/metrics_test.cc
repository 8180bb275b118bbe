// Prometheus text: one head per family, escaped labels.
#include "kvl/metrics.h"

#include <gtest/gtest.h>

namespace kvl {
namespace {

TEST(PrometheusText, GroupsFamiliesAndEscapesLabels) {
  PrometheusText out;
  out.counter("kvl_bytes_total", "Bytes moved.", {{"peer", "a\"b"}}, 3);
  out.gauge("kvl_peers", "Peers.", {}, 1.5);
  out.counter("kvl_bytes_total", "Bytes moved.", {{"peer", "c"}}, 4);
  EXPECT_EQ(out.text(),
            "# HELP kvl_bytes_total Bytes moved.\n# TYPE kvl_bytes_total counter\n"
            "kvl_bytes_total{peer=\"a\\\"b\"} 3\nkvl_bytes_total{peer=\"c\"} 4\n"
            "# HELP kvl_peers Peers.\n# TYPE kvl_peers gauge\nkvl_peers 1.5\n");
}

}  // namespace
}  // namespace kvl
