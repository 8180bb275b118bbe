// `kvlane info`: what this machine has, which transports can run here, and why one cannot.
#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <sstream>
#include <thread>

#include "bench/support/output.h"
#include "kvl/engine.h"
#include "tools/program.h"
#include "tools/security_report.h"
#include "transport/base/crc32c.h"
#include "transport/base/host_files.h"
#include "transport/base/unique_fd.h"

namespace kvl::tools {
namespace {

using bench::json;
using bench::Row;
using bench::Value;

// The word in brackets of a choice like "always [madvise] never".
std::string chosen(const char* path) {
  const std::string line = first_line(path, "");
  const std::size_t begin = line.find('[');
  const std::size_t end = line.find(']');
  return begin == std::string::npos || end == std::string::npos || end < begin
             ? "unknown"
             : line.substr(begin + 1, end - begin - 1);
}

int numa_nodes() {
  const std::string online = first_line("/sys/devices/system/node/online", "0");
  const std::size_t dash = online.find_last_of("-,");
  const int last = std::atoi(online.c_str() + (dash == std::string::npos ? 0 : dash + 1));
  return last + 1;
}

// "yes", or the reason of the kernel.
std::string io_uring_state() {
  io_uring_params params{};
  const UniqueFd ring(static_cast<int>(::syscall(SYS_io_uring_setup, 1, &params)));
  return ring ? "available, not used" : std::string("no: ") + std::strerror(errno);
}

std::string attach_state() {
  const std::string scope = first_line("/proc/sys/kernel/yama/ptrace_scope", "");
  if (scope.empty() || scope == "0") return "between processes of one user";
  if (scope == "1") return "only from parent to child (yama 1), or as root";
  return "only as root (yama " + scope + ")";
}

Row machine_facts() {
  utsname name{};
  ::uname(&name);
  Row facts;
  facts.set("version", KVL_VERSION);
  facts.set("host", name.nodename).set("kernel", name.release).set("machine", name.machine);
  facts.set("cores", std::int64_t{std::thread::hardware_concurrency()});
  facts.set("numa_nodes", std::int64_t{numa_nodes()});
  facts.set("crc32c_hardware", crc32c_has_hardware());
  facts.set("memory_bytes", meminfo("MemTotal") << 10);
  facts.set("memory_available_bytes", meminfo("MemAvailable") << 10);
  facts.set("hugepages_total", meminfo("HugePages_Total"));
  facts.set("hugepages_free", meminfo("HugePages_Free"));
  facts.set("hugepage_bytes", meminfo("Hugepagesize") << 10);
  facts.set("transparent_hugepages", chosen("/sys/kernel/mm/transparent_hugepage/enabled"));
  facts.set("shared_memory_hugepages", chosen("/sys/kernel/mm/transparent_hugepage/shmem_enabled"));
  facts.set("congestion_control",
            first_line("/proc/sys/net/ipv4/tcp_congestion_control", "unknown"));
  facts.set("congestion_controls",
            first_line("/proc/sys/net/ipv4/tcp_available_congestion_control", "unknown"));
  facts.set("io_uring", io_uring_state());
  facts.set("cross_memory_attach", attach_state());
  return facts;
}

std::string caps_text(std::uint32_t caps) {
  std::string out;
  for (const auto& [cap, name] : {std::pair{Cap::write, "write"},
                                  {Cap::read, "read"},
                                  {Cap::notify, "notify"},
                                  {Cap::host_memory, "host_memory"},
                                  {Cap::cuda_memory, "cuda_memory"},
                                  {Cap::inter_node, "inter_node"}}) {
    if ((caps & static_cast<std::uint32_t>(cap)) == 0) continue;
    out += (out.empty() ? "" : " ") + std::string(name);
  }
  return out;
}

std::string_view fence_text(Fence fence) {
  switch (fence) {
    case Fence::immediate:
      return "immediate";
    case Fence::av_remove:
      return "av_remove";
    case Fence::process_exit:
      return "process_exit";
    case Fence::none:
      break;
  }
  return "none";
}

std::string device_json(const Device& device) {
  Row row;
  row.set("name", device.name).set("domain", device.domain).set("caps", caps_text(device.caps));
  row.set("fence", std::string(fence_text(device.fence)));
  row.set("bytes_per_second", static_cast<std::int64_t>(device.bytes_per_second));
  row.set("numa_node", std::int64_t{device.numa_node});
  return json(row);
}

std::string transports_json(const std::vector<TransportInfo>& transports) {
  std::string out = "[";
  for (const TransportInfo& transport : transports) {
    if (out.size() > 1) out += ", ";
    out += "{\"name\": " + bench::json_string(transport.name);
    out += ", \"rank\": " + std::to_string(transport.rank);
    out += ", \"usable\": " + json(Value(!transport.devices.empty()));
    out += ", \"why_not\": " +
           (transport.devices.empty() ? bench::json_string(transport.why_unusable) : "null");
    out += ", \"devices\": [";
    for (const Device& device : transport.devices) {
      if (&device != transport.devices.data()) out += ", ";
      out += device_json(device);
    }
    out += "]}";
  }
  return out + "]";
}

std::vector<Row> changed_settings(const Settings& settings) {
  std::vector<Row> rows;
  for (const Setting& row : settings.rows()) {
    const Settings::Value value = settings.value(row.name);
    if (value.origin == "default") continue;
    rows.push_back(Row()
                       .set("name", std::string(row.name))
                       .set("value", value.text)
                       .set("origin", value.origin));
  }
  return rows;
}

void print_json(const Settings& settings) {
  std::string facts = json(machine_facts());
  facts.pop_back();
  std::string changed;
  for (const Row& row : changed_settings(settings)) {
    changed += (changed.empty() ? "" : ", ") + json(row);
  }
  const SecurityReport security = report_security(settings);
  const std::string secure = json(Row()
                                      .set("authentication", security.authentication)
                                      .set("encryption", security.encryption)
                                      .set("problem", security.problem));
  std::printf("%s, \"security\": %s, \"transports\": %s, \"settings\": [%s]}\n", facts.c_str(),
              secure.c_str(), transports_json(probe_transports(settings)).c_str(), changed.c_str());
}

std::string gib(double bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f GiB", bytes / (1 << 30));
  return text;
}

void print_machine() {
  const Row facts = machine_facts();
  const auto line = [](const char* head, const std::string& text) {
    std::printf("%-12s %s\n", head, text.c_str());
  };
  line("kvlane", facts.text("version"));
  line("host",
       facts.text("host") + ", Linux " + facts.text("kernel") + " " + facts.text("machine"));
  line("cpu", facts.text("cores") + " cores, " + facts.text("numa_nodes") +
                  " NUMA node(s); CRC-32C in hardware: " + facts.text("crc32c_hardware"));
  line("memory", gib(facts.number("memory_bytes")) + ", " +
                     gib(facts.number("memory_available_bytes")) + " available");
  line("huge pages", facts.text("hugepages_free") + " of " + facts.text("hugepages_total") +
                         " free; transparent: " + facts.text("transparent_hugepages") +
                         ", for shared memory: " + facts.text("shared_memory_hugepages"));
  line("tcp", "congestion control " + facts.text("congestion_control") +
                  "; available: " + facts.text("congestion_controls"));
  line("io_uring", facts.text("io_uring"));
  line("attach", "process_vm_* " + facts.text("cross_memory_attach"));
}

void print_text(const Settings& settings) {
  print_machine();
  const SecurityReport security = report_security(settings);
  std::printf("\nsecurity\n  peers must know: %s\n  encryption: %s\n",
              security.authentication.c_str(), security.encryption.c_str());
  if (!security.problem.empty()) std::printf("  no engine starts: %s\n", security.problem.c_str());
  std::puts("\ntransports, best first");
  for (const TransportInfo& transport : probe_transports(settings)) {
    if (transport.devices.empty()) {
      std::printf("  %-10s not usable: %s\n", transport.name.c_str(),
                  transport.why_unusable.c_str());
    }
    for (const Device& device : transport.devices) {
      std::printf("  %-10s %-12s %s; a lost peer is shut out: %s", transport.name.c_str(),
                  device.name.c_str(), caps_text(device.caps).c_str(),
                  std::string(fence_text(device.fence)).c_str());
      if (device.bytes_per_second > 0) {
        std::printf("; nominal %.1f Gbit/s",
                    static_cast<double>(device.bytes_per_second) * 8 / 1e9);
      }
      if (device.numa_node >= 0) std::printf("; NUMA node %d", device.numa_node);
      std::puts("");
    }
  }
  const std::vector<Row> changed = changed_settings(settings);
  std::puts(changed.empty() ? "\nevery setting is at its default; `kvlane config` lists them"
                            : "\nsettings that are not at their default");
  for (const Row& row : changed) {
    std::printf("  %s = %s  (%s)\n", row.text("name").c_str(), row.text("value").c_str(),
                row.text("origin").c_str());
  }
}

void print_metrics(Program& program, const Settings& settings) {
  std::string error;
  const auto engine = Engine::open(settings, &error);
  if (!engine.ok()) return program.fail(error.empty() ? engine.status().to_string() : error);
  PrometheusText text;
  (*engine)->visit_metrics(text);
  std::fputs(text.text().c_str(), stdout);
}

}  // namespace

void add_info(CLI::App& app, Program& program) {
  CLI::App* const command =
      app.add_subcommand("info", "what this machine has: devices, transports, why one is missing");
  command->footer(
      "Examples:\n"
      "  kvlane info\n"
      "  kvlane info --json\n"
      "  kvlane info --metrics    the metrics of an engine with these settings");
  struct Flags {
    bool json = false, metrics = false;
    SettingFlags settings;
  };
  const auto flags = std::make_shared<Flags>();
  command->add_flag("--json", flags->json, "one JSON object");
  command->add_flag("--metrics", flags->metrics, "names and help of an engine's metrics");
  std::vector<Setting> rows = engine_settings();
  for (const Setting& row : transport_settings()) rows.push_back(row);
  add_setting_flags(*command, rows, "", flags->settings);
  command->callback([&program, flags] {
    const auto settings = program.settings(flags->settings);
    if (!settings.ok()) return;
    if (flags->metrics) {
      print_metrics(program, *settings);
    } else if (flags->json) {
      print_json(*settings);
    } else {
      print_text(*settings);
    }
  });
}

}  // namespace kvl::tools
