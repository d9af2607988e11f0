#include "data/image_places.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <limits>
#include <span>

#include "core/error.h"

namespace plimsoll::data {
namespace {

using Bytes = std::span<const std::uint8_t>;

/// Thrown where pictures are not reached by their places. Arrow reads them then, and says what is wrong with damaged
/// files.
struct NotByPlace {};

void require(bool holds) {
  if (!holds) throw NotByPlace();
}

/// At most four bytes, the lowest first.
std::int64_t little_endian(Bytes bytes) {
  std::int64_t number = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) number |= static_cast<std::int64_t>(bytes[i]) << (8 * i);
  return number;
}

/// Bytes from front to back.
class ByteReader {
 public:
  explicit ByteReader(Bytes bytes) : bytes_(bytes) {}

  std::int64_t used() const { return static_cast<std::int64_t>(at_); }
  std::uint8_t byte() { return take(1)[0]; }
  Bytes take(std::uint64_t count) {
    require(count <= bytes_.size() - at_);
    const Bytes taken = bytes_.subspan(at_, count);
    at_ += count;
    return taken;
  }
  /// Seven bits a byte, the lowest first; the eighth says that more follow.
  std::uint64_t varint() {
    std::uint64_t number = 0;
    for (int shift = 0;; shift += 7) {
      require(shift < 64);
      const std::uint8_t next = byte();
      number |= static_cast<std::uint64_t>(next & 0x7F) << shift;
      if (next < 0x80) return number;
    }
  }

 private:
  Bytes bytes_;
  std::size_t at_ = 0;
};

/// Types of Thrift's compact encoding that page headers are made of.
constexpr int kStop = 0, kTrue = 1, kFalse = 2, kByte = 3, kShort = 4, kInteger = 5, kLong = 6, kDouble = 7;
constexpr int kBinary = 8, kList = 9, kSet = 10, kStruct = 12;

/// A struct in Thrift's compact encoding.
class ThriftReader : public ByteReader {
 public:
  using ByteReader::ByteReader;

  /// `use(field, type)` reads a field's value and returns true, or leaves it to be skipped.
  template <class Use>
  void fields(const Use& use) {
    std::int64_t field = 0;
    for (;;) {
      const std::uint8_t head = byte();
      if (head == kStop) return;
      field = (head >> 4) != 0 ? field + (head >> 4) : whole();
      if (!use(field, head & 15)) skip(head & 15, 0);
    }
  }
  /// Positive and negative numbers by turns, as a varint.
  std::int64_t whole() {
    const std::uint64_t coded = varint();
    return static_cast<std::int64_t>(coded >> 1) ^ -static_cast<std::int64_t>(coded & 1);
  }

 private:
  void skip(int type, int depth) {
    require(depth < kMostNested);
    switch (type) {
      case kTrue:
      case kFalse:
        return;  // the type is the value
      case kByte:
        take(1);
        return;
      case kShort:
      case kInteger:
      case kLong:
        varint();
        return;
      case kDouble:
        take(8);
        return;
      case kBinary:
        take(varint());
        return;
      case kList:
      case kSet:
        return skip_list(depth);
      case kStruct:
        return skip_struct(depth);
      default:
        throw NotByPlace();  // no page header has a map
    }
  }
  void skip_list(int depth) {
    const std::uint8_t head = byte();
    const std::uint64_t count = (head >> 4) == 15 ? varint() : head >> 4;
    require(count <= kMostElements);
    const int type = (head & 15) == kTrue || (head & 15) == kFalse ? kByte : head & 15;  // truth takes a byte here
    for (std::uint64_t i = 0; i < count; ++i) skip(type, depth + 1);
  }
  void skip_struct(int depth) {
    for (;;) {
      const std::uint8_t head = byte();
      if (head == kStop) return;
      if ((head >> 4) == 0) whole();
      skip(head & 15, depth + 1);
    }
  }

