// What the feature cache costs and gives. Run it
//   build/cache_bench [MiB to write, 512] [records to open, 10000000]
// Lines `FIGURE name = value unit`. Exit code 1 where the index takes more bytes a record than its bound; times fail
// nothing.
//
// Store: records of 2 MiB (two pictures of 448 x 448 for the 3B model in bf16) appended and synced beside a plain file
// of the same bytes, then read, from the page cache and from the disk, beside plain reads; by turns. Opening: a folder
// with a segment of that many records, by its index; and appending a fifth of that many to an empty one: each in a
// process of its own, whose memory has held nothing else before. Steps: shares of the tiny model with one large picture
// a sample, with and without their features, by turns, in both modes; and the part s of a live step that makes the
// features, which says what can be gained: 1 / (1 - s). Reading: passes over samples whose features the loader reads
// from a disk out of whose page cache they were put, beside passes over the same samples in memory, in pairs of either
// order; and how long the steps of the former wait for the loader.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "bench/tiny_session.h"
#include "cache/memory_tier.h"
#include "cache/store.h"
#include "core/error.h"
#include "model/qwen_config.h"
#include "train/encode.h"

namespace plimsoll::train {
namespace {

namespace fs = std::filesystem;

constexpr int kRounds = 3;
constexpr std::int64_t kMebibytes = 512;                                 // to write; fewer: all is done briefly
constexpr cache::RecordKey kLarge{0, 0, 512, 2048, cache::Kept::kBf16};  // 2 MiB
constexpr cache::RecordKey kSmall{0, 0, 1, 1, cache::Kept::kBf16};
constexpr double kRecordBytes = 64;                  // of memory
constexpr std::int64_t kRecordsToJudge = 1'000'000;  // fewer take less than what every process does
constexpr double kReadingBound = 0.02;               // share of a step
constexpr double kReadingSeconds = 110;              // for the pairs of a mode
constexpr const char* kOpening = "--opening";        // what this program is called with for a process of its own
constexpr const char* kAppending = "--appending";

struct Folder {
  fs::path path = fs::temp_directory_path() / fmt::format("plimsoll-cache-bench-{}", ::getpid());
  Folder() { fs::create_directories(path); }
  ~Folder() { fs::remove_all(path); }
};

cache::Fingerprint fingerprint() {
  cache::Fingerprint made;
  made.add("features", "made up");
  return made;
}

double write_plain(const fs::path& path, const std::vector<std::byte>& payload, std::int64_t records) {
  return time_ms([&] {
    const int file = ::open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0644);
    for (std::int64_t i = 0; i < records; ++i)
      if (::write(file, payload.data(), payload.size()) != static_cast<ssize_t>(payload.size()))
        fail(ExitCode::kData, "{}: cannot be written", path.string());
    ::fdatasync(file);
    ::close(file);
  });
}

double read_plain(const fs::path& path, std::vector<std::byte>& payload, std::int64_t records) {
  return time_ms([&] {
    const int file = ::open(path.c_str(), O_RDONLY);
    for (std::int64_t i = 0; i < records; ++i)
      if (::pread(file, payload.data(), payload.size(), i * static_cast<std::int64_t>(payload.size())) < 0)
        fail(ExitCode::kData, "{}: cannot be read", path.string());
    ::close(file);
  });
}

double write_store(const fs::path& dir, const std::vector<std::byte>& payload, std::int64_t records) {
  fs::remove_all(dir);
  cache::Store store({.dir = dir, .samples = records, .writer = "bench"}, fingerprint());
  return time_ms([&] {
    cache::RecordKey key = kLarge;
    for (key.sample = 0; key.sample < records; ++key.sample) store.append(key, payload);
    store.sync();
  });
}

double read_store(const fs::path& dir, std::vector<std::byte>& payload, std::int64_t records) {
  const cache::Store store({.dir = dir, .samples = records, .writer = ""}, fingerprint());
  return time_ms([&] {
    cache::RecordKey key = kLarge;
    for (key.sample = 0; key.sample < records; ++key.sample)
      if (!store.read(key, payload)) fail(ExitCode::kData, "{}: sample {} cannot be read", dir.string(), key.sample);
  });
}

// Puts a file, or those of a folder, out of the page cache, so that what is read next comes from the disk. False where
// that cannot be done.
bool forget_pages(const fs::path& path) {
  if (fs::is_directory(path)) {
    bool all = true;
    for (const auto& entry : fs::directory_iterator(path)) all = forget_pages(entry.path()) && all;
    return all;
  }
  const int file = ::open(path.c_str(), O_RDONLY);
  const std::size_t size = fs::file_size(path), page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  if (file < 0) return false;
  bool gone = ::fdatasync(file) == 0 && ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED) == 0;
  void* mapped = size == 0 ? MAP_FAILED : ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file, 0);
  ::close(file);
  if (mapped == MAP_FAILED) return gone;
  std::vector<unsigned char> resident((size + page - 1) / page);
  gone = gone && ::mincore(mapped, size, resident.data()) == 0;
  const auto left = std::count_if(resident.begin(), resident.end(), [](unsigned char one) { return (one & 1) != 0; });
  ::munmap(mapped, size);
  return gone && left * 100 <= std::ssize(resident);
}

