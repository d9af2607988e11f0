#include "report/plots.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <iterator>

#include "report/shown_text.h"

namespace plimsoll::report {
namespace {

constexpr std::size_t kMostPoints = 1500;  // more than a picture has columns
constexpr std::size_t kMostMarks = 200;
constexpr std::size_t kMostTasks = 12;  // more lines cannot be told apart
constexpr int kPanelHeight = 260;
constexpr double kMiB = 1 << 20;

/// Some steps that are drawn as one point.
struct Point {
  Stretch steps;
  std::optional<double> smoothed, lr, vl_lr;
  std::optional<double> drift, age;  ///< of cached features, as last known
};

/// The moving mean after each step; none before the first loss.
std::vector<std::optional<double>> smoothed_losses(const RunStreams& run, std::int64_t window) {
  std::vector<double> losses;
  std::vector<std::size_t> count;  // of losses up to each step
  for (const StepLine& step : run.steps) {
    if (step.loss && !step.skipped) losses.push_back(*step.loss);
    count.push_back(losses.size());
  }
  const auto means = moving_mean(losses, window);
  std::vector<std::optional<double>> smoothed;
  for (const std::size_t n : count) smoothed.push_back(n > 0 ? std::optional(means[n - 1]) : std::nullopt);
  return smoothed;
}

/// What the newest record up to a step has there; nothing before the first. Records are in the order of their steps.
template <class Record, class Value>
std::optional<double> newest(const std::vector<Record>& records, std::int64_t step, Value Record::*value) {
  const auto after = std::upper_bound(records.begin(), records.end(), step,
                                      [](std::int64_t at, const Record& record) { return at < record.step; });
  return after == records.begin() ? std::nullopt : std::optional<double>((*std::prev(after)).*value);
}

std::vector<Point> points_of(const RunStreams& run, const RunSummary& summary) {
  const auto smoothed = smoothed_losses(run, summary.trend ? summary.trend->window : 1);
  const std::size_t size = run.steps.size(), stride = (size + kMostPoints - 1) / kMostPoints;
  std::vector<Point> points;
  for (std::size_t begin = 0; begin < size; begin += stride) {
    const std::size_t end = std::min(size, begin + stride);
    const StepLine& last = run.steps[end - 1];
    points.push_back({summarise(std::span(run.steps).subspan(begin, end - begin)), smoothed[end - 1], last.lr,
                      last.vl_lr, newest(run.drift, last.step, &DriftRecord::drift),
                      newest(run.cache_use, last.step, &CacheUseRecord::age)});
  }
  return points;
}

/// A line of a panel: where its values come from.
struct Curve {
  std::string title, style;
  std::function<std::optional<double>(const Point&)> value;
};

struct Panel {
  const char* title;
  std::vector<Curve> curves;
  bool with_plan_changes = false;
};

bool says_something(const Curve& curve, const std::vector<Point>& points) {
  return std::any_of(points.begin(), points.end(), [&](const Point& point) { return curve.value(point).has_value(); });
}

/// gnuplot gives up on a curve without a single value: such curves, and panels of nothing else, are left out.
std::vector<Panel> drawable(std::vector<Panel> panels, const std::vector<Point>& points) {
  for (Panel& panel : panels) {
    std::erase_if(panel.curves, [&](const Curve& curve) { return !says_something(curve, points); });
  }
  std::erase_if(panels, [](const Panel& panel) { return panel.curves.empty(); });
  return panels;
}

std::string number_text(const std::optional<double>& value) { return value ? fmt::format("{:.9g}", *value) : "NaN"; }

/// The panel's values: a row a point, the step first.
std::string data_block(const std::string& name, const Panel& panel, const std::vector<Point>& points) {
  std::string text = fmt::format("{} << EOD\n", name);
  for (const Point& point : points) {
    text += std::to_string(point.steps.last_step);
    for (const Curve& curve : panel.curves) text += " " + number_text(curve.value(point));
    text += "\n";
  }
  return text + "EOD\n";
}

std::string plan_change_marks(const RunSummary& summary) {
  std::string text;
  const std::size_t size = summary.plan_changes.size();
  for (std::size_t i = size - std::min(size, kMostMarks); i < size; ++i) {
    const std::int64_t step = summary.plan_changes[i].step;
    text += fmt::format("set arrow from {0}.5, graph 0 to {0}.5, graph 1 nohead dashtype 3 linecolor rgb '#888888'\n",
                        step);
  }
  return text;
}

std::string panel_text(const Panel& panel, int number, const std::vector<Point>& points, const RunSummary& summary) {
  const std::string data = fmt::format("$panel{}", number);
  std::string text = data_block(data, panel, points);
  const bool marked = panel.with_plan_changes && !summary.plan_changes.empty();
  if (marked) text += plan_change_marks(summary);
  text += fmt::format("set title {}\nplot ", quoted(panel.title));
  for (std::size_t i = 0; i < panel.curves.size(); ++i) {
    text += fmt::format("{}{} using 1:{} with lines {} title {}", i == 0 ? "" : ", ", data, i + 2,
                        panel.curves[i].style, quoted(panel.curves[i].title));
  }
  if (marked) text += ", NaN with lines dashtype 3 linecolor rgb '#888888' title 'plan changes'";
  return text + "\nunset arrow\n";
}

std::string head(std::size_t panels, const RunSummary& summary) {
  return fmt::format(
      "set encoding utf8\n"
      "set terminal pngcairo noenhanced size 1000,{} font 'sans,10' background rgb '#ffffff'\n"
      "set multiplot layout {},1\n"
      "set grid\nset key outside right top width 1 noenhanced\nset lmargin 12\nset rmargin 28\n"
      "set xrange [{}:{}]\n",
      kPanelHeight * static_cast<int>(panels), panels, static_cast<double>(summary.steps.first_step) - 0.5,
      static_cast<double>(summary.steps.last_step) + 0.5);
}

/// The fraction of the budget that the policy aimed at; the last decision knows.
std::optional<double> target_of(const RunStreams& run) {
  if (run.decisions.empty() || run.decisions.back().target <= 0) return std::nullopt;
  return run.decisions.back().target;
}

Panel memory_panel(const RunStreams& run) {
  const auto budget = [](const Point& point) -> std::optional<double> {
    if (!point.steps.worst || point.steps.worst->budget == 0) return std::nullopt;
    return static_cast<double>(point.steps.worst->budget) / kMiB;
  };
  const auto peak = [](const Point& point) -> std::optional<double> {
    if (!point.steps.worst) return std::nullopt;
    return static_cast<double>(point.steps.worst->peak) / kMiB;
  };
  const auto target = [budget, part = target_of(run)](const Point& point) -> std::optional<double> {
    const auto whole = budget(point);
    return whole && part ? std::optional(*whole * *part) : std::nullopt;
  };
  return {"memory of the rank nearest to its budget, MiB",
          {{"peak", "linecolor rgb '#1f77b4'", peak},
           {"budget", "linewidth 2 linecolor rgb '#d62728'", budget},
           {"target", "dashtype 2 linecolor rgb '#d62728'", target}},
          true};
}

std::vector<Panel> training_panels(const RunStreams& run, const RunSummary& summary) {
  const std::string mean = fmt::format("mean of {} steps", summary.trend ? summary.trend->window : 1);
  return {{"loss",
           {{"loss", "linecolor rgb '#9ecae1'", [](const Point& point) { return point.steps.loss.mean(); }},
            {mean, "linewidth 2 linecolor rgb '#1f77b4'", [](const Point& point) { return point.smoothed; }}}},
          {"learning rates",
           {{"expert and sensor", "linecolor rgb '#1f77b4'", [](const Point& point) { return point.lr; }},
            {"adapters", "linecolor rgb '#ff7f0e'", [](const Point& point) { return point.vl_lr; }}}},
          {"speed, samples/s",
           {{"computing and waiting", "linecolor rgb '#2ca02c'",
             [](const Point& point) { return point.steps.samples_per_second; }}}},
          memory_panel(run),
          {"drift of cached features, relative L2",
           {{"probe samples", "linecolor rgb '#9467bd'", [](const Point& point) { return point.drift; }}}},
          {"age of cached features, steps",
           {{"mean of an epoch", "linecolor rgb '#8c564b'", [](const Point& point) { return point.age; }}}}};
}

/// The tasks that are drawn: those that ever had a loss, by name.
std::vector<std::string> tasks_to_draw(const RunSummary& summary) {
  std::vector<std::string> names;
  for (const auto& [name, task] : summary.steps.tasks) {
    if (task.mean_loss && names.size() < kMostTasks) names.push_back(name);
  }
  return names;
}

Panel task_panel(const std::vector<std::string>& names) {
  Panel panel{"loss of each task", {}};
  for (const std::string& name : names) {
    panel.curves.push_back({on_one_line(name, 24), "linewidth 1.5", [name](const Point& point) {
                              const auto task = point.steps.tasks.find(name);
                              return task == point.steps.tasks.end() ? std::nullopt : task->second.mean_loss;
                            }});
  }
  return panel;
}

using Bars = std::vector<std::optional<double>>;

std::string bars_text(const char* title, int number, const std::vector<std::string>& names, const Bars& heights) {
  std::string text = fmt::format("$bars{} << EOD\n", number), labels;
  for (std::size_t i = 0; i < names.size(); ++i) {
    text += fmt::format("{} {}\n", i, number_text(heights[i]));
    labels += fmt::format("{}{} {}", i == 0 ? "" : ", ", quoted(on_one_line(names[i], 96 / names.size())), i);
  }
  return text + fmt::format(
                    "EOD\nset title {}\nset xtics ({})\nset xrange [-0.6:{}]\nset yrange [0:*]\nset boxwidth 0.7\n"
                    "plot $bars{} using 1:2 with boxes fillstyle solid 0.6 linecolor rgb '#1f77b4' notitle\n",
                    quoted(title), labels, static_cast<double>(names.size()) - 0.4, number);
}

/// Of the last tenth of the steps, at least one.
Stretch ending(const RunStreams& run) {
  const std::size_t size = run.steps.size(), part = std::max<std::size_t>(1, size / 10);
  return summarise(std::span(run.steps).last(part));
}

bool any_height(const Bars& heights) {
  return std::any_of(heights.begin(), heights.end(), [](const auto& height) { return height.has_value(); });
}

}  // namespace

std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : on_one_line(text, 200)) {
    if (c == '\'') result += "''";
    if (c != '\'') result += c;
  }
  return result + "'";
}

