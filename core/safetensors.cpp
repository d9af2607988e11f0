#include "core/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

namespace plimsoll {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t kMaxHeader = 100'000'000;  // the reference implementation's limit
constexpr int kMaxDepth = 4;                       // {name: {shape: [n]}} has 3

/// Says what is wrong with which file, and which tensor where one is known.
struct Complaint {
  const std::string& file;
  ExitCode code;

  template <class... Args>
  [[noreturn]] void file_is(fmt::format_string<Args...> text, Args&&... args) const {
    fail(code, "{}: {}; the file is damaged or no safetensors file: write or download it again", file,
         fmt::format(text, std::forward<Args>(args)...));
  }
  template <class... Args>
  [[noreturn]] void tensor_is(const std::string& name, fmt::format_string<Args...> text, Args&&... args) const {
    file_is("tensor {}: {}", quoted(name), fmt::format(text, std::forward<Args>(args)...));
  }
  /// A name from a file nobody vouches for: short and printable.
  static std::string quoted(const std::string& name) {
    return Json(name.substr(0, 200)).dump(-1, ' ', true, Json::error_handler_t::replace);
  }
};

std::uint64_t read_length(std::span<const std::byte> bytes, const Complaint& complaint) {
  if (bytes.size() < 8) complaint.file_is("{} bytes are too few for a header", bytes.size());
  std::uint64_t length = 0;
  for (std::size_t i = 8; i-- > 0;) length = length << 8 | std::to_integer<std::uint64_t>(bytes[i]);
  if (length > kMaxHeader) complaint.file_is("header of {} bytes is longer than the {} allowed", length, kMaxHeader);
  if (length > bytes.size() - 8) {
    complaint.file_is("header of {} bytes ends past the end of the file ({} bytes)", length, bytes.size());
  }
  return length;
}

/// Refuses keys that appear twice (the parser would silently keep one) and pointless nesting (it would cost memory).
class KeyGuard {
 public:
  explicit KeyGuard(const Complaint& complaint) : complaint_(complaint) {}
  bool operator()(int depth, Json::parse_event_t event, Json& parsed) {
    using Event = Json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start) {
      if (depth > kMaxDepth) complaint_.file_is("header is nested deeper than {}", kMaxDepth);
      if (event == Event::object_start) keys_.emplace_back();
    } else if (event == Event::object_end) {
      keys_.pop_back();
    } else if (event == Event::key && !keys_.back().insert(parsed.get<std::string>()).second) {
      complaint_.file_is("header has the key {} twice", Complaint::quoted(parsed.get<std::string>()));
    }
    return true;
  }

 private:
  const Complaint& complaint_;
  std::vector<std::set<std::string>> keys_;
};

Json read_header(std::span<const std::byte> header, const Complaint& complaint) {
  const char* text = reinterpret_cast<const char*>(header.data());
  // A byte order mark or white space before the brace is legal JSON for some parsers and not for others.
  if (header.empty() || *text != '{') complaint.file_is("header does not begin with '{{'");
  try {
    return Json::parse(text, text + header.size(), KeyGuard(complaint));
  } catch (const Json::exception& error) {
    complaint.file_is("header is no JSON in UTF-8 ({})", std::string(error.what()).substr(0, 200));
  }
}

std::map<std::string, std::string> read_metadata(const Json& value, const Complaint& complaint) {
  if (!value.is_object()) complaint.file_is("__metadata__ is no object");
  std::map<std::string, std::string> result;
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) complaint.file_is("__metadata__ {} is no string", Complaint::quoted(key));
    result[key] = text.get<std::string>();
  }
  return result;
}

std::vector<std::uint64_t> read_integers(const Json& info, const char* key, const std::string& name,
                                         const Complaint& complaint) {
  const auto at = info.find(key);
  if (at == info.end() || !at->is_array()) complaint.tensor_is(name, "no list \"{}\"", key);
  std::vector<std::uint64_t> result;
  for (const Json& item : *at) {
    if (!item.is_number_unsigned()) complaint.tensor_is(name, "\"{}\" has an item that is no integer from 0", key);
    result.push_back(item.get<std::uint64_t>());
  }
  return result;
}

/// Bytes of a tensor of this shape; complains about a product above 2^63.
std::uint64_t size_of(const std::vector<std::uint64_t>& shape, std::size_t element, const std::string& name,
                      const Complaint& complaint) {
  std::uint64_t size = element;
  bool overflow = false;
  for (const std::uint64_t extent : shape) {
    overflow |= extent > INT64_MAX || __builtin_mul_overflow(size, extent, &size);
  }
  if (overflow || size > INT64_MAX) complaint.tensor_is(name, "its shape overflows");
  return size;
}

