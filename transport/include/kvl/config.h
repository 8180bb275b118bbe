// Settings: one row per setting, owned by the component it configures; read once, passed down.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kvl/status.h"

namespace kvl {

// One setting. The default lives in the owner's struct (the member initialiser); the row adds its
// name, unit, range and help. `alias` is an extra environment variable (for example MC_FORCE_TCP).
struct Setting {
  std::string_view name;    // "tcp.lanes": file key; environment KVLANE_TCP_LANES; flag --tcp.lanes
  std::string_view unit;    // "bytes", "ms", "" for plain numbers
  double min = 0, max = 0;  // numbers: inclusive range. min == max: no range
  std::string_view help;
  std::string_view alias;
  Status (*parse)(const Setting& row, std::string_view text,
                  void* owner_struct);  // null: check only
  std::string (*fallback)();            // the default as text
  const void* owner = nullptr;  // names the struct, so that read() leaves others' rows alone
  bool secret = false;  // comes from the environment only, and value() says no more than "set"
};

namespace detail {
Status parse_value(const Setting&, std::string_view, bool&);
Status parse_value(const Setting&, std::string_view, std::int64_t&);
Status parse_value(const Setting&, std::string_view, double&);
Status parse_value(const Setting&, std::string_view, std::string&);
std::string print_value(bool);
std::string print_value(std::int64_t);
std::string print_value(double);
std::string print_value(const std::string&);
template <typename T>
struct MemberOf;
template <typename S, typename F>
struct MemberOf<F S::*> {
  using Struct = S;
  using Field = F;
};
template <typename S>
inline const char kOwner = 0;
template <typename F>
using Wire = std::conditional_t<
    std::is_same_v<F, bool>, bool,
    std::conditional_t<std::is_integral_v<F>, std::int64_t,
                       std::conditional_t<std::is_floating_point_v<F>, double, std::string>>>;
}  // namespace detail

// setting<&TcpConfig::lanes>("tcp.lanes", "", 1, 64, "connections per peer")
template <auto Member>
Setting setting(std::string_view name, std::string_view unit, double min, double max,
                std::string_view help, std::string_view alias = {}) {
  using Struct = typename detail::MemberOf<decltype(Member)>::Struct;
  using Field = typename detail::MemberOf<decltype(Member)>::Field;
  Setting row{name, unit, min, max, help, alias, nullptr, nullptr};
  row.parse = [](const Setting& self, std::string_view text, void* owner) -> Status {
    detail::Wire<Field> value{};
    KVL_TRY(detail::parse_value(self, text, value));
    if (owner != nullptr) static_cast<Struct*>(owner)->*Member = static_cast<Field>(value);
    return {};
  };
  row.owner = &detail::kOwner<Struct>;
  row.fallback = [] { return detail::print_value(detail::Wire<Field>(Struct{}.*Member)); };
  return row;
}

// The values in force and where each came from. Order: default < file < environment < flag.
// Booleans accept 1/true/yes/on and 0/false/no/off in any case; anything else is an error.
// Sizes accept k, m, g (powers of 1024). Immutable after load(); safe to read from any thread.
// Names in the environment that begin with KVLANE_ and belong to none of `rows`: misspelt, most
// likely.
std::vector<std::string> unknown_variables(std::span<const Setting> rows);

class Settings {
 public:
  struct Source {
    std::string file;         // "" none. TOML; tables become dotted names
    bool environment = true;  // read KVLANE_* and aliases
    std::vector<std::pair<std::string, std::string>> flags;  // name, value
  };
  struct Value {
    std::string text;
    std::string origin;  // "default", "file kvlane.toml", "env KVLANE_TCP_LANES", "flag"
  };

  // Fails on an unknown key, a value out of range, or two sources that contradict each other where
  // the row forbids it. `error` (optional) receives the full sentence.
  static Result<Settings> load(std::vector<Setting> rows, const Source& source,
                               std::string* error = nullptr);

  // Fills the fields of Struct that `rows` describes; rows of other structs may be among them. Rows
  // that were never loaded keep the struct's default (so tests may use a default Settings).
  template <typename Struct>
  Struct read(std::span<const Setting> rows) const {
    Struct owner{};
    for (const Setting& row : rows) {
      if (row.owner == &detail::kOwner<Struct>) apply(row, &owner);
    }
    return owner;
  }
  const std::vector<Setting>& rows() const { return rows_; }
  // Text "" and origin "" when unknown; "set" for a secret that is there.
  Value value(std::string_view name) const;

 private:
  void apply(const Setting& row, void* owner) const;
  std::vector<Setting> rows_;
  std::map<std::string, Value, std::less<>> values_;
  std::map<std::string, std::string, std::less<>> secrets_;  // what values_ only calls "set"
};

}  // namespace kvl
