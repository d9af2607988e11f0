// What the feature cache costs and gives. Run it
//   build/cache_bench [MiB to write, 512] [records to open, 10000000]
// Lines `FIGURE name = value unit`.
//
// Store: records of 2 MiB (two pictures of 448 x 448 for the 3B model in bf16) appended and synced beside a plain file
// of the same bytes, then read, from the page cache and from the disk, beside plain reads; by turns. Opening: a folder
// with a segment of that many records, by its index. Steps: shares of the tiny model with one large picture a sample,
// with and without their features, by turns, in both modes; and the part s of a live step that makes the features,
// which says what can be gained: 1 / (1 - s). Reading: passes over samples whose features the loader reads from a disk
// out of whose page cache they were put, beside passes over the same samples in memory, by turns.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
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
                       for (std::int64_t i = 0; i < records; ++i)
{
                         const auto found = tier.find(i, 0, position + static_cast<std::uint64_t>(i));
                         copy.assign(found->begin(), found->end());
                       }
                     }));
  }
  fmt::print("FIGURE memory in front of the disk, finding and copying beside copying = {:.3f} (bound 0.8: {})\n",
             median(ratios), median(ratios) >= 0.8 ? "met" : "NOT met");
}

std::int64_t resident_bytes() {
  std::ifstream status("/proc/self/statm");
  std::int64_t size = 0, resident = 0;
  status >> size >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

void opening(const Folder& folder, std::int64_t records) {
  const cache::StoreOptions options{.dir = folder.path / "many", .samples = records, .writer = "bench"};
  const cache::RecordKey small{0, 0, 1, 1, cache::Kept::kBf16};
  fs::path segment;
  {
    cache::Store store(options, fingerprint());
    store.append(small, std::vector<std::byte>(cache::payload_bytes(small)));
    segment = store.folder() / "bench-000000.segment";
  }
  {
    std::vector<cache::Placed> placed(static_cast<std::size_t>(records), {small, 0});
    std::uint64_t end = cache::kSegmentHeader;
    for (std::int64_t i = 0; i < records; ++i, end += cache::record_bytes(small)) {
      placed[static_cast<std::size_t>(i)].key.sample = i;
      placed[static_cast<std::size_t>(i)].offset = end;
    }
    fs::resize_file(segment, end);  // a hole: opening reads no record that the index knows
    cache::write_index(segment, fingerprint().hash(), end, placed);
  }
  const std::int64_t before = resident_bytes();
  cache::StoreOptions to_read = options;
  to_read.writer.clear();
  double spent = 0;
  std::unique_ptr<cache::Store> store;
  spent = time_ms([&] { store = std::make_unique<cache::Store>(to_read, fingerprint()); });
  fmt::print("FIGURE opening {} records = {:.2f} s (goal 5)\n", store->size(), spent / 1000);
  fmt::print("FIGURE its memory a record = {:.1f} B (bound 64: {})\n",
             static_cast<double>(resident_bytes() - before) / static_cast<double>(records),
             resident_bytes() - before <= 64 * records ? "met" : "NOT met");
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
  const at::Tensor losses =
      session.model->sample_losses(batch, {}, states ? model::Shown{nullptr, note} : model::Shown{note, nullptr});
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

/// All samples of the run, their features on the disk; steps of them.
class Cached {
 public:
  Cached(const char* mode, int pixels, std::int64_t samples) : ranks_("cache-bench-reading") {
    Config& config = ranks_.config;
    config.memory.policy = "reactive";
    config.memory.recompute = "none";
    config.cache.mode = mode;
    config.cache.dir = (ranks_.folder / "cache").string();
    config.train.stage = 1;  // where hybrid's features do not age
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

  std::int64_t steps() const { return std::ssize(source_->training()) / 8; }
  /// Milliseconds of a pass over the samples, which the loader reads from a disk whose pages nobody has.
  double from_disk() {
    was_cold_ = forget_pages(session_->cache->store().folder()) && was_cold_;
    if (session_->loader) session_->loader->seek(1);
    return time_ms([&] {
      for (std::int64_t step = 1; step <= steps(); ++step)
        time_step_ms(*session_, step, session_->load_share(step, hold_), session_->plan, {});
    });
  }
  /// The same samples, which lie in memory.
  double from_memory() {
    return time_ms([&] {
      for (std::int64_t step = 1; step <= steps(); ++step) {
        std::vector<model::StreamSample> share;
        for (const std::uint64_t position : session_->positions_of(step))
          share.push_back({&loaded_[static_cast<std::size_t>(session_->stream.at(position))], position});
        time_step_ms(*session_, step, share, session_->plan, {});
      }
    });
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

void reading(const char* mode, int pixels, bool briefly) {
  Cached run(mode, pixels, briefly ? 32 : 256);
  run.from_memory();
  std::vector<double> cold, itself;
  for (int round = 0; round < (briefly ? 1 : 5) * kRounds; ++round) {
    const double before = run.from_memory(), disk = run.from_disk(), after = run.from_memory();
    cold.push_back(2 * disk / (before + after));
    itself.push_back(after / before);
  }
  std::sort(itself.begin(), itself.end());
  fmt::print(
      "FIGURE {}: {} cached steps that read {:.1f} MiB from a cold disk{}, beside the same from memory = {:.3f} x "
      "(bound 1.02: {})\n",
      mode, run.steps(), static_cast<double>(run.bytes()) / (1 << 20), cold_or_not(run.was_cold()), median(cold),
      median(cold) <= 1.02 ? "met" : "NOT met");
  fmt::print("FIGURE {}: those from memory beside themselves, nine in ten within = {:.3f} x\n", mode,
             std::max(1 / itself[1], itself[itself.size() - 2]));
}

void run(std::int64_t mebibytes, std::int64_t records) {
  {
    const Folder folder;
    throughput(folder, mebibytes);
    memory_tier(mebibytes);
    opening(folder, records);
  }
  steps("prefix", 448);
  steps("hybrid", 448);
  const bool briefly = mebibytes < kMebibytes;
  reading("prefix", 448, briefly);
  reading("hybrid", 448, briefly);
}

}  // namespace
}  // namespace plimsoll::train

int main(int argc, char** argv) {
  return plimsoll::train::tiny_bench_program([&] {
    const std::int64_t mebibytes = argc > 1 ? std::atoll(argv[1]) : plimsoll::train::kMebibytes;
    const std::int64_t records = argc > 2 ? std::atoll(argv[2]) : 10'000'000;
    if (mebibytes < 2 || records < 1)
      plimsoll::fail(plimsoll::ExitCode::kUsage, "usage: cache_bench [MiB >= 2] [records >= 1]");
    plimsoll::train::run(mebibytes, records);
  });
}
