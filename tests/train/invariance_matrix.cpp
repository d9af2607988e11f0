// Promise 2: the plan never changes the result. Every micro-batch x recompute x fault in this world against one
// reference, which world 1 writes to a file and the other worlds read; and a few of these where samples have types
// ([tasks]), in fp32 and bf16, against references of their own. A gtest program that runs under mpirun:
// `PLIMSOLL_INVARIANCE=FOLDER mpirun -n W invariance_matrix`.

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.h"
#include "memory/cpu_allocator.h"
#include "memory/dry_run.h"
#include "tests/train/tiny_run.h"
#include "train/source.h"

namespace plimsoll::train {
namespace {

std::unique_ptr<ddp::Communicator> communicator;
std::filesystem::path folder;

constexpr int kSteps = 3;

// Where an allocation of the first micro-batch of step 2 fails: in the middle of its forward or of its backward.
enum class Fault { kNone, kForward, kBackward };

// What [tasks] makes of the samples.
enum class Types { kNone, kNormalised, kGradNorm };

/// What a run learns: runs of the same are equal.
struct Learning {
  Types types = Types::kNone;
  const char* dtype = "fp32";
  std::string name() const {
    const char* of_types = types == Types::kNone ? "" : types == Types::kNormalised ? "Normalised" : "GradNorm";
    return fmt::format("{}{}", of_types, std::string_view(dtype) == "bf16" ? "Bf16" : "");
  }
};

struct Cell {
  int micro_batch;  ///< 0: the whole share
  int recompute;    ///< blocks of four
  Fault fault;
  bool everything = false;  ///< the expert's two blocks too, and what is kept offloaded
  bool filled = false;      ///< micro-batches up to the bytes that half of the share may need
  Learning learning = {};
  bool packed = false;  ///< the share is cut by these bytes, not by counts
};

struct Observed {
  Trained trained;
  std::vector<double> of_types;  ///< of each step: sums of losses by type, then norms of gradients
  std::vector<float> gradient;   ///< of the first step
};

/// Relative differences that the order of summation may make.
struct Tolerance {
  double losses, of_types, gradient, values, tensor;
};

Tolerance tolerance_of(const Learning& learning) {
  // Where the order of a sum turns its last bit, its rounding to 8 bits may turn too, in a few places. What AdamW makes
  // of a gradient that is nearly nothing, which one of a small tensor may be altogether, then says nothing.
  if (std::string_view(learning.dtype) == "bf16")
    return {1e-3, 5e-3, 5e-3, 1e-3, std::numeric_limits<double>::infinity()};
  return {1e-5, 1e-4, 1e-5, 1e-5, 1e-3};
}

// Shares of 16, 8, and 6 or 5 samples in worlds of 1, 2 and 3: every micro-batch of the matrix cuts them differently.
Config matrix_config(const Learning& learning = {}) {
  Config config = tiny_config((folder / "model").string());
  config.batch.effective = 16;
  config.model.dtype = learning.dtype;
  if (learning.types == Types::kNone) return config;
  config.data.synthetic_tasks = 3;
  config.tasks.by = "task";
  config.tasks.weights = {1, 0.5, 2};
  config.tasks.normalise = true;
  config.tasks.gradnorm = learning.types == Types::kGradNorm;
  config.tasks.balance_lr = 1e-12;  // steps of GradNorm's weights hang on signs, see train/task_balance.h
  return config;
}

// The number of the allocation that is to fail, found by running the micro-batch up to the end of its forward, and
// whole.
std::int64_t place_of(Fault fault, Session& session, std::span<const model::StreamSample> samples) {
  const auto piece = samples.first(std::min(samples.size(), static_cast<std::size_t>(session.plan.micro_batch)));
  const auto rules = session.model->packing_rules(static_cast<std::uint64_t>(session.config.run.seed), false);
  const model::Recompute recompute = recompute_of(session.plan);
  const auto forward = memory::measured_run([&] {
                         session.model->sample_losses(model::pack(piece, rules, at::kCPU), recompute);
                       }).allocations();
  const auto whole = memory::measured_run([&] {
                       forward_backward(*session.model, model::pack(piece, rules, at::kCPU), recompute,
                                        session.config.batch.effective);
                     }).allocations();
  session.buffers->discard_staging();
  return fault == Fault::kForward ? forward / 2 : forward + (whole - forward) / 2;
}

// The whole share, then less and less of it, plain and as the plan recomputes: which of them a step takes depends on
// its samples, and a step may have micro-batches of both kinds.
std::vector<memory::Candidate> ways_of_share(const Session& session) {
  std::vector<memory::Candidate> ways;
  for (int size = static_cast<int>(session.share); size > session.plan.micro_batch; --size) {
    memory::Plan way = session.plan;
    way.micro_batch = size;
    ways.push_back({memory::plain(way), 1, 1});
    if (memory::saves_memory(way)) ways.push_back({way, 1, 1});
  }
  return ways;
}

/// Takes in what the step of this number, which was applied, came to.
void observe(std::int64_t step, Session& session, const StepResult& result, Observed& run) {
  run.trained.losses.push_back(result.loss);
  for (const auto& values : {result.type_losses, result.type_norms})
    run.of_types.insert(run.of_types.end(), values.begin(), values.end());
  if (step == 1) {
    const auto gradients = session.buffers->gradients();
    run.gradient.assign(gradients.begin(), gradients.end());
  }
  session.balance(step, result);
}

Observed run_cell(const Cell& cell) {
  Config config = matrix_config(cell.learning);
  if (cell.packed) config.batch.packing = "bytes";
  const auto source = make_source(config);
  Session session(config, *communicator, *source);
  if (config.tasks.gradnorm) session.state.balance = {{0.6, 1.1, 1.3}, {0, 0, 0}};
  session.plan.micro_batch = cell.micro_batch == 0 ? static_cast<int>(session.share) : cell.micro_batch;
  session.plan.recompute_blocks = cell.recompute;
  session.plan.recompute_expert = cell.everything ? 2 : 0;
  session.plan.offload = cell.everything;
  const auto ways = ways_of_share(session);
  memory::Fill fill;
  if (cell.filled) {
    const int half = static_cast<int>(session.share + 1) / 2;
    fill = {ways, session.predictor->bytes(session.draws_at(session.plan.resolution).heaviest(half), session.plan)};
  }
  Observed run;
  std::vector<std::shared_ptr<const Sample>> hold;
  int retries = 0;
  for (int step = 1; step <= kSteps; ++step) {
    const auto samples = session.load_share(step, hold);
    if (step == 2 && cell.fault != Fault::kNone && communicator->rank() == communicator->world() - 1) {
      memory::CpuAllocator::install().fail_at(place_of(cell.fault, session, samples));
    }
    StepInput input;
    input.step = step;
    input.updates = step - 1;
    input.samples = samples;
    input.plan = session.plan;
    input.fill = fill;
    StepResult result = session.step->run(input);
    if (cell.filled && result.guardian.retries == 0) {
      EXPECT_LT(result.guardian.micro_batches, static_cast<int>(samples.size()));
    }
    retries += result.guardian.retries + (result.guardian.failed ? 1 : 0);
    if (result.verdict.action == ddp::Action::kReplay) result = session.step->run(input);
    observe(step, session, result, run);
  }
  if (cell.fault != Fault::kNone && communicator->rank() == communicator->world() - 1) {
    EXPECT_EQ(retries, 1) << "the fault was not met";
  }
  const auto values = session.buffers->parameters();
  run.trained.values.assign(values.begin(), values.end());
  run.trained.slots = session.buffers->slots();
  return run;
}

template <class T>
void append(const std::vector<T>& values, std::string& bytes) {
  const std::uint64_t size = values.size();
  bytes.append(reinterpret_cast<const char*>(&size), sizeof(size));
  bytes.append(reinterpret_cast<const char*>(values.data()), size * sizeof(T));
}

template <class T>
std::vector<T> taken_from(std::string_view& bytes) {
  std::uint64_t size = 0;
  std::memcpy(&size, bytes.data(), sizeof(size));
  bytes.remove_prefix(sizeof(size));
  std::vector<T> values(size);
  if (size > 0) std::memcpy(values.data(), bytes.data(), size * sizeof(T));
  bytes.remove_prefix(size * sizeof(T));
  return values;
}

std::filesystem::path reference_file(const Learning& learning) {
  return folder / fmt::format("reference{}.bin", learning.name());
}

void save(const Observed& run, const std::filesystem::path& file) {
  std::string bytes;
  append(run.trained.losses, bytes);
  append(run.trained.values, bytes);
  append(run.of_types, bytes);
  append(run.gradient, bytes);
  write_file_durably(file, bytes);
}

Observed load(const std::filesystem::path& file) {
  const std::string bytes = read_file(file);
  std::string_view rest = bytes;
  Observed run;
  run.trained.losses = taken_from<double>(rest);
  run.trained.values = taken_from<float>(rest);
  run.of_types = taken_from<double>(rest);
  run.gradient = taken_from<float>(rest);
  return run;
}

const Observed& reference(const Learning& learning = {}) {
  static std::map<std::string, Observed> all;
  const auto found = all.find(learning.name());
  return found != all.end() ? found->second : all[learning.name()] = load(reference_file(learning));
}

std::string name_of(const Cell& cell) {
  const char* fault = cell.fault == Fault::kNone      ? "NoFault"
                      : cell.fault == Fault::kForward ? "ForwardFault"
                                                      : "BackwardFault";
  const char* way = cell.packed ? "Packed" : cell.everything ? "ExpertOffload" : cell.filled ? "Filled" : "";
  return fmt::format("{}Micro{}Recompute{}{}{}", cell.learning.name(),
                     cell.micro_batch == 0 ? "All" : std::to_string(cell.micro_batch), cell.recompute, way, fault);
}

class InvarianceMatrix : public testing::TestWithParam<Cell> {};

void expect_near(const std::vector<double>& found, const std::vector<double>& expected, double tolerance,
                 const char* what) {
  ASSERT_EQ(found.size(), expected.size()) << what;
  for (std::size_t i = 0; i < found.size(); ++i)
    EXPECT_NEAR(found[i] / expected[i], 1.0, tolerance)
        << what << ", value " << i + 1 << " of all steps' " << found.size();
}

TEST_P(InvarianceMatrix, TheSameLossesAndWeights) {
  at::set_num_threads(1 + GetParam().recompute);  // 1, 3 or 5: the reference had one
  const Observed run = run_cell(GetParam());
  const Observed& expected = reference(GetParam().learning);
  const Tolerance most = tolerance_of(GetParam().learning);
  expect_near(run.trained.losses, expected.trained.losses, most.losses, "losses");
  expect_near(run.of_types, expected.of_types, most.of_types, "losses and norms by type");
  const double gradient = relative_l2(run.gradient, expected.gradient);
  const double values = relative_l2(run.trained.values, expected.trained.values);
  RecordProperty("gradient_relative_l2", fmt::format("{:.2g}", gradient));
  RecordProperty("values_relative_l2", fmt::format("{:.2g}", values));
  EXPECT_LT(gradient, most.gradient) << "of the first step";
  EXPECT_LT(values, most.values);
  // And no tensor is left out or counted twice. AdamW divides by the size of the gradient itself: where that is nearly
  // nothing a value moves by its rounding, which a small tensor shows (1.1e-4 was seen).
  for (const FlatSlot& slot : run.trained.slots) {
    const auto values_of = [&](const std::vector<float>& all) {
      return std::vector<float>(all.begin() + slot.range.begin, all.begin() + slot.range.end);
    };
    EXPECT_LT(relative_l2(values_of(run.trained.values), values_of(expected.trained.values)), most.tensor) << slot.name;
  }
}

// Each with a reference of its own.
constexpr std::array kTyped = {Learning{Types::kNormalised, "fp32"}, Learning{Types::kGradNorm, "fp32"},
                               Learning{Types::kGradNorm, "bf16"}};

void add_typed_cells(std::vector<Cell>& cells) {
  for (const Learning& learning : kTyped) {
    cells.push_back({1, 0, Fault::kNone, false, true, learning, true});
    cells.push_back({2, 4, Fault::kForward, false, false, learning});
    if (learning.types == Types::kNormalised) continue;
    cells.push_back({1, 0, Fault::kNone, false, false, learning});
    cells.push_back({5, 2, Fault::kBackward, false, false, learning});
    cells.push_back({0, 4, Fault::kNone, true, false, learning});
  }
}

std::vector<Cell> all_cells() {
  std::vector<Cell> cells;
  for (const int micro : {1, 2, 5, 0}) {
    for (const int recompute : {0, 2, 4}) {
      for (const auto fault : {Fault::kNone, Fault::kForward, Fault::kBackward})
        cells.push_back({micro, recompute, fault});
    }
  }
  for (const int micro : {2, 0}) {
    for (const auto fault : {Fault::kNone, Fault::kForward, Fault::kBackward}) cells.push_back({micro, 4, fault, true});
  }
  for (const int recompute : {0, 4}) {
    for (const auto fault : {Fault::kNone, Fault::kForward, Fault::kBackward})
      cells.push_back({1, recompute, fault, false, true});
  }
  add_typed_cells(cells);
  return cells;
}

INSTANTIATE_TEST_SUITE_P(All, InvarianceMatrix, testing::ValuesIn(all_cells()),
                         [](const auto& cell) { return name_of(cell.param); });

// What the ranks compare in every step ends the job on all of them at once.
std::optional<Error> after_one_rank_changed(const std::function<void(Session&)>& change) {
  const Config config = matrix_config();
  const auto source = make_source(config);
  Session session(config, *communicator, *source);
  if (communicator->rank() == communicator->world() - 1) change(session);
  std::vector<std::shared_ptr<const Sample>> hold;
  StepInput input;
  input.step = 1;
  const auto samples = session.load_share(1, hold);
  input.samples = samples;
  input.plan = session.plan;
  input.hash_weights = true;
  return session.step->run(input).fatal;
}

TEST(Hashes, OfEqualRanksAgree) {
  EXPECT_FALSE(after_one_rank_changed([](Session&) {}));
}

TEST(Hashes, FindOneValueThatDiffers) {
  if (communicator->world() == 1) return;
  const auto fatal = after_one_rank_changed([](Session& s) {
    float& last = s.buffers->parameters().back();
    last = std::nextafter(last, 2.0F);
  });
  ASSERT_TRUE(fatal);
  EXPECT_NE(std::string(fatal->what()).find("weights"), std::string::npos) << fatal->what();
}

TEST(Hashes, FindAnotherPlan) {
  if (communicator->world() == 1) return;
  const auto fatal = after_one_rank_changed([](Session& s) { s.plan.recompute_blocks = 1; });
  ASSERT_TRUE(fatal);
  EXPECT_NE(std::string(fatal->what()).find("plan"), std::string::npos) << fatal->what();
}

// Training must have done something, or equality would mean nothing.
// Each rank makes a part of the table's dry runs, and every rank knows all of them afterwards.
TEST(DryRuns, OfTheTableAreSharedByAllRanks) {
  Config config = tiny_config((folder / "model").string());
  config.memory.policy = "predictive";
  config.memory.recompute = config.memory.offload = config.batch.micro = "auto";
  config.memory.calibration = config.memory.table = "off";
  const auto source = make_source(config);
  const Session session(config, *communicator, *source);
  const std::size_t made = session.predictor->dry_runs();
  Draws& draws = session.draws_at(session.plan.resolution);
  for (const auto& candidate : session.candidates.all()) {
    const memory::Plan& plan = candidate.plan;
    const auto shape = draws.heaviest(plan.micro_batch);
    const auto known = session.predictor->known_bytes(shape, plan);
    ASSERT_TRUE(known.has_value()) << memory::to_string(plan);
    EXPECT_EQ(candidate.bytes, session.predicted_peak(plan));
    if (plan.micro_batch == session.plan.micro_batch) {
      EXPECT_GE(*known, session.dry->activation_bytes(shape, plan));
    }
  }
  EXPECT_EQ(session.predictor->dry_runs(), made);
  if (communicator->world() > 1) {
    EXPECT_LT(made, session.candidates.all().size()) << "a part of them";
  }
}

TEST(InvarianceReference, Learns) {
  const Config config = matrix_config();
  const auto source = make_source(config);
  Session session(config, *communicator, *source);
  const auto before = session.buffers->parameters();
  EXPECT_GT(relative_l2(std::vector<float>(before.begin(), before.end()), reference().trained.values), 1e-3);
}

}  // namespace
}  // namespace plimsoll::train

int main(int argc, char** argv) {
  using namespace plimsoll::train;
  testing::InitGoogleTest(&argc, argv);
  plimsoll::memory::CpuAllocator::install();
  at::set_num_threads(1);
  const char* given = std::getenv("PLIMSOLL_INVARIANCE");
  folder = given != nullptr ? given : "invariance";
  std::filesystem::create_directories(folder);
  communicator = plimsoll::ddp::make_communicator(folder.string(), 120);
  if (communicator->world() == 1) {
    write_tiny_model((folder / "model").string());
    save(run_cell({0, 0, Fault::kNone}), reference_file({}));
    for (const Learning& learning : kTyped)
      save(run_cell({0, 0, Fault::kNone, false, false, learning}), reference_file(learning));
  }
  int result = 1;
  try {
    result = RUN_ALL_TESTS();
    communicator->barrier();
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    communicator->abort(1);
  }
  communicator.reset();
  return result;
}
