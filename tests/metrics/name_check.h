// The rules for names of metrics, checked on a Prometheus text exposition.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kvl::test {

// One sentence per broken rule; empty: all names are good.
std::vector<std::string> bad_metrics(std::string_view exposition);

}  // namespace kvl::test
