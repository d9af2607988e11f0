#include "data/tokenizer_maker.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "data/byte_alphabet.h"

namespace plimsoll::data {

namespace {

/// Words in falling order of how often instructions use them. Learned with a space in front, as inside a sentence, and
/// without one, as at the start of a prompt.
constexpr const char* kWords =
    "the red green blue yellow pad to and of on in move gripper reach pick up place put block then a it with is "
    "whose colour slowly carefully go touch keep hold until done stop there over above left right push pull open close "
    "helpful assistant system user You are purple orange pink cyan white black brown grey cube bowl plate cup box "
    "drawer "
    "door object table robot arm hand from into onto next near behind front under between grasp lift lower rotate turn "
    "stack slide press insert remove take bring drop pour wipe fold release sort button handle lid bottle can mug "
    "spoon "
    "fork knife pan pot tray towel cloth peg hole socket plug cable switch lever knob ball cylinder circle square "
    "triangle "
    "target goal colored color one two three first second last all both other same small large big little long short "
    "before after while again back down away toward towards forward along around across through at by for that this "
    "not "
    "do without any touching hitting holding moving please your its be make sure force contact pressure gently quickly "
    "Pick Place Put Move Push Pull Open Close Reach Take Grasp Lift Stack Turn Slide Press Go Touch The";

/// Letters by how often English uses them, for the strings that fill a vocabulary up.
constexpr std::string_view kLetters = "etaoinshrdlucmfwypvbgkjqxz";

struct Word {
  std::vector<std::string> symbols;
  std::int64_t weight = 1;
};

Word to_word(const std::string& text, std::int64_t weight) {
  Word word{{}, weight};
  for (const char c : text) word.symbols.push_back(ByteAlphabet::spell(static_cast<std::uint8_t>(c)));
  return word;
}

std::vector<Word> training_words() {
  std::istringstream stream(kWords);
  std::vector<std::string> texts{std::istream_iterator<std::string>(stream), {}};
  std::vector<Word> words;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const auto weight = static_cast<std::int64_t>(texts.size() - i);
    words.push_back(to_word(" " + texts[i], 2 * weight));
    words.push_back(to_word(texts[i], weight));
  }
  return words;
}

using Pair = std::pair<std::string, std::string>;

/// The heaviest pair of neighbours; the smaller one by spelling among equals. Weight 0: none is left.
std::pair<Pair, std::int64_t> heaviest_pair(const std::vector<Word>& words) {
  std::map<Pair, std::int64_t> weights;
  for (const Word& word : words)
    for (std::size_t i = 0; i + 1 < word.symbols.size(); ++i)
      weights[{word.symbols[i], word.symbols[i + 1]}] += word.weight;
  std::pair<Pair, std::int64_t> best;
  for (const auto& [pair, weight] : weights)
    if (weight > best.second) best = {pair, weight};
  return best;
}

void merge_in(Word& word, const Pair& pair) {
  std::vector<std::string> merged;
  for (std::size_t i = 0; i < word.symbols.size(); ++i) {
    const bool here =
        i + 1 < word.symbols.size() && word.symbols[i] == pair.first && word.symbols[i + 1] == pair.second;
    merged.push_back(here ? pair.first + pair.second : word.symbols[i]);
    if (here) ++i;
  }
  word.symbols = std::move(merged);
}

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

  /// False when the whole is a token already: then the merge is left out.
  void merge(const Pair& pair) {
    if (add(pair.first + pair.second)) model_.merges.push_back(pair);
  }
  BpeModel take() { return std::move(model_); }

 private:
  bool add(const std::string& token) {
    if (!known_.insert(token).second) return false;
    model_.vocabulary.emplace_back(token, static_cast<std::int64_t>(model_.vocabulary.size()));
    return true;
  }

  std::int64_t size_;
  BpeModel model_;
  std::set<std::string> known_;
};

void learn_words(Growing& model) {
  std::vector<Word> words = training_words();
  while (!model.full()) {
    const auto [pair, weight] = heaviest_pair(words);
    if (weight == 0) return;
    model.merge(pair);
    for (Word& word : words) merge_in(word, pair);
    std::erase_if(words, [](const Word& word) { return word.symbols.size() < 2; });
  }
}

void fill_with_letters(Growing& model) {
  std::vector<std::string> stems;
  for (const char letter : kLetters) stems.emplace_back(1, letter);
  while (!model.full()) {
    std::vector<std::string> longer;
    for (const std::string& stem : stems)
      for (const char letter : kLetters) {
        if (model.full()) return;
        model.merge({stem, std::string(1, letter)});
        longer.push_back(stem + letter);
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