  static constexpr std::uint64_t kMostElements = 1 << 16;
  static constexpr int kMostNested = 16;
};

// parquet.thrift: PageType and Encoding.
constexpr std::int64_t kDataPage = 0, kIndexPage = 1, kDictionaryPage = 2, kDataPageV2 = 3;
constexpr std::int64_t kPlain = 0, kPlainDictionary = 2, kRle = 3, kRleDictionary = 8;

/// parquet.thrift's PageHeader, as far as it is needed.
struct PageHeader {
  std::int64_t type = -1, unpacked = -1, packed = -1;  ///< bytes of the page itself: as they are, and in the file
  std::int64_t values = -1, encoding = -1;
  std::int64_t levels_encoding = kRle;                        ///< of a data page of version 1
  std::int64_t definition_levels = 0, repetition_levels = 0;  ///< bytes in front of what is packed; version 2
  bool compressed = true;                                     ///< version 2 may leave a page as it is
  std::int64_t bytes = 0;                                     ///< of this header
};

PageHeader read_page_header(Bytes bytes) {
  PageHeader page;
  ThriftReader reader(bytes);
  // Numbers of a struct within the header, by their field; null: not needed.
  const auto numbers = [&](const std::array<std::int64_t*, 7>& into) {
    reader.fields([&](std::int64_t field, int type) {
      if (field == 7 && type == kFalse) page.compressed = false;  // only version 2 has so many fields
      if (type != kInteger || field < 1 || field > 6 || !into[static_cast<std::size_t>(field)]) return false;
      *into[static_cast<std::size_t>(field)] = reader.whole();
      return true;
    });
    return true;
  };
  reader.fields([&](std::int64_t field, int type) {
    if (type == kInteger && field == 1) return page.type = reader.whole(), true;
    if (type == kInteger && field == 2) return page.unpacked = reader.whole(), true;
    if (type == kInteger && field == 3) return page.packed = reader.whole(), true;
    if (type != kStruct) return false;
    if (field == 5) return numbers({nullptr, &page.values, &page.encoding, &page.levels_encoding});
    if (field == 7) return numbers({nullptr, &page.values, &page.encoding});
    if (field == 8)
      return numbers(
          {nullptr, &page.values, nullptr, nullptr, &page.encoding, &page.definition_levels, &page.repetition_levels});
    return false;
  });
  page.bytes = reader.used();
  require(page.packed >= 0 && page.unpacked >= 0);
  return page;
}

/// An element of a snappy block: bytes that follow its tag, or that stand further in front of what it is unpacked to.
struct Element {
  std::int64_t length = 0;     ///< bytes that it is unpacked to
  std::int64_t back = 0;       ///< where they stand, counted back from the first of them; 0: they follow the tag
  std::int64_t tag_bytes = 1;  ///< with the numbers that belong to it
};
constexpr std::int64_t kMostTagBytes = 5;

/// The element that `bytes` begin with; nothing where its tag is cut short or refers to itself.
std::optional<Element> first_element(Bytes bytes) {
  if (bytes.empty()) return std::nullopt;
  const int tag = bytes[0], kind = tag & 3, upper = tag >> 2;
  // The length of a literal from 61 on is in up to four bytes, the distance of a copy in one, two or four.
  int more = kind == 3 ? 4 : kind;
  if (kind == 0) more = std::max(0, upper - 59);
  if (std::ssize(bytes) < 1 + more) return std::nullopt;
  const std::int64_t number = little_endian(bytes.subspan(1, static_cast<std::size_t>(more)));
  if (kind == 0) return Element{(more == 0 ? upper : number) + 1, 0, 1 + more};
  const std::int64_t back = kind == 1 ? (tag >> 5) << 8 | number : number;
  if (back == 0) return std::nullopt;
  return Element{kind == 1 ? (upper & 7) + 4 : upper + 1, back, 1 + more};
}

/// The first `wanted` bytes that elements of a snappy block are unpacked to; false where they are fewer, or damaged.
bool unpack(Bytes packed, std::size_t wanted, std::vector<std::uint8_t>& out) {
  out.clear();
  out.reserve(wanted);
  while (out.size() < wanted) {
    const auto element = first_element(packed);
    if (!element) return false;
    packed = packed.subspan(static_cast<std::size_t>(element->tag_bytes));
    const std::size_t count = std::min(static_cast<std::size_t>(element->length), wanted - out.size());
    const auto back = static_cast<std::size_t>(element->back);
    if (back == 0) {
      if (packed.size() < count) return false;
      out.insert(out.end(), packed.begin(), packed.begin() + static_cast<std::ptrdiff_t>(count));
      packed = packed.subspan(count);
    } else {
      if (back > out.size()) return false;
      for (std::size_t i = 0; i < count; ++i) out.push_back(out[out.size() - back]);
    }
  }
  return true;
}

/// A file through a small window, for whoever hops through it.
class FileWindow {
 public:
  explicit FileWindow(const FileBytes& file) : file_(file) {}