const char* cold_or_not(bool cold) { return cold ? "" : ", which was NOT cold: its pages stayed in memory"; }

void throughput(const Folder& folder, std::int64_t mebibytes) {
  std::vector<std::byte> payload(cache::payload_bytes(kLarge));
  for (std::size_t i = 0; i < payload.size(); ++i) payload[i] = static_cast<std::byte>(i * 2654435761U >> 13);
  const std::int64_t records = std::max<std::int64_t>(1, mebibytes / 2);
  std::vector<double> written, read, cold, rates;
  bool was_cold = true;
  for (int round = 0; round < kRounds; ++round) {
    const double plain = write_plain(folder.path / "plain", payload, records);
    const double stored = write_store(folder.path / "store", payload, records);
    written.push_back(plain / stored);
    const double plain_read = read_plain(folder.path / "plain", payload, records);
    const double store_read = read_store(folder.path / "store", payload, records);
    read.push_back(plain_read / store_read);
    rates.push_back(static_cast<double>(records) * 2 / 1024 / store_read * 1000);
    was_cold = forget_pages(folder.path) && was_cold;
    const double plain_cold = read_plain(folder.path / "plain", payload, records);
    cold.push_back(plain_cold / read_store(folder.path / "store", payload, records));
  }
  const auto verdict = [](double value) { return value >= 0.8 ? "met" : "NOT met"; };
  fmt::print("FIGURE store, appending and syncing beside a plain file = {:.3f} (bound 0.8: {})\n", median(written),
             verdict(median(written)));
  fmt::print(
      "FIGURE store, reading with checksums from the disk{}, beside plain reads of it = {:.3f} (bound 0.8: {})\n",
      cold_or_not(was_cold), median(cold), verdict(median(cold)));
  fmt::print(
      "FIGURE store, reading with checksums beside plain reads, both from the page cache = {:.3f} (bound 0.8: {})\n",
      median(read), verdict(median(read)));
  fmt::print("FIGURE store, reading with checksums from the page cache = {:.2f} GiB/s\n", median(rates));
}

