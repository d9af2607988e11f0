#include "data/closed_loop.h"

#include <deque>
#include <utility>

#include "core/error.h"

namespace plimsoll::data {
namespace {

void check(const ClosedLoopOptions& options) {
  const auto at_least_one = [](std::int64_t value, const char* what) {
    if (value < 1) fail(ExitCode::kUsage, "{} {} were asked for; it must be at least 1", value, what);
  };
  at_least_one(options.episodes, "episodes");
  at_least_one(options.max_steps, "steps of an episode");
  at_least_one(options.at_once, "episodes at once");
}

struct Episode {
  Episode(const ClosedLoopOptions& options, std::int64_t which)
      : number(which),
        most_steps(options.max_steps),
        filmed(which < options.filmed),
        blind(options.blind),
        table(options.table),
        actions({Tabletop::kActionDim, options.replan, options.ensemble_decay}) {
    outcome.scene = kFirstUnseenScene + which;
    table.reset(outcome.scene);
    outcome.task = table.task();
    outcome.goal_colour = table.goal_colour();
  }

  void look() {
    if (blind && !filmed) return;
    TabletopObservation seen = table.observe();
    if (filmed) outcome.film.push_back(seen);
    if (blind) return;
    if (!frames.empty()) frames.back().images.clear();
    frames.push_back(demo_frame(std::move(seen)));
  }

  void act() {
    table.step(actions.next());
    ++outcome.steps;
    outcome.reached |= table.success();
    outcome.success = table.grasped();
    over = outcome.success || outcome.steps >= most_steps;
    if (over && filmed) outcome.film.push_back(table.observe());
  }

  std::int64_t number, most_steps;
  bool filmed, blind, over = false;
  Tabletop table;
  std::vector<Frame> frames;
  ActionChunks actions;
  EpisodeOutcome outcome;
};

void ask(std::deque<Episode>& running, const PredictChunks& predict) {
  std::vector<PolicyQuery> queries;
  std::vector<ActionChunks*> asking;
  for (Episode& episode : running) {
    if (!episode.actions.wants_chunk()) continue;
    queries.push_back({episode.number, episode.outcome.steps, episode.frames, &episode.table});
    asking.push_back(&episode.actions);
  }
  if (queries.empty()) return;
  auto chunks = predict(queries);
  if (chunks.size() != queries.size())
    fail(ExitCode::kUsage, "a policy gave {} chunks where it was asked for {}", chunks.size(), queries.size());
  for (std::size_t i = 0; i < asking.size(); ++i) asking[i]->add(std::move(chunks[i]));
}

}  // namespace

std::vector<EpisodeOutcome> run_closed_loop(const ClosedLoopOptions& options, const PredictChunks& predict) {
  check(options);
  std::vector<EpisodeOutcome> outcomes(static_cast<std::size_t>(options.episodes));
  std::deque<Episode> running;
  std::int64_t begun = 0;
  while (begun < options.episodes || !running.empty()) {
    while (begun < options.episodes && std::ssize(running) < options.at_once) running.emplace_back(options, begun++);
    for (Episode& episode : running) episode.look();
    ask(running, predict);
    for (Episode& episode : running) {
      episode.act();
      if (episode.over) outcomes[static_cast<std::size_t>(episode.number)] = std::move(episode.outcome);
    }
    std::erase_if(running, [](const Episode& episode) { return episode.over; });
  }
  return outcomes;
}

std::vector<std::vector<float>> expert_chunks(std::span<const PolicyQuery> queries) {
  std::vector<std::vector<float>> chunks;
  for (const PolicyQuery& query : queries) {
    const auto action = query.table->expert_action();
    chunks.emplace_back(action.begin(), action.end());
  }
  return chunks;
}

}  // namespace plimsoll::data
