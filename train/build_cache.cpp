#include "train/build_cache.h"

#include <fmt/format.h>

#include <chrono>
#include <vector>

#include "core/error.h"
#include "ddp/handshake.h"
#include "train/encode.h"

namespace plimsoll::train {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Samples without images have no features of any.
std::int64_t rows_of(const Session& session, std::int64_t index) {
  const SampleShape shape = session.source.shape_at(index, session.config.data.resolution);
  return session.cache->features() == model::Features::kStates ? shape.tokens : shape.patches;
}

std::vector<std::int64_t> missing(const Session& session) {
  std::vector<std::int64_t> samples;
  for (const std::int64_t index : session.source.training())
    if (rows_of(session, index) > 0 && !session.cache->store().find(index)) samples.push_back(index);
  return samples;
}

}  // namespace

BuiltCache build_cache(Session& session, const std::function<void(const std::string&)>& say) {
  const auto& mode = session.config.cache.mode;
  if (!session.cache)
    fail(ExitCode::kUsage, "cache.mode is \"{}\" here: there is nothing to build; set it to \"prefix\"", mode);
  if (session.cache->ages())
    fail(ExitCode::kUsage,
         "cache.mode = \"{}\" in stage 2: its features age as the adapters learn, and are a run's own; it makes them "
         "in its first epoch",
         mode);
  auto& communicator = session.communicator;
  const auto start = Clock::now();
  const auto all = missing(session);
  std::int64_t made = 0;
  const auto take = [&](std::span<const model::StreamSample> samples, const at::Tensor& features) {
    session.cache->keep_after(0, samples, features);
    made += std::ssize(samples);
  };
  encode_dealt(
      session, session.cache->features(), all, take, [&] { return !session.cache->has_room(); }, say);
  session.cache->publish();
  BuiltCache built;
  for (const std::int64_t index : session.source.training()) built.samples += rows_of(session, index) > 0 ? 1 : 0;
  built.known = built.samples - std::ssize(missing(session));
  const std::vector<std::int64_t> own = {made};
  for (const auto& theirs : ddp::share_numbers(communicator, own)) built.made += theirs.at(0);
  built.seconds = seconds_since(start);
  built.bytes = session.cache->store().bytes();
  built.folder = session.cache->store().folder().string();
  return built;
}

}  // namespace plimsoll::train
