// What every subcommand of kvlane shares: the global options, the settings, the exit status.
#pragma once

#include <CLI/CLI.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvl/config.h"
#include "kvl/status.h"

namespace kvl::tools {

// Values of setting flags given on the command line: (setting name, text), as Settings::Source
// takes them.
using SettingFlags = std::vector<std::pair<std::string, std::string>>;

// Made by main(), handed to each add_<name>(). A subcommand's callback sets exit_status: 0 done,
// 1 it failed (the reason is on standard error), 2 is CLI11's for a wrong command line.
struct Program {
  std::string config_file;  // --config
  int exit_status = 0;

  // All settings of kvlane from the file, the environment and `flags`. On failure the reason is
  // printed and exit_status becomes 1.
  Result<Settings> settings(const SettingFlags& flags);
  // Opens trace.file, if one is set. False: it was told, and exit_status is 1. Before other
  // threads.
  bool start_trace(const Settings& settings, std::string_view process);
  // Prints "kvlane: <sentence>" to standard error and sets exit_status to 1.
  void fail(std::string_view sentence);

 private:
  bool environment_checked_ = false;
};

// One flag per row: "--tcp.lanes". With prefix "router.", rows that start with it also get their
// short form: "--health-check-interval-secs". Booleans may stand without a value. What was given is
// appended to `flags`, which must outlive the parse.
void add_setting_flags(CLI::App& command, std::span<const Setting> rows, std::string_view prefix,
                       SettingFlags& flags);

// For options that are numbers: refuses what is none ("nan") or out of [least, most]. CLI11's
// PositiveNumber takes the first and names a bound of 309 digits for the second.
CLI::Validator number_between(double least, double most);

// Every setting of every component, for `kvlane config` and for reading one file that holds the
// settings of several programs.
std::vector<Setting> all_settings();

}  // namespace kvl::tools