std::string training_curves_script(const RunStreams& run, const RunSummary& summary) {
  const auto points = points_of(run, summary);
  const auto panels = drawable(training_panels(run, summary), points);
  if (panels.empty()) return "";
  std::string text = head(panels.size(), summary);
  int number = 0;
  for (const Panel& panel : panels) text += panel_text(panel, number++, points, summary);
  return text + "unset multiplot\n";
}

std::string task_comparison_script(const RunStreams& run, const RunSummary& summary) {
  const auto names = tasks_to_draw(summary);
  if (names.size() < 2) return "";
  const Stretch last = ending(run);
  Bars losses, counts, bytes;
  for (const std::string& name : names) {
    const auto task = last.tasks.find(name);
    losses.push_back(task == last.tasks.end() ? std::nullopt : task->second.mean_loss);
    const TaskSummary& whole = summary.steps.tasks.at(name);
    const auto a_sample = whole.measured_a_sample();
    counts.push_back(whole.samples ? std::optional(static_cast<double>(*whole.samples)) : std::nullopt);
    bytes.push_back(a_sample ? std::optional(static_cast<double>(*a_sample) / kMiB) : std::nullopt);
  }
  std::string bars;
  std::size_t panels = 1;
  if (any_height(losses)) bars += bars_text("mean loss over the last tenth of the steps", 0, names, losses), ++panels;
  if (any_height(counts)) bars += bars_text("samples", 1, names, counts), ++panels;
  if (any_height(bytes)) bars += bars_text("activations a sample, MiB", 2, names, bytes), ++panels;
  const auto points = points_of(run, summary);
  return head(panels, summary) + panel_text(task_panel(names), 0, points, summary) + bars + "unset multiplot\n";
}

}  // namespace plimsoll::report
