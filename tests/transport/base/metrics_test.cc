// Prometheus text: one head per family, escaped labels.
#include "kvl/metrics.h"

#include <gtest/gtest.h>

namespace kvl {
namespace {

TEST(PrometheusText, GroupsFamiliesAndEscapesLabels) {
  PrometheusText out;
  out.counter("kvlane_bytes_total", "Bytes moved.", {{"peer", "a\"b"}}, 3);
  out.gauge("kvlane_peers", "Peers.", {}, 1.5);
  out.counter("kvlane_bytes_total", "Bytes moved.", {{"peer", "c"}}, 4);
  EXPECT_EQ(out.text(),
            "# HELP kvlane_bytes_total Bytes moved.\n# TYPE kvlane_bytes_total counter\n"
            "kvlane_bytes_total{peer=\"a\\\"b\"} 3\nkvlane_bytes_total{peer=\"c\"} 4\n"
            "# HELP kvlane_peers Peers.\n# TYPE kvlane_peers gauge\nkvlane_peers 1.5\n");
}

}  // namespace
}  // namespace kvl