TensorEntry read_tensor(const std::string& name, const Json& info, std::span<const std::byte> data,
                        const Complaint& complaint) {
  if (!info.is_object()) complaint.tensor_is(name, "its entry is no object");
  const auto dtype = info.find("dtype");
  if (dtype == info.end() || !dtype->is_string()) complaint.tensor_is(name, "no string \"dtype\"");
  const std::size_t element = dtype_size(dtype->get<std::string>());
  if (element == 0) complaint.tensor_is(name, "unknown dtype {}", Complaint::quoted(dtype->get<std::string>()));
  const auto shape = read_integers(info, "shape", name, complaint);
  const auto range = read_integers(info, "data_offsets", name, complaint);
  const std::uint64_t size = size_of(shape, element, name, complaint);
  if (range.size() != 2 || range[1] < range[0]) complaint.tensor_is(name, "\"data_offsets\" is no range [begin, end]");
  if (range[1] > data.size()) {
    complaint.tensor_is(name, "its bytes end at {}, past the data's end at {}", range[1], data.size());
  }
  if (range[1] - range[0] != size) {
    complaint.tensor_is(name, "its range holds {} bytes, its shape and dtype {} need {}", range[1] - range[0],
                        dtype->get<std::string>(), size);
  }
  return {name, dtype->get<std::string>(), std::vector<std::int64_t>(shape.begin(), shape.end()), range[0],
          data.subspan(range[0], size)};
}

/// No holes, no overlaps, nothing after the last one: what is in the file is exactly the tensors.
void check_ranges(std::vector<TensorEntry>& tensors, std::size_t size, const Complaint& complaint) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return std::tuple(a.offset, a.bytes.size(), a.name) < std::tuple(b.offset, b.bytes.size(), b.name);
  });
  std::uint64_t end = 0;
  for (const TensorEntry& tensor : tensors) {
    if (tensor.offset < end) complaint.tensor_is(tensor.name, "its bytes overlap the tensor before it");
    if (tensor.offset > end) complaint.tensor_is(tensor.name, "a hole of {} bytes is before it", tensor.offset - end);
    end = tensor.offset + tensor.bytes.size();
  }
  if (end != size) complaint.file_is("{} bytes follow the last tensor", size - end);
}

}  // namespace

std::size_t dtype_size(const std::string& dtype) {
  static constexpr std::array<std::pair<const char*, std::size_t>, 15> kSizes{{{"F64", 8},
                                                                               {"I64", 8},
                                                                               {"U64", 8},
                                                                               {"F32", 4},
                                                                               {"I32", 4},
                                                                               {"U32", 4},
                                                                               {"BF16", 2},
                                                                               {"F16", 2},
                                                                               {"I16", 2},
                                                                               {"U16", 2},
                                                                               {"I8", 1},
                                                                               {"U8", 1},
                                                                               {"BOOL", 1},
                                                                               {"F8_E4M3", 1},
                                                                               {"F8_E5M2", 1}}};
  for (const auto& [name, size] : kSizes) {
    if (dtype == name) return size;
  }
  return 0;
}

SafetensorsContent parse_safetensors(std::span<const std::byte> bytes, const std::string& file, ExitCode code) {
  const Complaint complaint{file, code};
  const std::uint64_t length = read_length(bytes, complaint);
  const Json header = read_header(bytes.subspan(8, length), complaint);
  const auto data = bytes.subspan(8 + length);
  SafetensorsContent content;
  for (const auto& [name, info] : header.items()) {
    if (name == "__metadata__") {
      content.metadata = read_metadata(info, complaint);
    } else {
      content.tensors.push_back(read_tensor(name, info, data, complaint));
    }
  }
  check_ranges(content.tensors, data.size(), complaint);
  return content;
}

struct SafetensorsFile::Mapping {
  void* address = nullptr;
  std::size_t size = 0;

  Mapping(const std::filesystem::path& path, ExitCode code) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status {};
    if (descriptor < 0 || ::fstat(descriptor, &status) != 0) refuse(path, code, descriptor);
    size = static_cast<std::size_t>(status.st_size);
    if (!S_ISREG(status.st_mode)) errno = EISDIR;
    if (size > 0 && S_ISREG(status.st_mode)) address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (address == MAP_FAILED || !S_ISREG(status.st_mode)) refuse(path, code, descriptor);
    ::close(descriptor);
  }
  ~Mapping() {
    if (address != nullptr) ::munmap(address, size);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  [[noreturn]] static void refuse(const std::filesystem::path& path, ExitCode code, int descriptor) {
    const int error = errno;
    if (descriptor >= 0) ::close(descriptor);
    fail(code, "cannot open {}: {}; check the path", path.string(), std::strerror(error));
  }
};

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path, ExitCode code)
    : path_(path), code_(code), mapping_(std::make_unique<Mapping>(path, code)) {
  const auto* bytes = static_cast<const std::byte*>(mapping_->address);
  SafetensorsContent content = parse_safetensors({bytes, mapping_->size}, path.string(), code);
  tensors_ = std::move(content.tensors);
  metadata_ = std::move(content.metadata);
  for (std::size_t i = 0; i < tensors_.size(); ++i) by_name_[tensors_[i].name] = i;
}
SafetensorsFile::~SafetensorsFile() = default;
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;

const TensorEntry* SafetensorsFile::find(const std::string& name) const {
  const auto at = by_name_.find(name);
  return at == by_name_.end() ? nullptr : &tensors_[at->second];
}

const TensorEntry& SafetensorsFile::at(const std::string& name) const {
  const TensorEntry* entry = find(name);
  if (entry == nullptr) fail(code_, "{}: tensor \"{}\" is missing; give a file that holds it", path_.string(), name);
  return *entry;
}

}  // namespace plimsoll
