#include "train/build_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>
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
  const auto mine = (std::ssize(all) + communicator.world() - 1) / communicator.world();
  std::int64_t made = 0, tenth = 0;
  const auto take = [&](std::span<const model::StreamSample> samples, const at::Tensor& features) {
    session.cache->keep_after(0, samples, features);
    made += std::ssize(samples);
    if (std::exchange(tenth, 10 * made / mine) == tenth) return;
    const double left = seconds_since(start) * static_cast<double>(mine - made) / static_cast<double>(made);
    say(fmt::format("{} of {} samples, {:.0f} s left", made, mine, std::max(0.0, left)));
  };
  encode_dealt(session, session.cache->features(), all, take, [&] { return !session.cache->has_room(); });
  session.cache->publish(0);
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
