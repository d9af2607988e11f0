#pragma once
// The configuration of a run as commands read it: the two options, and the templates behind them instantiated once.

#include <string>
#include <vector>

#include "launcher/options.h"
#include "train/config.h"

namespace plimsoll {

/// Adds `--config` and `--set` to a command's options.
void add_config_options(cxxopts::Options& options);

/// What `--config` (optional here: without it, the defaults) and `--set` say. Throws Error(kUsage) naming what is
/// wrong.
train::Config read_config(const cxxopts::ParseResult& parsed);

/// The same with `path` in place of `--config`.
train::Config read_config(const cxxopts::ParseResult& parsed, const std::string& path);

std::string run_config_reference();
std::string run_config_to_toml(const train::Config& config);

}  // namespace plimsoll