// Features in memory: found and copied into a sample, beside copying alone.
void memory_tier(std::int64_t mebibytes) {
  const auto records = std::max<std::int64_t>(1, mebibytes / 2);
  cache::MemoryTier tier(std::uint64_t{1} << 40);
  std::vector<HostBytes> plain;
  for (std::int64_t i = 0; i < records; ++i) {
    plain.emplace_back(std::vector<std::byte>(cache::payload_bytes(kLarge), std::byte{1}));
    tier.keep(i, 0, plain.back(), static_cast<std::uint64_t>(i));
  }
  std::vector<double> ratios;
  for (int round = 0; round < 4 * kRounds; ++round) {
    const auto position = static_cast<std::uint64_t>(round + 1) << 32;
    std::vector<std::byte> copy;
    const double copying = time_ms([&] {
      for (const auto& payload : plain) copy.assign(payload.begin(), payload.end());
    });
    ratios.push_back(copying / time_ms([&] {
                       for (std::int64_t i = 0; i < records; ++i) {
                         const auto found = tier.find(i, 0, position + static_cast<std::uint64_t>(i));
                         copy.assign(found->begin(), found->end());
                       }
                     }));
  }
  fmt::print("FIGURE memory in front of the disk, finding and copying beside copying = {:.3f} (bound 0.8: {})\n",
             median(ratios), median(ratios) >= 0.8 ? "met" : "NOT met");
}

/// A size in /proc/self/status: "VmRSS" (this process's memory now) or "VmHWM" (the most that it was).
std::int64_t own_memory(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(name + ":")) return std::atoll(line.c_str() + name.size() + 1) * 1024;
  fail(ExitCode::kUsage, "/proc/self/status: has no {}, so that this system cannot say what memory records take", name);
}

/// Whether `action`, which has to do with so many records, is within the bound; prints by how many bytes a record the
/// most memory that this process ever had grew over what it has before.
bool is_within_bytes(const std::string& doing, std::int64_t records, const auto& action) {
  std::ofstream("/proc/self/clear_refs") << 5;  // the most begins anew; where it may not, more is counted, not less
  const std::int64_t before = own_memory("VmRSS");
  action();
  const double bytes = static_cast<double>(own_memory("VmHWM") - before) / static_cast<double>(records);
  const bool judged = records >= kRecordsToJudge, met = bytes <= kRecordBytes;
  const std::string verdict =
      judged ? fmt::format("bound {:g}: {}", kRecordBytes, met ? "met" : "NOT met") : "too few to say what each takes";
  fmt::print("FIGURE {} {} records in a fresh process, memory a record = {:.1f} B ({})\n", doing, records, bytes,
             verdict);
  return met || !judged;
}

bool open_many(const fs::path& dir, std::int64_t records) {
  std::unique_ptr<cache::Store> store;
  double spent = 0;
  const bool within = is_within_bytes("opening", records, [&] {
    const cache::StoreOptions options{.dir = dir, .samples = records, .writer = ""};
    spent = time_ms([&] { store = std::make_unique<cache::Store>(options, fingerprint()); });
  });
  if (store->size() != records)
    fail(ExitCode::kData, "{}: {} records are found, not {}", dir.string(), store->size(), records);
  fmt::print("FIGURE opening {} records = {:.2f} s (goal 5)\n", records, spent / 1000);
  return within;
}

bool append_many(const fs::path& dir, std::int64_t records) {
  const std::vector<std::byte> payload(cache::payload_bytes(kSmall));
  std::int64_t published = 0;
  const bool within = is_within_bytes("appending and publishing", records, [&] {
    cache::Store store({.dir = dir, .samples = records, .writer = "bench"}, fingerprint());
    cache::RecordKey key = kSmall;
    for (key.sample = 0; key.sample < records; ++key.sample) store.append(key, payload);
    store.publish();
    published = store.size();
  });  // and its index is written
  if (published != records) fail(ExitCode::kData, "{}: {} records, not {}", dir.string(), published, records);
  return within;
}

