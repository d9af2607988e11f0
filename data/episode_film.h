#pragma once
// Pictures of episodes at the demo's table, for people.

#include <span>
#include <string>

#include "data/closed_loop.h"

namespace plimsoll::data {

/// One picture: a row for each episode that has a film: a bar that is green for a success and red for a failure, one in
/// the named pad's colour, then the table from above at up to eight moments, the first and the last among them.
Image film_strip(std::span<const EpisodeOutcome> episodes);

/// Writes `path`, an H.264 video of the episodes that have a film, one after another: the table from above beside the
/// camera at the gripper, between them a bar in the named pad's colour. An episode's last moment stays for a second, in
/// a frame that is green for a success and red for a failure. Throws Error(kData) naming the file when it cannot be
/// written.
void write_film(const std::string& path, std::span<const EpisodeOutcome> episodes, int fps);

}  // namespace plimsoll::data
