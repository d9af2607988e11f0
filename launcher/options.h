#pragma once
// Command-line options: cxxopts, with its errors as ours. Include this, never cxxopts itself.

// By default cxxopts cuts `--set a=1,2` at the comma; nobody types this character.
#define CXXOPTS_VECTOR_DELIMITER '\x1f'
#include <cxxopts.hpp>
#include <optional>
#include <string>
#include <vector>

namespace plimsoll {

/// Parses `args` (without the program's and the command's name). Adds `--help`: prints the help to standard output and
/// returns nothing, after which the command returns 0. Throws Error(kUsage) for an unknown option, a missing or
/// mistyped value, and for arguments that no positional of `options` takes.
std::optional<cxxopts::ParseResult> parse_options(cxxopts::Options& options, const std::vector<std::string>& args);

/// The option's value, or Error(kUsage) that says `--name` is missing.
std::string required(const cxxopts::ParseResult& parsed, const std::string& name);

/// All values of an option that may be given many times; none when it was not given.
std::vector<std::string> values(const cxxopts::ParseResult& parsed, const std::string& name);

}  // namespace plimsoll
