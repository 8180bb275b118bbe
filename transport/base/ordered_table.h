// Tables with a row for each value of an enumeration, found by index.
#pragma once

#include <cstddef>

namespace kvl {

// Whether the i-th row is that of the i-th value: what a lookup by index rests on.
//   static_assert(in_order<&Row::cause>(kTable));
template <auto Key, typename Table>
constexpr bool in_order(const Table& table) {
  std::size_t i = 0;
  for (const auto& row : table) {
    if (static_cast<std::size_t>(row.*Key) != i++) return false;
  }
  return true;
}

}  // namespace kvl
