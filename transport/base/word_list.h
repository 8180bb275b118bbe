// Lists of words in settings.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

namespace kvl {

// "eth0,eth1" to its words; empty ones are left out.
inline std::vector<std::string> words_of(std::string_view list) {
  std::vector<std::string> words;
  while (!list.empty()) {
    const std::string_view word = list.substr(0, list.find(','));
    if (!word.empty()) words.emplace_back(word);
    list.remove_prefix(std::min(list.size(), word.size() + 1));
  }
  return words;
}

inline bool has_word(std::string_view list, std::string_view word) {
  const std::vector<std::string> words = words_of(list);
  return std::find(words.begin(), words.end(), word) != words.end();
}

}  // namespace kvl
