#include "data/episode_film.h"

#include <algorithm>
#include <array>

#include "data/video_writer.h"

namespace plimsoll::data {
namespace {

using Colour = std::array<std::uint8_t, 3>;
constexpr Colour kPaper{255, 255, 255}, kGood{40, 150, 60}, kBad{200, 40, 40};
constexpr std::int64_t kStripSide = 168, kStripGap = 4, kStripBar = 12, kMoments = 8;
constexpr std::int64_t kFilmSide = 336, kFilmFrame = 8;

const Colour& colour_of(const EpisodeOutcome& episode) { return episode.success ? kGood : kBad; }

Image blank(std::int64_t height, std::int64_t width, const Colour& colour) {
  Image image{height, width, std::vector<std::uint8_t>(static_cast<std::size_t>(height * width * 3))};
  for (std::size_t i = 0; i < image.pixels.size(); ++i) image.pixels[i] = colour[i % 3];
  return image;
}

/// Puts `picture` into a square of `side` pixels at (row, column), each pixel that of the picture's nearest.
void paste(Image& onto, const Image& picture, std::int64_t row, std::int64_t column, std::int64_t side) {
  for (std::int64_t y = 0; y < side; ++y) {
    for (std::int64_t x = 0; x < side; ++x) {
      const std::int64_t from = (y * picture.height / side * picture.width + x * picture.width / side) * 3;
      const std::int64_t to = ((row + y) * onto.width + column + x) * 3;
      std::copy_n(picture.pixels.begin() + from, 3, onto.pixels.begin() + to);
    }
  }
}

struct Rectangle {
  std::int64_t row = 0, column = 0, height = 0, width = 0;
};

void fill(Image& image, const Colour& colour, const Rectangle& where) {
  for (std::int64_t y = where.row; y < where.row + where.height; ++y) {
    for (std::int64_t x = where.column; x < where.column + where.width; ++x)
      std::ranges::copy(colour, image.pixels.begin() + (y * image.width + x) * 3);
  }
}

/// Numbers of the moments that a strip shows, of so many.
std::vector<std::size_t> shown_moments(std::size_t moments) {
  std::vector<std::size_t> shown;
  const std::size_t count = std::min<std::size_t>(moments, kMoments);
  for (std::size_t i = 0; i < count; ++i) shown.push_back(count == 1 ? 0 : i * (moments - 1) / (count - 1));
  return shown;
}

Image film_frame(const TabletopObservation& seen, const Colour& goal, const Colour& around) {
  Image image = blank(kFilmSide + 2 * kFilmFrame, 2 * kFilmSide + 3 * kFilmFrame, around);
  paste(image, seen.top, kFilmFrame, kFilmFrame, kFilmSide);
  fill(image, goal, {kFilmFrame, kFilmSide + kFilmFrame, kFilmSide, kFilmFrame});
  paste(image, seen.wrist, kFilmFrame, kFilmSide + 2 * kFilmFrame, kFilmSide);
  return image;
}

}  // namespace

Image film_strip(std::span<const EpisodeOutcome> episodes) {
  const auto rows = std::ranges::count_if(episodes, [](const EpisodeOutcome& e) { return !e.film.empty(); });
  Image strip = blank(std::max<std::int64_t>(1, rows) * (kStripSide + kStripGap),
                      2 * (kStripBar + kStripGap) + kMoments * (kStripSide + kStripGap), kPaper);
  std::int64_t row = 0;
  for (const EpisodeOutcome& episode : episodes) {
    if (episode.film.empty()) continue;
    fill(strip, colour_of(episode), {row, 0, kStripSide, kStripBar});
    fill(strip, episode.goal_colour, {row, kStripBar + kStripGap, kStripSide, kStripBar});
    std::int64_t column = 2 * (kStripBar + kStripGap);
    for (const std::size_t moment : shown_moments(episode.film.size())) {
      paste(strip, episode.film[moment].top, row, column, kStripSide);
      column += kStripSide + kStripGap;
    }
    row += kStripSide + kStripGap;
  }
  return strip;
}

void write_film(const std::string& path, std::span<const EpisodeOutcome> episodes, int fps) {
  VideoWriter writer(path, {kFilmSide + 2 * kFilmFrame, 2 * kFilmSide + 3 * kFilmFrame, fps});
  for (const EpisodeOutcome& episode : episodes) {
    for (const TabletopObservation& seen : episode.film)
      writer.add(film_frame(seen, episode.goal_colour, kPaper), &seen == &episode.film.front());
    for (int held = 0; held < fps && !episode.film.empty(); ++held)
      writer.add(film_frame(episode.film.back(), episode.goal_colour, colour_of(episode)), false);
  }
  writer.finish();
}

}  // namespace plimsoll::data
