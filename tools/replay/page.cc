// The replay as one HTML page with inline SVG: no script, no outside resource.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tools/replay/outcome.h"

namespace kvl::replay {
namespace {

constexpr double kWidth = 640, kHeight = 260, kLeft = 62, kBottom = 34, kTop = 14, kRight = 16;

std::string escape(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '&')
      out += "&amp;";
    else
      out += c;
  }
  return out;
}

// One axis: data to pixels, linear or by decades.
struct Axis {
  double low = 0, high = 1, from = 0, to = 1;
  bool decades = false;
  double at(double value) const {
    const auto shape = [this](double v) { return decades ? std::log10(std::max(v, low)) : v; };
    const double span = shape(high) - shape(low);
    return from + (to - from) * (span > 0 ? (shape(value) - shape(low)) / span : 0);
  }
  std::vector<double> ticks() const {
    std::vector<double> all;
    if (decades) {
      for (double v = low; v <= high * 1.0001; v *= 10) all.push_back(v);
      return all;
    }
    const double raw = (high - low) / 5;
    const double power = std::pow(10, std::floor(std::log10(std::max(raw, 1e-12))));
    double step = power;
    for (const double factor : {1.0, 2.0, 5.0, 10.0}) {
      step = factor * power;
      if (step >= raw) break;
    }
    for (double v = std::ceil(low / step) * step; v <= high * 1.0001; v += step) all.push_back(v);
    return all;
  }
};

std::string frame(const std::string& title, const Axis& x, const Axis& y, const std::string& x_name,
                  const std::string& y_name, const std::string& content) {
  std::string out = fmt::format(
      "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {} {}\" role=\"img\" "
      "aria-label=\"{}\">\n",
      escape(title), kWidth, kHeight, escape(title));
  for (const double v : y.ticks()) {
    out += fmt::format(
        "<line class=\"grid\" x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>"
        "<text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{:g}</text>\n",
        kLeft, kWidth - kRight, y.at(v), y.at(v), kLeft - 6, y.at(v) + 4, v);
  }
  for (const double v : x.ticks()) {
    out += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{:g}</text>\n", x.at(v),
                       kHeight - kBottom + 16, v);
  }
  out += fmt::format(
      "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>"
      "<text transform=\"translate(14 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
      (kLeft + kWidth) / 2, kHeight - 4, escape(x_name), kHeight / 2, escape(y_name));
  return out + content + "</svg></figure>\n";
}

std::string distribution(const std::string& title, const std::string& x_name,
                         std::vector<double> ttft, std::vector<double> transfer) {
  double low = 1e9, high = 0;
  for (const std::vector<double>* values : {&ttft, &transfer}) {
    for (const double v : *values) {
      if (v > 0) low = std::min(low, v);
      high = std::max(high, v);
    }
  }
  if (high <= 0) return "";
  const Axis x{std::pow(10, std::floor(std::log10(std::max(low, 0.01)))),
               std::pow(10, std::ceil(std::log10(std::max(high, 0.1)))), kLeft, kWidth - kRight,
               true};
  const Axis y{0, 100, kHeight - kBottom, kTop, false};
  std::string content;
  int series = 0;
  for (std::vector<double>* values : {&ttft, &transfer}) {
    std::sort(values->begin(), values->end());
    std::string points;
    for (std::size_t i = 0; i < values->size(); ++i) {
      points += fmt::format(
          "{:.1f},{:.1f} ", x.at((*values)[i]),
          y.at(100.0 * static_cast<double>(i + 1) / static_cast<double>(values->size())));
    }
    const char* const name = series == 0 ? "time to first token" : "exposed KV transfer";
    content += fmt::format(
        "<polyline class=\"s{}\" points=\"{}\"/><text class=\"k{}\" x=\"{}\" y=\"{}\">{}</text>\n",
        series, points, series, kLeft + 8, kTop + 12 + 16 * series, name);
    ++series;
  }
  return frame(title, x, y, x_name, "% of requests", content);
}

std::string over_time(const std::vector<Outcome>& outcomes, double seconds) {
  const auto bins = static_cast<std::size_t>(std::clamp(seconds, 24.0, 120.0));
  std::vector<double> gb(bins, 0);
  const double width_s = seconds / static_cast<double>(bins);
  for (const Outcome& o : outcomes) {
    if (!o.ended || seconds <= 0) continue;
    const auto bin = std::min(bins - 1, static_cast<std::size_t>(o.end_s / width_s));
    gb[bin] += static_cast<double>(o.bytes) / 1e9 / width_s;
  }
  const double most = *std::max_element(gb.begin(), gb.end());
  if (most <= 0) return "";
  const Axis x{0, seconds, kLeft, kWidth - kRight, false};
  const Axis y{0, most * 1.05, kHeight - kBottom, kTop, false};
  std::string content;
  for (std::size_t i = 0; i < bins; ++i) {
    const double left = x.at(width_s * static_cast<double>(i));
    const double right = x.at(width_s * static_cast<double>(i + 1));
    content += fmt::format(
        "<rect class=\"bar\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\"/>\n",
        left + 0.5, y.at(gb[i]), std::max(right - left - 1, 0.5), y.at(0) - y.at(gb[i]));
  }
  return frame("KV moved, by the time the request ended", x, y, "seconds", "GB/s", content);
}

}  // namespace

std::string to_html(const Summary& summary, const Setup& setup,
                    const std::vector<Outcome>& outcomes) {
  std::vector<double> ttft, transfer;
  for (const Outcome& o : outcomes) {
    if (!o.ok) continue;
    ttft.push_back((o.first_s - o.sent_s) * 1000);
    transfer.push_back(o.transfer_ms);
  }
  return "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>kvlane "
         "replay</title><style>"
         "body{font:15px/1.5 system-ui,sans-serif;max-width:720px;margin:2rem auto;padding:0 1rem;"
         "color:#1b1f24;background:#fff}pre{background:#f4f5f7;padding:1rem;white-space:pre-wrap}"
         "figure{margin:1.5rem "
         "0}figcaption{font-weight:600;margin-bottom:.3rem}svg{width:100%;overflow:visible}"
         "text{font:11px system-ui,sans-serif;fill:#57606a}.grid{stroke:#d8dee4}"
         "polyline{fill:none;stroke-width:2}.s0{stroke:#0b6bcb}.s1{stroke:#c2410c}"
         ".k0{fill:#0b6bcb}.k1{fill:#c2410c}.bar{fill:#0b6bcb}</style>"
         "<h1>kvlane replay</h1><pre>" +
         escape(to_text(summary, setup)) + "</pre>\n" +
         distribution("How long requests waited", "milliseconds", ttft, transfer) +
         over_time(outcomes, summary.seconds) + "</html>\n";
}

}  // namespace kvl::replay
