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

std::vector<std::int64_t> missing(const Session& session) {
  std::vector<std::int64_t> samples;
  for (const std::int64_t index : session.source.training())
    if (!session.cache->store().find(index)) samples.push_back(index);
  return samples;
}

}  // namespace

BuiltCache build_cache(Session& session, const std::function<void(const std::string&)>& say) {
  const auto& mode = session.config.cache.mode;
  if (!session.cache)
    fail(ExitCode::kUsage, "cache.mode = \"{}\": there is nothing to build; set it to \"prefix\"", mode);
  if (session.cache->ages())
    fail(ExitCode::kUsage,
         "cache.mode = \"{}\" in stage 2: its features age as the adapters learn, and are a run's own; it makes them "
         "in its first epoch",
         mode);
  auto& communicator = session.communicator;
  const auto start = Clock::now();
  const auto all = missing(session);
  const auto count = std::ssize(all);
  const int rank = communicator.rank(), world = communicator.world();
  const std::vector<std::int64_t> mine(all.begin() + count * rank / world, all.begin() + count * (rank + 1) / world);
  std::int64_t made = 0, tenth = 0;
  encode(session, session.cache->features(), mine,
         [&](std::span<const model::StreamSample> samples, const at::Tensor& features) {
           session.cache->keep_after(0, samples, features);
           made += std::ssize(samples);
           const std::int64_t now = 10 * made / std::ssize(mine);
           if (now == tenth) return;
           tenth = now;
           const double left = seconds_since(start) * static_cast<double>(std::ssize(mine) - made) /
                               static_cast<double>(made);
           say(fmt::format("{} of {} samples, {:.0f} s left", made, mine.size(), left));
         });
  communicator.barrier();  // what the others have made is on the disk
  session.cache->publish(0);
  BuiltCache built;
  built.samples = std::ssize(session.source.training());
  built.known = built.samples - std::ssize(missing(session));
  const std::vector<std::int64_t> own = {made};
  for (const auto& theirs : ddp::share_numbers(communicator, own)) built.made += theirs.at(0);
  built.seconds = seconds_since(start);
  built.bytes = session.cache->store().bytes();
  built.folder = session.cache->store().folder().string();
  return built;
}

}  // namespace plimsoll::train
