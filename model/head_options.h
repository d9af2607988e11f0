#pragma once
// Sizes and kinds of what is trained beside the VLM: action expert and sensor encoder. No torch in here.

#include <cstdint>
#include <string>

namespace plimsoll::model {

/// Table [expert]. The defaults make an expert of about 31 million parameters on a VLM of width 2048.
struct ExpertOptions {
  std::string kind = "ddpm";  ///< or "flow"
  int width = 384;            ///< of a row; a multiple of heads
  int depth = 8;              ///< blocks
  int heads = 6;
  int draws = 4;              ///< noise draws per VLM forward
  int chunk = 16;             ///< actions predicted at once
  int diffusion_steps = 100;  ///< ddpm: squaredcos_cap_v2
  int sampling_steps = 10;    ///< DDIM or Euler steps when acting
  double clip = 5.0;          ///< ddpm, when acting: bound of the predicted clean action in normalised units; 0: none

  /// Hidden width of the gated MLP: 8/3 of the width, as many weights as a plain MLP of 4 times the width, in steps
  /// of 32.
  std::int64_t mlp_width() const { return (std::int64_t{width} * 8 / 3 + 31) / 32 * 32; }
};

/// Table [sensor].
struct SensorOptions {
  int window = 0;    ///< time steps; 0: no sensor
  int channels = 0;  ///< values per time step
  int patch = 4;     ///< time steps per token; divides window
  int width = 128;   ///< of the encoder
  int tokens() const { return window == 0 ? 0 : window / patch; }
};

}  // namespace plimsoll::model
