// Replays inputs through a target without libFuzzer, so that every compiler's tests run the
// corpora.
//
//   fuzz_corpus NAME PATH…          files, or folders of files
//   fuzz_corpus NAME --seeds DIR    writes the target's honest inputs
//   fuzz_corpus --list
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/fuzz/entry.h"

namespace kvl::fuzz {
namespace {

namespace fs = std::filesystem;

bool replay(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(in)), {});
  if (!in) return false;
  // An own allocation of exact size: the sanitizer sees one byte too far.
  const std::vector<std::uint8_t> exact(bytes.begin(), bytes.end());
  std::fprintf(stderr, "%s\n", file.c_str());
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
  return true;
}

int write_seeds(std::string_view name, const fs::path& folder) {
  fs::create_directories(folder);
  for (const Target& target : targets()) {
    if (target.name != name) continue;
    std::size_t number = 0;
    for (const std::vector<std::byte>& bytes : target.seeds()) {
      std::ofstream out(folder / ("seed-" + std::to_string(number++)), std::ios::binary);
      out.write(reinterpret_cast<const char*>(bytes.data()),
                static_cast<std::streamsize>(bytes.size()));
    }
  }
  return 0;
}

int main(std::span<char*> words) {
  if (words.size() == 1 && std::string_view(words[0]) == "--list") {
    for (const Target& target : targets()) std::puts(std::string(target.name).c_str());
    return 0;
  }
  if (words.size() < 2) {
    std::fprintf(stderr, "fuzz_corpus NAME PATH… | NAME --seeds DIR | --list\n");
    return 2;
  }
  choose(words[0]);
  if (std::string_view(words[1]) == "--seeds" && words.size() == 3) {
    return write_seeds(words[0], words[2]);
  }
  std::size_t replayed = 0;
  for (const char* const path : words.subspan(1)) {
    std::vector<fs::path> files;
    if (fs::is_directory(path)) {
      for (const auto& entry : fs::directory_iterator(path)) files.push_back(entry.path());
    } else {
      files.emplace_back(path);
    }
    for (const fs::path& file : files) {
      if (!replay(file)) {
        std::fprintf(stderr, "cannot read %s\n", file.c_str());
        return 1;
      }
      ++replayed;
    }
  }
  std::printf("%zu inputs replayed\n", replayed);
  return replayed > 0 ? 0 : 1;  // an empty corpus is a test that asserts nothing
}

}  // namespace
}  // namespace kvl::fuzz

int main(int argc, char** argv) {
  return kvl::fuzz::main(std::span(argv + 1, static_cast<std::size_t>(argc - 1)));
}
