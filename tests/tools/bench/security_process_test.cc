// Secrets as an operator meets them: two processes with the same secret, another one, none; and
// that nothing shows a secret: not config, not a command line, not a message.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <iterator>
#include <string>

#include "tests/tools/bench/program.h"

namespace kvl {
namespace {

using test::json_field;
using test::json_number;
using test::Program;

const std::string kSecret = "c2VjcmV0LW9mLXRoZS1wcm9jZXNzLXRlc3Q-never-shown";
const std::string kOther = "YW5vdGhlci1zZWNyZXQtb2YtdGhlLXByb2Nlc3MtdGVzdA==";

// For the programs started while it is alive.
class Environment {
 public:
  Environment(const char* name, const std::string& value) : name_(name) {
    ::setenv(name, value.c_str(), 1);
  }
  ~Environment() { ::unsetenv(name_); }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  const char* const name_;
};

std::string secret_file(const std::string& name, const std::string& secrets) {
  const std::string path = ::testing::TempDir() + "kvlane_" + name + std::to_string(::getpid());
  std::ofstream(path) << secrets << "\n";
  EXPECT_EQ(::chmod(path.c_str(), 0600), 0);
  return path;
}

std::string command_line(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/cmdline");
  return {std::istreambuf_iterator<char>(file), {}};
}

void expect_hidden(const Program& program) {
  EXPECT_EQ(program.output.find(kSecret), std::string::npos);
  EXPECT_EQ(program.errors.find(kSecret), std::string::npos);
}

TEST(SecretProcess, ConfigSaysSetAndNeverWhat) {
  const Environment secret("KVLANE_SECRET", kSecret);
  for (const char* arguments : {"config", "config --json", "info", "info --json"}) {
    Program program(arguments);
    EXPECT_EQ(program.wait(), 0) << program.errors;
    expect_hidden(program);
    EXPECT_NE(program.output.find("KVLANE_SECRET"), std::string::npos) << arguments;
  }
  Program config("config");
  EXPECT_EQ(config.wait(), 0);
  EXPECT_NE(config.output.find("secret = set  (env KVLANE_SECRET)"), std::string::npos)
      << config.output;
}

TEST(SecretProcess, NoFlagTakesASecret) {
  Program flag("config --secret " + kOther);
  EXPECT_EQ(flag.wait(), 2);
  const std::string toml = secret_file("toml", "secret = \"" + kSecret + "\"");
  Program file("--config " + toml + " config");
  EXPECT_EQ(file.wait(), 1);
  EXPECT_NE(file.errors.find("secret_file"), std::string::npos) << file.errors;
  expect_hidden(file);
}

TEST(SecretProcess, ServingOthersNeedsASecretAndSaysSo) {
  for (const char* arguments : {"bench --serve", "bench --serve 0.0.0.0:0"}) {
    Program serve(arguments);
    EXPECT_EQ(serve.wait(), 1);
    EXPECT_NE(serve.errors.find("secret_file"), std::string::npos) << serve.errors;
    EXPECT_NE(serve.errors.find("insecure=true"), std::string::npos) << serve.errors;
  }
  Program insecure("bench --serve --insecure");
  EXPECT_NE(insecure.read_line(), "");
  const std::string path = secret_file("open", kSecret);
  EXPECT_EQ(::chmod(path.c_str(), 0644), 0);
  Program open("bench --serve --secret_file " + path);
  EXPECT_EQ(open.wait(), 1);
  EXPECT_NE(open.errors.find("chmod 600 " + path), std::string::npos) << open.errors;
}

// What an engine would refuse is what the doctor finds: one reader of the file.
TEST(SecretProcess, TheDoctorReadsTheFileAsAnEngineDoes) {
  const std::string path = secret_file("doctored", kSecret);
  Program good("doctor --json --secret_file " + path);
  EXPECT_EQ(good.wait(), 0) << good.output << good.errors;
  EXPECT_NE(good.output.find("closed to others"), std::string::npos) << good.output;
  EXPECT_EQ(::chmod(path.c_str(), 0640), 0);
  Program group("doctor --json --secret_file " + path);
  EXPECT_EQ(group.wait(), 0) << "its group may read it: " << group.output << group.errors;
  EXPECT_EQ(::chmod(path.c_str(), 0644), 0);
  Program open("doctor --json --secret_file " + path);
  EXPECT_EQ(open.wait(), 1);
  EXPECT_NE((open.output + open.errors).find("chmod 600 " + path), std::string::npos)
      << open.output << open.errors;
  expect_hidden(open);
}

// What router and rendezvous would refuse when they start, before they do.
TEST(SecretProcess, TheDoctorTriesTheFilesOfTheHttpPorts) {
  const std::string key = secret_file("key", "not a key"), password = secret_file("etcd", kOther);
  {
    Program quiet("doctor --json");
    EXPECT_EQ(quiet.wait(), 0) << quiet.output << quiet.errors;
    EXPECT_EQ(quiet.output.find("router_port"), std::string::npos) << "nothing said of one";
  }
  {
    const Environment host("KVLANE_ROUTER_HOST", "0.0.0.0");
    Program stranger("doctor --json");
    EXPECT_EQ(stranger.wait(), 1);
    EXPECT_NE(stranger.output.find("router.host is 0.0.0.0"), std::string::npos) << stranger.output;
    Program good("doctor --json --secret_file " + secret_file("http", kSecret));
    EXPECT_EQ(good.wait(), 0) << good.output << good.errors;
    EXPECT_NE(good.output.find("0.0.0.0, plain HTTP"), std::string::npos) << good.output;
  }
  const Environment router("KVLANE_ROUTER_HOST", "127.0.0.1");
  const Environment cert("KVLANE_ROUTER_TLS_CERT_PATH", key + ".none");
  const Environment file("KVLANE_ROUTER_TLS_KEY_PATH", key);
  const Environment host("KVLANE_BOOTSTRAP_HOST", "127.0.0.1");
  const Environment store("KVLANE_BOOTSTRAP_STORE", "etcd");
  const Environment etcd("KVLANE_BOOTSTRAP_ETCD_ENDPOINTS", "http://127.0.0.1:2379");
  const Environment user("KVLANE_BOOTSTRAP_ETCD_USER", "kvlane");
  const Environment pass("KVLANE_BOOTSTRAP_ETCD_PASSWORD_FILE", password);
  {
    Program program("doctor --json");
    EXPECT_EQ(program.wait(), 1);
    EXPECT_NE(program.output.find(key + ".none"), std::string::npos) << program.output;
    EXPECT_NE(program.output.find("name a file that exists"), std::string::npos) << program.output;
    EXPECT_NE(program.output.find("127.0.0.1, plain HTTP"), std::string::npos) << "bootstrap";
  }
  EXPECT_EQ(::chmod(password.c_str(), 0644), 0);
  Program open("doctor --json");
  EXPECT_EQ(open.wait(), 1);
  EXPECT_NE(open.output.find(password), std::string::npos) << open.output;
  EXPECT_NE(open.output.find("chmod 600"), std::string::npos) << open.output;
}

TEST(SecretProcess, TwoProcessesWithTheSameSecretMeetOthersDoNot) {
  const std::string path = secret_file("same", kSecret), wrong = secret_file("other", kOther);
  const std::string log = "--log info ";
  Program serve(log + "bench --serve --encrypt on --secret_file " + path);
  const std::string address = serve.read_line();
  ASSERT_NE(address, "") << serve.errors;
  EXPECT_NE(command_line(serve.pid()).find(path), std::string::npos);
  EXPECT_EQ(command_line(serve.pid()).find(kSecret), std::string::npos);
  {
    Program doctor(log + "doctor " + address + " --require tcp --json --secret_file " + path);
    EXPECT_EQ(doctor.wait(), 0) << doctor.errors;
    EXPECT_EQ(json_field(doctor.output, "authenticated"), "true") << doctor.output;
    EXPECT_EQ(json_field(doctor.output, "encrypted"), "true") << doctor.output;
    expect_hidden(doctor);
  }
  for (const std::string& theirs : {std::string(), " --secret_file " + wrong}) {
    Program doctor(log + "doctor " + address + " --json" + theirs);
    EXPECT_EQ(doctor.wait(), 1);
    EXPECT_NE(doctor.output.find("permission"), std::string::npos) << doctor.output;
    EXPECT_NE(doctor.output.find("secret"), std::string::npos) << doctor.output;
    expect_hidden(doctor);
  }
  serve.signal(SIGINT);
  EXPECT_EQ(serve.wait(), 0) << serve.errors;
  EXPECT_NE(serve.errors.find("control.refused"), std::string::npos) << serve.errors;
  EXPECT_NE(serve.errors.find("wrong_secret"), std::string::npos) << serve.errors;
  EXPECT_NE(serve.errors.find("secret_required"), std::string::npos) << serve.errors;
  expect_hidden(serve);
}

TEST(SecretProcess, ARowShowsEncryptionBesidePlain) {
  const Environment secret("KVLANE_SECRET", kSecret);
  Program bench(
      "bench --transport tcp --op write --pages 64 --page-bytes 64k --arena-bytes 8m"
      " --seconds 0.05 --baselines plain --encrypt on --verify --json");
  ASSERT_EQ(bench.wait(), 0) << bench.errors;
  EXPECT_EQ(json_field(bench.output, "encrypted"), "true") << bench.output;
  EXPECT_EQ(json_number(bench.output, "wrong_bytes"), 0);
  EXPECT_GT(json_number(bench.output, "plain_gb_per_s"), 0) << bench.output;
  EXPECT_GT(json_number(bench.output, "ratio_plain"), 0) << bench.output;
  EXPECT_GT(json_number(bench.output, "auth_us"), 0) << bench.output;
  expect_hidden(bench);
}

}  // namespace
}  // namespace kvl
