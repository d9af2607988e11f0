#include "data/tokenizer_maker.h"

#include <algorithm>
#include <iterator>
#include <sstream>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "data/byte_alphabet.h"

namespace plimsoll::data {

namespace {

/// Words in falling order of how often instructions use them. Learned with a space in front, as inside a sentence, and
/// without one, as at the start of a prompt.
constexpr const char* kWords =
    "the red green blue yellow pad to and of on in move gripper reach pick up place put block then a it with is "
    "whose colour slowly carefully go touch keep hold until done stop there over above left right push pull open "
    "close helpful assistant system user You are purple orange pink cyan white black brown grey cube bowl plate "
    "cup box drawer door object table robot arm hand from into onto next near behind front under between grasp "
    "lift lower rotate turn stack slide press insert remove take bring drop pour wipe fold release sort button "
    "handle lid bottle can mug spoon fork knife pan pot tray towel cloth peg hole socket plug cable switch lever "
    "knob ball cylinder circle square triangle target goal colored color one two three first second last all "
    "both other same small large big little long short before after while again back down away toward towards "
    "forward along around across through at by for that this not do without any touching hitting holding moving "
    "please your its be make sure force contact pressure gently quickly Pick Place Put Move Push Pull Open Close "
    "Reach Take Grasp Lift Stack Turn Slide Press Go Touch The";

/// Letters by how often English uses them, for the strings that fill a vocabulary up.
constexpr std::string_view kLetters = "etaoinshrdlucmfwypvbgkjqxz";

using Id = std::int32_t;

/// A model that grows by bytes and merges until it has `size` tokens.
class Growing {
 public:
  explicit Growing(std::int64_t size) : size_(size) {
    // Visible bytes come first, as in GPT-2's vocabulary and Qwen's.
    for (const bool visible : {true, false})
      for (int byte = 0; byte < 256; ++byte) {
        const std::string& spelled = ByteAlphabet::spell(static_cast<std::uint8_t>(byte));
        if ((spelled < ByteAlphabet::spell(0)) == visible) add(spelled);
      }
  }
  bool full() const { return static_cast<std::int64_t>(model_.vocabulary.size()) >= size_; }
  Id id_of_byte(char byte) const { return ids_.at(ByteAlphabet::spell(static_cast<std::uint8_t>(byte))); }

  /// The id of `left` and `right` together; a merge is added unless that is a token already.
  Id merge(Id left, Id right) {
    const std::string first = model_.vocabulary[left].first, second = model_.vocabulary[right].first;
    if (const auto known = ids_.find(first + second); known != ids_.end()) return known->second;
    model_.merges.emplace_back(first, second);
    return add(first + second);
  }
  BpeModel take() { return std::move(model_); }

 private:
  Id add(const std::string& token) {
    const Id id = static_cast<Id>(model_.vocabulary.size());
    model_.vocabulary.emplace_back(token, id);
    return ids_[token] = id;
  }

  std::int64_t size_;
  BpeModel model_;
  std::unordered_map<std::string, Id> ids_;
};

struct Word {
  std::vector<Id> symbols;
  std::int64_t weight = 1;
};

std::vector<Word> training_words(const Growing& model) {
  std::istringstream stream(kWords);
  const std::vector<std::string> texts{std::istream_iterator<std::string>(stream), {}};
  std::vector<Word> words;
  for (std::size_t i = 0; i < texts.size(); ++i)
    for (const std::int64_t times : {2, 1}) {
      Word& word = words.emplace_back();
      word.weight = times * static_cast<std::int64_t>(texts.size() - i);
      for (const char c : times == 2 ? " " + texts[i] : texts[i]) word.symbols.push_back(model.id_of_byte(c));
    }
  return words;
}

/// Neighbours and how often they occur; weight 0: there are none.
struct Pair {
  Id left = 0, right = 0;
  std::int64_t weight = 0;
};

/// The heaviest pair; the one of smaller ids among equals.
Pair heaviest_pair(const std::vector<Word>& words) {
  std::unordered_map<std::uint64_t, std::int64_t> weights;
  for (const Word& word : words)
    for (std::size_t i = 0; i + 1 < word.symbols.size(); ++i)
      weights[static_cast<std::uint64_t>(word.symbols[i]) << 32 | static_cast<std::uint32_t>(word.symbols[i + 1])] +=
          word.weight;
  std::uint64_t best = 0;
  std::int64_t most = 0;
  for (const auto& [pair, weight] : weights)
    if (weight > most || (weight == most && pair < best)) best = pair, most = weight;
  return {static_cast<Id>(best >> 32), static_cast<Id>(best & 0xFFFFFFFF), most};
}

void merge_in(Word& word, const Pair& pair, Id whole) {
  std::size_t kept = 0;
  for (std::size_t i = 0; i < word.symbols.size(); ++i, ++kept) {
    const bool here = i + 1 < word.symbols.size() && word.symbols[i] == pair.left && word.symbols[i + 1] == pair.right;
    word.symbols[kept] = here ? whole : word.symbols[i];
    if (here) ++i;
  }
  word.symbols.resize(kept);
}

void learn_words(Growing& model) {
  std::vector<Word> words = training_words(model);
  while (!model.full()) {
    const Pair pair = heaviest_pair(words);
    if (pair.weight == 0) return;
    const Id whole = model.merge(pair.left, pair.right);
    for (Word& word : words) merge_in(word, pair, whole);
    std::erase_if(words, [](const Word& word) { return word.symbols.size() < 2; });
  }
}

void fill_with_letters(Growing& model) {
  std::vector<Id> letters;
  for (const char letter : kLetters) letters.push_back(model.id_of_byte(letter));
  std::vector<Id> stems = letters;
  while (!model.full()) {
    std::vector<Id> longer;
    for (const Id stem : stems)
      for (const Id letter : letters) {
        if (model.full()) return;
        longer.push_back(model.merge(stem, letter));
      }
    stems = std::move(longer);
  }
}

}  // namespace

BpeModel make_bpe_model(std::int64_t size) {
  Growing model(size);
  learn_words(model);
  fill_with_letters(model);
  return model.take();
}

}  // namespace plimsoll::data