  /// `count` bytes from `offset` on, valid until the next call; fewer where the file ends before.
  Bytes at(std::int64_t offset, std::int64_t count) {
    if (offset < begin_ || offset + count > begin_ + std::ssize(bytes_)) {
      bytes_ = file_.read(offset, std::max(count, kWindow));
      begin_ = offset;
    }
    const Bytes rest = Bytes(bytes_).subspan(static_cast<std::size_t>(offset - begin_));
    return rest.first(std::min(rest.size(), static_cast<std::size_t>(count)));
  }
  std::uint8_t byte(std::int64_t offset) {
    const Bytes found = at(offset, 1);
    require(!found.empty());
    return found[0];
  }

 private:
  static constexpr std::int64_t kWindow = 4096;
  const FileBytes& file_;
  std::int64_t begin_ = 0;
  std::vector<std::uint8_t> bytes_;
};

/// What a page is unpacked to, looked at from front to back; what lies between is passed over in the file.
class PageBytes {
 public:
  PageBytes(FileWindow& file, std::int64_t begin, std::int64_t packed, std::int64_t unpacked, bool snappy)
      : file_(file), begin_(begin), end_(begin + packed), size_(unpacked), snappy_(snappy), next_(begin) {
    require(packed >= 0 && unpacked >= 0 && unpacked <= std::numeric_limits<std::int32_t>::max());
    require(snappy || packed == unpacked);
    if (!snappy_ || packed == 0) return;
    ByteReader reader(file_.at(begin, std::min(packed, kMostTagBytes)));
    require(reader.varint() == static_cast<std::uint64_t>(unpacked));
    next_ = begin + reader.used();
  }

  std::int64_t size() const { return size_; }
  std::uint8_t at(std::int64_t place) {
    require(place < size_);
    if (!snappy_) return file_.byte(begin_ + place);
    reach(place);
    for (;;) {
      const auto after = std::upper_bound(walked_.begin(), walked_.end(), place,
                                          [](std::int64_t wanted, const Walked& one) { return wanted < one.place; });
      require(after != walked_.begin());
      const Walked& found = *std::prev(after);
      if (found.back == 0) return file_.byte(found.literal + place - found.place);
      place -= found.back;
    }
  }
  std::vector<std::uint8_t> take(std::int64_t place, std::int64_t count) {
    require(count >= 0 && count <= size_ - place);
    std::vector<std::uint8_t> taken;
    for (std::int64_t i = 0; i < count; ++i) taken.push_back(at(place + i));
    return taken;
  }
  ImagePlace place_of(std::int64_t place, std::int64_t count) {
    require(count >= 0 && count <= size_ - place);
    if (count == 0) return {};
    const auto size = static_cast<std::int32_t>(count);
    if (!snappy_) return {begin_ + place, 0, size, false};
    reach(place);
    return {piece_begin_, static_cast<std::int32_t>(place - piece_), size, true};
  }
  /// Makes sure that the rest, too, is in pieces that do not refer to each other.
  void finish() {
    while (snappy_ && out_ < size_) step();
  }

 private:
  struct Walked {
    std::int64_t place, back, literal;  ///< `literal`: where its bytes are in the file, unless it goes back
  };
  // Encoders begin anew after so many bytes; one that does not, for long, has no pieces.
  static constexpr std::int64_t kPiece = 1 << 16, kMostPiece = 4 * kPiece;

  void reach(std::int64_t place) {
    while (out_ <= place) step();
  }
  void step() {
    if (out_ % kPiece == 0) {
      piece_ = out_;
      piece_begin_ = next_;
      walked_.clear();
    }
    require(next_ < end_ && out_ - piece_ < kMostPiece);
    const auto element = first_element(file_.at(next_, std::min(kMostTagBytes, end_ - next_)));
    require(element && element->length <= size_ - out_);
    const std::int64_t literal = next_ + element->tag_bytes;
    require(element->back == 0 ? element->length <= end_ - literal : out_ - element->back >= piece_);
    walked_.push_back({out_, element->back, literal});
    next_ = literal + (element->back == 0 ? element->length : 0);
    out_ += element->length;
  }

