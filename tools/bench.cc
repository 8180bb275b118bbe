// `kvlane bench`: the microbenchmark's command line. What it does is in tools/bench/.
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "kvl/engine.h"
#include "tools/bench/modes.h"
#include "tools/program.h"

namespace kvl::tools {
namespace {

using bench::Bench;
using bench::BenchOptions;
using bench::Format;

constexpr const char* kExamples =
    "GB is 10^9 bytes; sizes take k, m, g (powers of 1024). Exit status 1: failed or a wrong "
    "byte.\n"
    "Examples:\n"
    "  kvlane bench                                       4 KiB pages over the best transport\n"
    "  kvlane bench --transport tcp --page-bytes 4k,64k,1m --op write,read\n"
    "  kvlane bench --transport shm --foreign --verify --json\n"
    "  kvlane bench --pages 65536 --page-bytes 16k --run-pieces 128 --stride 32k\n"
    "  kvlane bench --latency --transport tcp             4 KiB write, note, answer\n"
    "  kvlane bench --suite figures --json                the table of figures of the project\n"
    "  kvlane bench --suite scaling                       cost against sessions and pages\n"
    "  host A: kvlane bench --serve 10.0.0.1:4711\n"
    "  host B: kvlane bench --peer 10.0.0.1:4711 --compare tcp,efa --model llama-3.1-70b";

// Texts as given; checked when all of them are there.
struct Given {
  BenchOptions options;
  SettingFlags settings;
  std::string op = "write", page_bytes = "4096", arena = "256m", stride, local_stride,
              remote_stride, compare, serve_bytes = "0";
  std::uint64_t run_pieces = 0;
  std::string lanes, congestion, rails, progress;
  bool json = false, csv = false, child = false;
};

void size_option(const std::string& text, std::uint64_t& out, const char* name) {
  if (text.empty()) return;
  const auto size = bench::parse_size(text);
  if (!size.ok()) throw CLI::ValidationError(name, "'" + text + "': " + size.status().context());
  out = *size;
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::size_t begin = 0;
  while (begin < text.size()) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

void finish(Given& given) {
  BenchOptions& options = given.options;
  options.directions.clear();
  for (const std::string& word : split(given.op)) {
    if (word != "write" && word != "read") {
      throw CLI::ValidationError("--op", "write, read or write,read; not '" + word + "'");
    }
    options.directions.push_back(word == "write" ? Direction::write : Direction::read);
  }
  if (options.directions.empty()) throw CLI::ValidationError("--op", "write or read");
  const auto sizes = bench::parse_sizes(given.page_bytes);
  if (!sizes.ok()) {
    throw CLI::ValidationError("--page-bytes",
                               "'" + given.page_bytes + "': " + sizes.status().context());
  }
  options.page_bytes = *sizes;
  bench::WorkloadSpec& load = options.workload;
  size_option(given.arena, load.arena_bytes, "--arena-bytes");
  size_option(given.stride, load.local_stride, "--stride");
  size_option(given.stride, load.remote_stride, "--stride");
  size_option(given.local_stride, load.local_stride, "--local-stride");
  size_option(given.remote_stride, load.remote_stride, "--remote-stride");
  size_option(given.serve_bytes, options.serve_bytes_max, "--serve-bytes-max");
  const bool strided = load.local_stride != 0 || load.remote_stride != 0;
  load.run_pieces = given.run_pieces != 0 ? given.run_pieces
                    : strided             ? std::min<std::uint64_t>(load.pages, 128)
                                          : 1;
  for (const std::uint64_t page_bytes : options.page_bytes) {
    load.page_bytes = page_bytes;
    if (const Status status = bench::validate(load); !status.ok()) {
      throw CLI::ValidationError("bench", status.context());
    }
  }
  for (const std::string& name : split(options.baselines)) {
    const std::vector<std::string> known{"all",        "none",  "memcpy", "socket",
                                         "process_vm", "futex", "plain"};
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      throw CLI::ValidationError("--baselines", "there is no baseline '" + name + "'");
    }
  }
  std::string error;
  if (!bench::required_transport(options.transport, &error).ok()) {
    throw CLI::ValidationError("--transport", error);
  }
  if (given.json && given.csv) throw CLI::ValidationError("--json", "not together with --csv");
  options.format = given.json ? Format::json : given.csv ? Format::csv : Format::text;
  options.compare = split(given.compare);
  if (!options.compare.empty() && options.peer.empty()) {
    throw CLI::ValidationError("--compare", "needs --peer ADDR");
  }
  for (const auto& [name, text] : {std::pair{"tcp.lanes", &given.lanes},
                                   {"tcp.congestion", &given.congestion},
                                   {"rails_per_device", &given.rails},
                                   {"progress", &given.progress}}) {
    if (!text->empty()) options.flags.emplace_back(name, *text);
  }
  options.flags.insert(options.flags.end(), given.settings.begin(), given.settings.end());
}

void row_options(CLI::App& command, Given& given) {
  BenchOptions& options = given.options;
  bench::WorkloadSpec& load = options.workload;
  const char* const group = "What is moved";
  const auto add = [&](const char* name, auto& value, const char* help) {
    return command.add_option(name, value, help)->group(group)->capture_default_str();
  };
  add("--transport", options.transport, "auto or NAME[:PROVIDER[:DEVICE]]");
  add("--op", given.op, "write, read or both: write,read");
  add("--pages", load.pages, "pages of one transfer");
  add("--page-bytes", given.page_bytes, "size of a page, or a list: 4k,64k,1m");
  add("--stride", given.stride, "distance of the pages of a run, on both sides");
  add("--local-stride", given.local_stride, "on this side only");
  add("--remote-stride", given.remote_stride, "on the other side only");
  add("--run-pieces", given.run_pieces, "pages of a strided run (1, or 128 with a stride)");
  add("--arena-bytes", given.arena, "memory that transfers rotate through, each side");
  add("--depth", options.depth, "transfers in flight")->check(CLI::Range(1, 1024));
  add("--seed", load.seed, "of the page order");
  const auto flag = [&](const char* name, bool& value, const char* help) {
    command.add_flag(name, value, help)->group(group);
  };
  flag("--contiguous", load.contiguous, "pages in order of address; else in random order");
  flag("--foreign", options.foreign, "memory that the engine did not allocate");
  flag("--verify", options.verify, "check every page and every guard byte, untimed");
  flag("!--no-notes", options.notes, "no notification with each written transfer");
  command.add_flag("--test-flip-byte", options.flip_byte)->group("");
}

void engine_options(CLI::App& command, Given& given) {
  const char* const group = "How it is moved";
  const auto add = [&](const char* name, std::string& value, const char* help) {
    command.add_option(name, value, help)->group(group);
  };
  add("--lanes", given.lanes, "connections per peer: --tcp.lanes");
  add("--congestion", given.congestion, "reno, cubic, bbr, ...: --tcp.congestion");
  add("--rails", given.rails, "Links per device, each with a thread: --rails_per_device");
  add("--progress", given.progress,
      "thread or caller; unless told, rows have one thread a side, as their baselines");
}

void mode_options(CLI::App& command, Given& given) {
  BenchOptions& options = given.options;
  const char* const group = "Instead of rows";
  command.add_flag("--latency", options.latency, "4 KiB write and note, answered by a note")
      ->group(group);
  command.add_option("--suite", options.suite, "figures or scaling")
      ->check(CLI::IsMember({"figures", "scaling"}))
      ->group(group);
  command
      .add_option_function<std::string>(
          "--serve",
          [&options](const std::string& address) {
            options.serve = true;
            options.serve_address = address == "any" ? "" : address;
          },
          "answer a bench on another host at [HOST:PORT]")
      ->expected(0, 1)
      ->default_str("any")
      ->type_name("[ADDR]")
      ->group(group);
  command.add_option("--peer", options.peer, "ADDR of a serving side")->group(group);
  command.add_option("--compare", given.compare, "with --peer: T1,T2, measured in turns")
      ->group(group);
  command.add_option("--model", options.model, "with --peer: whose KV size")
      ->capture_default_str()
      ->group(group);
  command.add_option("--prompt-tokens", options.prompt_tokens, "with --peer: prompt length")
      ->capture_default_str()
      ->check(CLI::Range(1, 100'000'000))
      ->group(group);
  command
      .add_option("--serve-bytes-max", given.serve_bytes,
                  "with --serve: memory granted to peers (half of what is free)")
      ->group(group);
  command.add_flag("--serve-child", given.child)->group("");
  command.add_option("--serve-fleet", options.serve_fleet)->check(CLI::Range(1, 10'000))->group("");
}

// One line on standard error that overwrites itself; nothing when that is no terminal.
void show_progress(const std::string& line) {
  if (::isatty(STDERR_FILENO) == 0) return;
  std::fprintf(stderr, "\r\033[K%s", line.c_str());
  std::fflush(stderr);
}

int run(const Bench& bench, bool child) {
  if (bench.options.serve_fleet > 0) return bench::run_serve_fleet(bench);
  if (bench.options.serve) return bench::run_serve(bench, child);
  if (!bench.options.peer.empty()) return bench::run_compare(bench);
  if (bench.options.latency) return bench::run_latency(bench);
  if (bench.options.suite == "figures") return bench::run_figures(bench);
  if (bench.options.suite == "scaling") return bench::run_scaling(bench);
  return bench::run_rows(bench);
}

}  // namespace

void add_bench(CLI::App& app, Program& program) {
  CLI::App* const command =
      app.add_subcommand("bench", "measure transfers between two processes or hosts");
  command->footer(kExamples);
  const auto given = std::make_shared<Given>();
  BenchOptions& options = given->options;
  row_options(*command, *given);
  engine_options(*command, *given);
  command->add_option("--seconds", options.seconds, "measured time of a row")
      ->capture_default_str()
      ->check(CLI::Range(0.001, 3600.0));
  command
      ->add_option("--baselines", options.baselines,
                   "all, none or a list of memcpy, socket, process_vm, futex, plain")
      ->capture_default_str();
  command->add_option("--spin-us", options.spin_us, "latency mode: look that long before a sleep")
      ->capture_default_str()
      ->check(CLI::Range(0, 100'000));
  command->add_option("--timeout-ms", options.timeout_ms, "of any single step")
      ->capture_default_str()
      ->check(CLI::Range(100, 3'600'000));
  command->add_flag("--json", given->json, "one JSON object per line");
  command->add_flag("--csv", given->csv, "comma-separated values with a head line");
  mode_options(*command, *given);
  std::vector<Setting> rows = engine_settings();
  for (const Setting& row : transport_settings()) rows.push_back(row);
  std::erase_if(rows, [](const Setting& row) { return row.name == "progress"; });
  add_setting_flags(*command, rows, "", given->settings);
  command->callback([&program, given] {
    finish(*given);
    given->options.config_file = program.config_file;
    Bench bench{given->options,
                [&program](const bench::Flags& flags) { return program.settings(flags); },
                show_progress};
    bench::catch_interrupts();
    program.exit_status = run(bench, given->child);
  });
}

}  // namespace kvl::tools
