#include "train/encode.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "core/error.h"

namespace plimsoll::train {

void encode(Session& session, model::Features which, std::span<const std::int64_t> indices,
            const std::function<void(std::span<const model::StreamSample> samples, const at::Tensor& features)>& take) {
  const auto rules = session.model->packing_rules(static_cast<std::uint64_t>(session.config.run.seed), true);
  const std::int64_t resolution = session.plan.resolution;
  std::vector<Sample> loaded;
  std::vector<model::StreamSample> samples;
  const auto attempt = [&](memory::Piece piece) {
    loaded.clear();
    samples.clear();
    for (std::size_t i = 0; i < piece.count; ++i)
      loaded.push_back(session.source.load_at(indices[piece.begin + i], resolution));
    for (const Sample& sample : loaded) samples.push_back({&sample, 0});
    take(samples, session.model->encode(model::pack(samples, rules, session.device.place), which));
  };
  const auto predicted = [&](memory::Piece piece, std::int64_t room) {
    memory::MicroBatchShape total{static_cast<std::int64_t>(piece.count)};
    for (std::size_t i = 0; i < piece.count; ++i)
      total += session.source.shape_at(indices[piece.begin + i], resolution);
    return session.encode_predictor->attempt_bytes(total, {}, room);
  };
  // Fewer where memory says so; more than a step takes at once would need more scratch than the workspace has.
  const auto most =
      static_cast<std::size_t>(std::clamp<std::int64_t>(session.share, 1, session.config.batch.max_micro));
  memory::Guardian guardian(session.meter);
  const auto discard = [&] {
    if (session.cache) session.cache->discard();
  };
  const auto give_up = [&] { return session.cache ? session.cache->give_up_device() : 0; };
  const auto report = guardian.run(indices.size(), most, {attempt, discard, predicted, nullptr, give_up});
  if (report.failed)
    fail(ExitCode::kMemory,
         "feature cache: sample {} does not fit alone: {}; raise memory.budget or lower data.resolution",
         indices[report.failed_sample], report.error);
}

void encode_dealt(Session& session, model::Features which, std::span<const std::int64_t> samples,
                  const std::function<void(std::span<const model::StreamSample>, const at::Tensor&)>& take,
                  const std::function<bool()>& enough, const std::function<void(const std::string&)>& say) {
  auto& communicator = session.communicator;
  const auto start = std::chrono::steady_clock::now();
  const auto world = static_cast<std::size_t>(communicator.world());
  const std::size_t round = world * static_cast<std::size_t>(std::max<std::int64_t>(1, session.share));
  std::size_t tenth = 0;
  for (std::size_t begin = 0; begin < samples.size(); begin += round) {
    const auto now = samples.subspan(begin, std::min(round, samples.size() - begin));
    std::vector<std::int64_t> mine;
    for (auto i = static_cast<std::size_t>(communicator.rank()); i < now.size(); i += world) mine.push_back(now[i]);
    if (!mine.empty() && !enough()) encode(session, which, mine, take);
    communicator.barrier();
    const std::size_t done = begin + now.size(), tenths = 10 * done / samples.size();
    if (std::exchange(tenth, tenths) == tenths) continue;
    const double spent = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    say(fmt::format("features of {} of {} samples, {:.0f} s left", done, samples.size(),
                    spent * static_cast<double>(samples.size() - done) / static_cast<double>(done)));
  }
}

}  // namespace plimsoll::train
