#include "data/lerobot_tasks.h"

#include <fmt/format.h>

#include <utility>

namespace plimsoll::data {

void place_tasks(std::span<const std::int64_t> indices, std::vector<std::string> texts,
                 const std::function<std::string(std::size_t)>& where, LeRobotInfo& out, Faults& faults) {
  out.tasks.resize(texts.size());
  std::vector<bool> seen(texts.size());
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const auto index = static_cast<std::size_t>(indices[i]);  // a negative one is beyond all
    if (index >= texts.size() || seen[index]) {
      faults.add(fmt::format("{} is {}; the indices of {} tasks must be 0 .. {}, each once", where(i), indices[i],
                             texts.size(), texts.size() - 1));
      continue;
    }
    seen[index] = true;
    out.tasks[index] = std::move(texts[i]);
  }
}

}  // namespace plimsoll::data
