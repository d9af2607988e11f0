#include "launcher/simulate_run.h"

#include <fmt/format.h>

#include "core/error.h"
#include "core/file.h"
#include "launcher/run_config.h"
#include "train/options.h"

namespace plimsoll {
namespace {

using memory::PolicyKind;

// A file beside the trace; nothing where it is not there.
std::optional<std::string> text_beside(const std::filesystem::path& file) {
  if (!std::filesystem::exists(file)) return std::nullopt;
  return read_file(file);
}

// Takes in what the policy knew; runs of older programs left no such file.
void take_state(const std::filesystem::path& file, TracePolicy& policy) {
  const auto text = text_beside(file);
  if (!text) {
    policy.said += fmt::format("; {} is not there: it knows nothing before the first step", file.string());
    return;
  }
  try {
    policy.state = memory::policy_state_from_json(*text);
  } catch (const Error& error) {
    fail(ExitCode::kData, "{}: {}; or remove the file, and the policy knows nothing before the first step",
         file.string(), error.what());
  }
}

// "the run's own predictive policy", or who chose another.
std::string whose_policy(PolicyKind kind, const std::optional<memory::PolicyConfig>& of_run, bool asked) {
  const std::string name = memory::policy_name(kind);
  if (of_run && of_run->kind == kind) return fmt::format("the run's own {} policy", name);
  if (of_run)
    return fmt::format("the {} policy, as asked; the run's own was {}", name, memory::policy_name(of_run->kind));
  return fmt::format("the {} policy{}; the run's own is not known", name, asked ? ", as asked" : "");
}

std::string whose_settings(const std::filesystem::path& config, bool there, bool used) {
  if (used) return fmt::format("settings of {}", config.string());
  if (there) return "settings of --profile";
  return fmt::format("default settings, since {} is not there (copy it from the run's folder)", config.string());
}

// What is said, and Error(kData) where the predictive policy has nothing to choose from.
std::string take_candidates(const std::filesystem::path& folder, bool of_config, memory::Trace& trace) {
  if (!trace.candidates.empty()) return fmt::format("the {} candidates of the trace", trace.candidates.size());
  const auto file = folder / "candidates.json";
  const auto text = text_beside(file);
  if (!text) {
    fail(ExitCode::kData,
         "{} is not there, from which the predictive policy{} chooses: copy it from the run's folder, or give --policy "
         "reactive",
         file.string(), of_config ? " of the run" : "");
  }
  trace.candidates = memory::read_candidates(*text, file.string());
  return fmt::format("the {} candidates of {}", trace.candidates.size(), file.string());
}

TracePolicy policy_of_run(const cxxopts::ParseResult& parsed, const std::filesystem::path& folder,
                          memory::Trace& trace) {
  const auto config = folder / "config.toml";
  std::optional<memory::PolicyConfig> of_run;
  // Not read where nothing of it is asked for: a run of another version may have settings that this one does not know.
  const bool asked_all = parsed.count("policy") > 0 && parsed.count("profile") > 0;
  if (!asked_all && std::filesystem::exists(config))
    of_run = train::policy_config(read_config(parsed, config.string()));
  const bool has_candidates = !trace.candidates.empty() || std::filesystem::exists(folder / "candidates.json");
  const PolicyKind usual = of_run ? of_run->kind : has_candidates ? PolicyKind::kPredictive : PolicyKind::kReactive;
  const PolicyKind kind = asked_policy(parsed, usual);
  const bool own_settings = of_run && parsed.count("profile") == 0;
  TracePolicy policy{own_settings ? *of_run : default_policy(kind, asked_classic(parsed, false)), {}, ""};
  policy.config.kind = kind;
  policy.said = fmt::format("{}; {}", whose_policy(kind, of_run, parsed.count("policy") > 0),
                            whose_settings(config, of_run.has_value(), own_settings));
  if (kind != PolicyKind::kPredictive) return policy;
  policy.said += "; " + take_candidates(folder, of_run && of_run->kind == kind, trace);
  take_state(folder / "policy.json", policy);
  return policy;
}

}  // namespace

PolicyKind asked_policy(const cxxopts::ParseResult& parsed, PolicyKind otherwise) {
  if (parsed.count("policy") == 0) return otherwise;
  const auto text = parsed["policy"].as<std::string>();
  for (PolicyKind kind : {PolicyKind::kFixed, PolicyKind::kReactive, PolicyKind::kPredictive}) {
    if (text == memory::policy_name(kind)) return kind;
  }
  fail(ExitCode::kUsage, "--policy is \"{}\": write fixed, reactive or predictive", text);
}

bool asked_classic(const cxxopts::ParseResult& parsed, bool otherwise) {
  if (parsed.count("profile") == 0) return otherwise;
  const auto text = parsed["profile"].as<std::string>();
  if (text != "default" && text != "classic")
    fail(ExitCode::kUsage, "--profile is \"{}\": write default or classic", text);
  return text == "classic";
}

memory::PolicyConfig default_policy(PolicyKind kind, bool classic) {
  if (!classic) return memory::default_policy(kind);
  memory::PolicyConfig config = memory::classic_profile();
  config.kind = kind;
  return config;
}

TracePolicy policy_of_trace(const cxxopts::ParseResult& parsed, const std::filesystem::path& file,
                            memory::Trace& trace) {
  if (trace.of_run) return policy_of_run(parsed, file.parent_path(), trace);
  const PolicyKind usual = trace.candidates.empty() ? PolicyKind::kReactive : PolicyKind::kPredictive;
  return {default_policy(asked_policy(parsed, usual), asked_classic(parsed, false)), {}, ""};
}

}  // namespace plimsoll
