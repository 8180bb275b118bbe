// Prometheus text: one head per family, escaped labels.
#include "kvl/metrics.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

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

TEST(BoundedCounts, ADayOfPeersMakesFewSeries) {
  BoundedCounts counts("kvlane_x_total", "Text.", {"cause"}, {"peer"});
  for (int i = 0; i < 10'000; ++i) {
    const std::string peer = "10.0.0.1:" + std::to_string(i);
    counts.add({i % 2 == 0 ? "even" : "odd"}, {peer});
  }
  counts.add({"even"}, {"10.0.0.1:0"});
  PrometheusText out;
  counts.visit(out);
  const std::string text = out.text();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2 + 256 + 2);
  EXPECT_NE(text.find("{cause=\"even\",peer=\"10.0.0.1:0\"} 2\n"), std::string::npos) << text;
  EXPECT_NE(text.find("{cause=\"odd\",peer=\"other\"} 4872\n"), std::string::npos) << text;
}

TEST(BoundedCounts, APeersWordsAreMadePlain) {
  BoundedCounts counts("kvlane_x_total", "Text.", {}, {"peer"});
  counts.add({}, {"a\n\x1b\xff\"" + std::string(1000, 'x')});
  PrometheusText out;
  counts.visit(out);
  EXPECT_NE(out.text().find("{peer=\"a???\\\"" + std::string(251, 'x') + "\"} 1\n"),
            std::string::npos)
      << out.text();
}

TEST(BoundedCounts, LabelsOfTheOwnerComeFirst) {
  BoundedCounts counts("kvlane_x_total", "Text.", {"cause"}, {"peer"});
  counts.add({"even"}, {"b"});
  PrometheusText out;
  counts.visit(out, {{"rail", "0"}, {"device", "tcp"}});
  EXPECT_NE(out.text().find("{rail=\"0\",device=\"tcp\",cause=\"even\",peer=\"b\"} 1\n"),
            std::string::npos)
      << out.text();
}

}  // namespace
}  // namespace kvl