/// In a process that has done nothing else: memory that was freed and is used again would not be seen. Whether what it
/// measured is within its bound.
bool alone(const char* what, const fs::path& dir, std::int64_t records) {
  const std::string folder = dir.string(), count = std::to_string(records);
  std::fflush(stdout);
  const pid_t child = ::fork();
  if (child == 0) {
    ::execl("/proc/self/exe", "cache_bench", what, folder.c_str(), count.c_str(), static_cast<char*>(nullptr));
    ::_exit(127);
  }
  int status = 0;
  if (child < 0 || ::waitpid(child, &status, 0) != child)
    fail(ExitCode::kUsage, "cache_bench {}: cannot be started: {}", what, std::strerror(errno));
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/// That process's exit code.
int run_alone(const std::string& what, const fs::path& dir, std::int64_t records) {
  bool within = false;
  const int code =
      bench::exit_code_of([&] { within = what == kOpening ? open_many(dir, records) : append_many(dir, records); });
  return code == 0 && !within ? 1 : code;
}

/// A folder with a segment of so many records, all of which its index knows.
void make_many(const fs::path& dir, std::int64_t records) {
  fs::path segment;
  {
    cache::Store store({.dir = dir, .samples = records, .writer = "bench"}, fingerprint());
    store.append(kSmall, std::vector<std::byte>(cache::payload_bytes(kSmall)));
    segment = store.folder() / "bench-000000.segment";
  }
  cache::IndexEntries entries;
  std::uint64_t end = cache::kSegmentHeader;
  cache::RecordKey key = kSmall;
  for (key.sample = 0; key.sample < records; ++key.sample, end += cache::record_bytes(key))
    entries.push_back(cache::entry_of({key, end}));
  fs::resize_file(segment, end);  // a hole: opening reads no record that the index knows
  cache::write_index(segment, fingerprint().hash(), end, entries);
}

/// Whether the memory of both is within its bound.
bool many_records(const Folder& folder, std::int64_t records) {
  make_many(folder.path / "many", records);
  const bool opened = alone(kOpening, folder.path / "many", records);
  const bool appended = alone(kAppending, folder.path / "appended", std::max<std::int64_t>(1, records / 5));
  return opened && appended;
}

/// Samples with one picture of so many pixels a side.
std::unique_ptr<data::SampleSource> pictures(const Config& config, int pixels) {
  const auto vlm = model::read_qwen_config(config.model.path);
  data::SyntheticOptions options;
  options.samples = config.data.synthetic_samples;
  options.chunk = config.expert.chunk;
  options.sensor_window = config.sensor.window;
  options.smallest_side = options.largest_side = pixels;
  options.image_token = vlm.image_token_id;
  options.vision_start_token = vlm.image_token_id - 3;
  options.vision_end_token = vlm.image_token_id - 2;
  options.vocabulary = vlm.image_token_id - 12;
  return data::make_synthetic_source(options);
}

std::vector<model::StreamSample> share_of(const std::vector<Sample>& samples) {
  std::vector<model::StreamSample> all;
  for (std::size_t i = 0; i < samples.size(); ++i) all.push_back({&samples[i], i});
  return all;
}

/// The samples with their features, as a later epoch loads them.
std::vector<Sample> with_features(Session& session, std::vector<Sample> samples) {
  std::vector<std::int64_t> indices;
  for (const Sample& sample : samples) indices.push_back(sample.index);
  std::size_t next = 0;
  const auto which = session.cache->features();
  encode(session, which, indices, [&](std::span<const model::StreamSample> some, const at::Tensor& features) {
    const auto* from = static_cast<const std::byte*>(features.const_data_ptr());
    for (const auto& item : some) {
      VlmInput& vlm = samples[next++].vlm;
      const bool states = which == model::Features::kStates;
      const auto rows = states ? item.sample->vlm.input_ids.size() : static_cast<std::size_t>(vlm.feature_rows());
      const std::size_t bytes = rows * static_cast<std::size_t>(features.size(1)) * features.element_size();
      (states ? vlm.hidden_states : vlm.image_features) = std::vector<std::byte>(from, from + bytes);
      vlm.pixel_values.clear();
      from += bytes;
    }
  });
  return samples;
}

/// Milliseconds of packing, of what comes then until what the cache keeps is made, and of the backward pass.
struct Timed {
  double pack = 0, made = 0, backward = 0;
};

Timed timed(Session& session, std::span<const model::StreamSample> samples) {
  Timed times;
  model::PackedBatch batch;
  const auto rules = session.model->packing_rules(0, false);
  times.pack = time_ms([&] { batch = model::pack(samples, rules, at::kCPU); });
  const bool states = session.cache->features() == model::Features::kStates;
  const auto start = std::chrono::steady_clock::now();
  const auto since = [start] {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  };
  const auto note = [&](const at::Tensor&) { times.made = since(); };
  const at::Tensor losses = session.model->sample_losses(
      batch, {}, states ? model::Shown{nullptr, note, nullptr} : model::Shown{note, nullptr, nullptr});
  times.backward = time_ms([&] { torch::autograd::backward({losses}, {at::ones_like(losses)}); });
  session.buffers->discard_staging();
  return times;
}

/// Steps of which a part is live, as cache.live_fraction makes them, beside one that is live whole.
void fractions(Session& session, std::span<const model::StreamSample> live, std::span<const model::StreamSample> cached,
               double s) {
  for (const std::size_t alive : {1, 2, 4}) {
    std::vector<model::StreamSample> mixed(live.begin(), live.begin() + static_cast<std::ptrdiff_t>(alive));
    mixed.insert(mixed.end(), cached.begin() + static_cast<std::ptrdiff_t>(alive), cached.end());
    std::vector<double> ratios;
    for (int round = 0; round < 4 * kRounds; ++round) {
      const double whole = time_step_ms(session, 2, live, session.plan, {});
      ratios.push_back(whole / time_step_ms(session, 2, mixed, session.plan, {}));
    }
    const double fraction = static_cast<double>(alive) / static_cast<double>(live.size());
    const double bound = 0.7 / (1 - s * (1 - fraction));
    fmt::print("FIGURE hybrid: step of which {} is live beside one that is whole = {:.2f} x (bound {:.2f}: {})\n",
               fraction, median(ratios), bound, median(ratios) >= bound ? "met" : "NOT met");
  }
}

/// Bytes that a step of these samples has live above what is live before it.
std::int64_t bytes_of_step(Session& session, std::span<const model::StreamSample> samples) {
  const std::int64_t before = session.meter.live();
  time_step_ms(session, 2, samples, session.plan, {});
  return session.meter.peak() - before;
}

/// A step of samples that come with their features beside one of the same samples without.
void steps(const char* mode, int pixels) {
  TinyRanks ranks("cache-bench");
  ranks.config.memory.policy = "reactive";
  ranks.config.memory.recompute = "none";
  ranks.config.cache.mode = mode;
  ranks.config.cache.dir = (ranks.folder / "cache").string();
  if (ranks.config.cache.mode == "hybrid") ranks.config.expert = {"ddpm", 128, 2, 4, 2, 8, 100, 10};
  const auto source = pictures(ranks.config, pixels);
  Session session(ranks.config, *ranks.communicator, *source);
  session.resume(false);
  std::vector<Sample> live;
  for (std::size_t i = 0; i < 8; ++i) live.push_back(source->load(source->training().at(i)));
  const std::vector<Sample> cached = with_features(session, live);
  const auto live_share = share_of(live), cached_share = share_of(cached);
  time_step_ms(session, 1, live_share, session.plan, {});
  std::vector<double> ratios, shares;  // shares: packing and backward as far as they take longer than of cached samples
  for (int round = 0; round < 4 * kRounds; ++round) {
    const double alive = time_step_ms(session, 2, live_share, session.plan, {});
    ratios.push_back(alive / time_step_ms(session, 2, cached_share, session.plan, {}));
    const Timed of_live = timed(session, live_share), of_cached = timed(session, cached_share);
    shares.push_back((of_live.pack - of_cached.pack + of_live.made + of_live.backward - of_cached.backward) / alive);
  }
  const memory::MicroBatchShape with = shape_of(live_share), without = shape_of(cached_share);
  const double s = median(shares), bound = 0.7 / (1 - s);
  fmt::print(
      "FIGURE {}: step of samples with a picture of {} px, all cached, beside a live one = {:.2f} x (bound {:.2f}: "
      "{})\n",
      mode, pixels, median(ratios), bound, median(ratios) >= bound ? "met" : "NOT met");
  const bool named = session.cache->features() == model::Features::kStates;
  fmt::print("FIGURE {}: share s of a live step that makes what is kept, packing, forward and backward = {:.3f}{}\n",
             mode, s, named ? fmt::format(" (bound 0.93: {})", s >= 0.93 ? "met" : "NOT met") : "");
  const std::int64_t of_live = bytes_of_step(session, live_share), of_cached = bytes_of_step(session, cached_share);
  const std::int64_t less =
      session.dry->activation_bytes(with, session.plan) - session.dry->activation_bytes(without, session.plan);
  fmt::print("FIGURE {}: peak above what is live before, of a cached step beside a live one's = {:.3f}\n", mode,
             static_cast<double>(of_cached) / static_cast<double>(of_live));
  fmt::print("FIGURE {}: bytes by which that peak is lower, beside what the dry run says = {:.4f} (bound 1: {})\n",
             mode, static_cast<double>(of_live - of_cached) / static_cast<double>(less),
             of_live - of_cached >= less ? "met" : "NOT met");
  if (named) fractions(session, live_share, cached_share, s);
}

/// Milliseconds of a pass over the samples, and those of them in which steps wait for their samples.
struct Pass {
  double all = 0, waiting = 0;
};

/// All samples of the run, their features on the disk; steps of them.
class Cached {
 public:
  Cached(const char* mode, int pixels, std::int64_t samples) : ranks_("cache-bench-reading") {
    Config& config = ranks_.config;
    config.memory.policy = "reactive";
    config.memory.recompute = "none";
    config.cache.mode = mode;
    config.cache.dir = (ranks_.folder / "cache").string();
    config.train.stage = 1;    // where hybrid's features do not age
    config.expert.draws = 16;  // of a real model too a step is long beside the bytes that it reads
    config.data.synthetic_samples = samples;
    source_ = pictures(config, pixels);
    session_ = std::make_unique<Session>(config, *ranks_.communicator, *source_);
    session_->resume(false);
    FeatureCache& cache = *session_->cache;
    encode(*session_, cache.features(), source_->training(),
           [&](std::span<const model::StreamSample> some, const at::Tensor& made) { cache.keep_after(0, some, made); });
    cache.publish();
    for (std::int64_t i = 0; i < source_->size(); ++i) loaded_.push_back(cache.load(i));
  }

  /// That a pass times: all but its first, before which the loader is behind.
  std::int64_t steps() const { return std::ssize(source_->training()) / 8 - 1; }
  /// A pass over the samples, which the loader reads from a disk whose pages nobody has.
  Pass from_disk() {
    was_cold_ = forget_pages(session_->cache->store().folder()) && was_cold_;
    if (session_->loader) {
      session_->loader->seek(1);
      session_->loader->set_prefetch(session_->config.data.prefetch);
    }
    std::vector<model::StreamSample> share;
    const auto step = [&](std::int64_t number) {
      const double waited = time_ms([&] { share = session_->load_share(number, hold_); });
      time_step_ms(*session_, number, share, session_->plan, {});
      return waited;
    };
    step(1);
    Pass pass;
    pass.all = time_ms([&] {
      for (std::int64_t number = 2; number <= steps() + 1; ++number) pass.waiting += step(number);
    });
    session_->loader->set_prefetch(0);  // nothing is loaded beside what is timed next
    return pass;
  }
  /// The same steps of the same samples, which lie in memory.
  Pass from_memory() {
    std::vector<model::StreamSample> share;
    const auto step = [&](std::int64_t number) {
      share.clear();
      for (const std::uint64_t position : session_->positions_of(number))
        share.push_back({&loaded_[static_cast<std::size_t>(session_->stream.at(position))], position});
      time_step_ms(*session_, number, share, session_->plan, {});
    };
    step(1);
    Pass pass;
    pass.all = time_ms([&] {
      for (std::int64_t number = 2; number <= steps() + 1; ++number) step(number);
    });
    return pass;
  }
  bool was_cold() const { return was_cold_; }
  std::uint64_t bytes() const { return session_->cache->store().bytes(); }

 private:
  TinyRanks ranks_;
  std::unique_ptr<data::SampleSource> source_;
  std::unique_ptr<Session> session_;
  std::vector<Sample> loaded_;
  std::vector<std::shared_ptr<const Sample>> hold_;
  bool was_cold_ = true;
};

/// What reading adds to steps, or makes them wait, as a share of them; no verdict where it is not known well enough.
void print_share(const std::string& name, const std::vector<double>& shares) {
  const double share = median(shares), error = error_of_median(shares);
  const char* verdict = error > kReadingBound / 2 ? "not resolved" : share <= kReadingBound ? "met" : "NOT met";
  fmt::print("FIGURE {} = {:.4f} +- {:.4f} (bound {:g}: {})\n", name, share, error, kReadingBound, verdict);
}

void reading(const char* mode, int pixels, bool briefly) {
  Cached run(mode, pixels, briefly ? 32 : 256);
  run.from_memory();
  std::vector<double> added, waiting, from_memory;
  const auto began = std::chrono::steady_clock::now();
  const auto seconds = [began] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  };
  for (int pair = 0; pair < (briefly ? 2 : 5) || (!briefly && seconds() < kReadingSeconds); ++pair) {
    const bool disk_first = pair % 2 == 0;
    Pass disk, plain;
    if (disk_first) disk = run.from_disk();
    plain = run.from_memory();
    if (!disk_first) disk = run.from_disk();
    added.push_back(disk.all / plain.all - 1);
    waiting.push_back(disk.waiting / disk.all);
    from_memory.push_back(plain.all);
  }
  const std::string read = fmt::format("{}: {} cached steps that read {:.1f} MiB from a cold disk{}", mode, run.steps(),
                                       static_cast<double>(run.bytes()) / (1 << 20), cold_or_not(run.was_cold()));
  fmt::print("FIGURE {}: a cached step whose features lie in memory = {:.1f} ms\n", mode,
             median(from_memory) / static_cast<double>(run.steps()));
  print_share(fmt::format("{}, time beyond that of the same from memory, {} pairs", read, std::ssize(added)), added);
  print_share(read + ", share of their time in which they wait for features", waiting);
}

