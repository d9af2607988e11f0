#pragma once
// Turns that are dealt to takers in given parts, as evenly as can be at every moment.

#include <cstddef>
#include <cstdint>
#include <vector>

namespace plimsoll::data {

/// An endless row of turns. The taker furthest behind its part has the next one (error diffusion; of equal ones the
/// first): of the first n turns each has its part of n, to less than one turn for each taker there is. After a period,
/// which is the sum of the parts by their common divisor, all are even. Immutable; any thread.
class Turns {
 public:
  struct Turn {
    std::size_t taker = 0;
    std::uint64_t number = 0;  ///< of that taker's turns, from 0
  };

  /// `parts` of the takers, 65536 at most: 0 or more, not all 0. Holds 12 bytes a turn of the period.
  explicit Turns(std::vector<std::int64_t> parts);

  /// Who has the turn at `position`.
  Turn at(std::uint64_t position) const;
  /// The position of a turn: at() the other way round. Its taker has a part.
  std::uint64_t position_of(const Turn& turn) const;
  /// How many of so many turns in a row, wherever they begin, one taker has at most.
  std::int64_t most_of(std::size_t taker, std::int64_t turns) const;

 private:
  std::vector<std::int64_t> parts_;                    // of the period
  std::vector<std::vector<std::uint32_t>> positions_;  // within the period, of each taker's turns there
  std::vector<std::uint16_t> takers_;                  // of the period's turns
  std::vector<std::uint32_t> numbers_;                 // how many turns the taker had before in the period
};

/// Whole parts of `whole` that are as good as fractions which make 1, the largest remainders first: what has a fraction
/// has a part.
std::vector<std::int64_t> whole_parts(const std::vector<double>& fractions, std::int64_t whole);

/// The same by weights, whatever they make together: 0 or more and finite, not all 0.
std::vector<std::int64_t> parts_by_weight(std::vector<double> weights, std::int64_t whole);

}  // namespace plimsoll::data