  FileWindow& file_;
  std::int64_t begin_, end_, size_;
  bool snappy_;
  std::int64_t next_;                         // in the file, of the element that comes next
  std::int64_t out_ = 0;                      // bytes that those before it are unpacked to
  std::int64_t piece_ = 0, piece_begin_ = 0;  // where the piece begins, unpacked and in the file
  std::vector<Walked> walked_;                // elements of the piece so far
};

struct Picture {
  ImagePlace place;
  std::vector<std::uint8_t> head;
};

std::uint32_t bits_of(Bytes bytes, std::size_t first, int width) {
  std::uint32_t number = 0;
  for (int bit = 0; bit < width; ++bit) {
    const std::size_t at = first + static_cast<std::size_t>(bit);
    number |= (bytes[at / 8] >> (at % 8) & 1U) << bit;
  }
  return number;
}

/// Parquet's mixture of runs and of packed bits: `count` numbers of `width` bits.
std::vector<std::uint32_t> mixed_numbers(Bytes bytes, int width, std::int64_t count) {
  require(width <= 32);
  std::vector<std::uint32_t> numbers;
  ByteReader reader(bytes);
  while (std::ssize(numbers) < count) {
    const std::uint64_t head = reader.varint(), many = head >> 1;
    require(many > 0);
    const auto left = static_cast<std::uint64_t>(count - std::ssize(numbers));
    if ((head & 1) == 0) {  // a run of the same
      const auto number = static_cast<std::uint32_t>(little_endian(reader.take((width + 7) / 8)));
      numbers.insert(numbers.end(), std::min(left, many), number);
      continue;
    }
    require(many <= bytes.size());  // groups of eight
    const Bytes packed = reader.take(many * static_cast<std::uint64_t>(width));
    for (std::uint64_t i = 0; i < std::min(left, many * 8); ++i)
      numbers.push_back(bits_of(packed, i * static_cast<std::uint64_t>(width), width));
  }
  return numbers;
}

/// Every row holds a picture: its definition level is the column's.
void require_no_nulls(Bytes levels, int level, std::int64_t rows) {
  const int width = std::bit_width(static_cast<unsigned>(level));
  for (const std::uint32_t found : mixed_numbers(levels, width, rows))
    require(found == static_cast<std::uint32_t>(level));
}

/// `count` values, each behind its length in four bytes, from `at` on to the page's end.
std::vector<Picture> plain_pictures(PageBytes& page, std::int64_t at, std::int64_t count) {
  std::vector<Picture> pictures;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t size = little_endian(page.take(at, 4));
    at += 4;
    const ImagePlace place = page.place_of(at, size);
    pictures.push_back({place, page.take(at, std::min(size, kImageHead))});
    at += size;
  }
  page.finish();
  return pictures;
}

/// Reads the pages of one column chunk.
class ChunkReader {
 public:
  ChunkReader(FileWindow& file, const ImageChunk& chunk) : file_(file), chunk_(chunk) {}

  /// By row.
  std::vector<Picture> pictures() {
    std::int64_t at = chunk_.begin;
    while (std::ssize(pictures_) < chunk_.rows) {
      require(at >= 0 && at < chunk_.end);
      const PageHeader header = read_page_header(file_.at(at, std::min(kMostHeader, chunk_.end - at)));
      const std::int64_t body = at + header.bytes;
      require(header.packed <= chunk_.end - body);
      if (header.type == kDictionaryPage) {
        read_dictionary(header, body);
      } else if (header.type != kIndexPage) {
        read_data(header, body);
      }
      at = body + header.packed;
    }
    require(std::ssize(pictures_) == chunk_.rows);
    return std::move(pictures_);
  }

 private:
  static constexpr std::int64_t kMostHeader = 32 << 10;  // of which statistics are the most, with 4 KiB a value

  void read_dictionary(const PageHeader& header, std::int64_t body) {
    require(header.encoding == kPlain || header.encoding == kPlainDictionary);
    PageBytes page(file_, body, header.packed, header.unpacked, chunk_.snappy);
    dictionary_ = plain_pictures(page, 0, header.values);
  }