/// Whether all bounds on bytes are met.
bool run(std::int64_t mebibytes, std::int64_t records) {
  bool within = false;
  {
    const Folder folder;
    throughput(folder, mebibytes);
    memory_tier(mebibytes);
    within = many_records(folder, records);
  }
  steps("prefix", 448);
  steps("hybrid", 504);  // larger than the others: the VLM's share of a live step is to be well above 0.93
  const bool briefly = mebibytes < kMebibytes;
  reading("prefix", 448, briefly);
  reading("hybrid", 448, briefly);
  return within;
}

}  // namespace
}  // namespace plimsoll::train

int main(int argc, char** argv) {
  using namespace plimsoll::train;
  const std::string what = argc == 4 ? argv[1] : "";
  if (what == kOpening || what == kAppending) return run_alone(what, argv[2], std::atoll(argv[3]));
  bool within = true;
  const int code = tiny_bench_program([&] {
    const std::int64_t mebibytes = argc > 1 ? std::atoll(argv[1]) : kMebibytes;
    const std::int64_t records = argc > 2 ? std::atoll(argv[2]) : 10'000'000;
    if (mebibytes < 2 || records < 1)
      plimsoll::fail(plimsoll::ExitCode::kUsage, "usage: cache_bench [MiB >= 2] [records >= 1]");
    within = run(mebibytes, records);
  });
  return code == 0 && !within ? 1 : code;
}