  void read_data(const PageHeader& header, std::int64_t body) {
    const bool second = header.type == kDataPageV2;
    require(second || (header.type == kDataPage && header.levels_encoding == kRle));
    const std::int64_t levels = second ? header.definition_levels : 0;
    require(levels >= 0 && levels <= header.packed && header.repetition_levels == 0);
    require(header.values >= 0 && header.values <= chunk_.rows);
    if (second && chunk_.level > 0) require_no_nulls(file_.at(body, levels), chunk_.level, header.values);
    PageBytes page(file_, body + levels, header.packed - levels, header.unpacked - levels,
                   chunk_.snappy && header.compressed);
    std::int64_t at = 0;
    if (!second && chunk_.level > 0) {
      const std::int64_t bytes = little_endian(page.take(0, 4));
      require_no_nulls(page.take(4, bytes), chunk_.level, header.values);
      at = 4 + bytes;
    }
    if (header.encoding == kPlain) {
      auto more = plain_pictures(page, at, header.values);
      pictures_.insert(pictures_.end(), std::move_iterator(more.begin()), std::move_iterator(more.end()));
    } else {
      require(header.encoding == kRleDictionary || header.encoding == kPlainDictionary);
      add_from_dictionary(page, at, header.values);
    }
  }

  void add_from_dictionary(PageBytes& page, std::int64_t at, std::int64_t count) {
    const int width = page.at(at);
    for (const std::uint32_t number : mixed_numbers(page.take(at + 1, page.size() - at - 1), width, count)) {
      require(number < dictionary_.size());
      pictures_.push_back(dictionary_[number]);
    }
  }

  FileWindow& file_;
  const ImageChunk& chunk_;
  std::vector<Picture> dictionary_, pictures_;
};

}  // namespace

FileBytes::FileBytes(const std::string& path) : path_(path), descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  if (descriptor_ < 0) fail(ExitCode::kData, "{}: cannot be opened: {}", path, std::strerror(errno));
}

FileBytes::~FileBytes() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

std::vector<std::uint8_t> FileBytes::read(std::int64_t offset, std::int64_t count) const {
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(count));
  std::size_t have = 0;
  while (have < bytes.size()) {
    const auto at = offset + static_cast<std::int64_t>(have);
    const auto got = ::pread(descriptor_, bytes.data() + have, bytes.size() - have, at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(ExitCode::kData, "{}: cannot be read from byte {} on: {}", path_, at, std::strerror(errno));
    if (got == 0) break;
    have += static_cast<std::size_t>(got);
  }
  bytes.resize(have);
  return bytes;
}

std::vector<std::uint8_t> ImagePlaces::read(const FileBytes& file, std::int64_t row) const {
  const ImagePlace& place = places_.at(static_cast<std::size_t>(row));
  std::vector<std::uint8_t> bytes;
  if (!place.snappy) {
    bytes = file.read(place.begin, place.size);
    if (std::ssize(bytes) == place.size) return bytes;
  } else {
    const std::int64_t wanted = std::int64_t{place.before} + place.size;
    // What does not compress takes no more than the first of these with any usual encoder, and never the second.
    for (const std::int64_t most : {32 + wanted + wanted / 6, 6 * wanted}) {
      if (!unpack(file.read(place.begin, most), static_cast<std::size_t>(wanted), bytes)) continue;
      bytes.erase(bytes.begin(), bytes.begin() + place.before);
      return bytes;
    }
  }
  fail(ExitCode::kData, "{}: column {}: row {} is not where it was when the file was opened, or damaged; copy it again",
       file.path(), column_, row);
}

std::optional<FoundImages> find_images(const ParquetTable& table, const std::string& column) {
  const auto chunks = table.image_chunks(column);
  if (!chunks) return std::nullopt;
  const FileBytes file(table.path());
  FileWindow window(file);
  std::vector<ImagePlace> places;
  std::vector<std::vector<std::uint8_t>> heads;
  try {
    for (const ImageChunk& chunk : *chunks) {
      for (Picture& picture : ChunkReader(window, chunk).pictures()) {
        places.push_back(picture.place);
        heads.push_back(std::move(picture.head));
      }
    }
  } catch (const NotByPlace&) {
    return std::nullopt;
  }
  return FoundImages{ImagePlaces(column, std::move(places)), std::move(heads)};
}

}  // namespace plimsoll::data
