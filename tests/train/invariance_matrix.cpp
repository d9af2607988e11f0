// Promise 2: the plan never changes the result. Every micro-batch x recompute x fault in this world against one
// reference, which world 1 writes to a file and the other worlds read. A gtest program that runs under mpirun:
// `PLIMSOLL_INVARIANCE=FOLDER mpirun -n W invariance_matrix`.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>

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

struct Cell {
  int micro_batch;  ///< 0: the whole share
  int recompute;    ///< blocks of four
  Fault fault;
  bool everything = false;  ///< the expert's two blocks too, and what is kept offloaded
  bool filled = false;      ///< micro-batches up to the bytes that half of the share may need
};

// Shares of 16, 8, and 6 or 5 samples in worlds of 1, 2 and 3: every micro-batch of the matrix cuts them differently.
Config matrix_config() {
  Config config = tiny_config((folder / "model").string());
  config.batch.effective = 16;
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

Trained run_cell(const Cell& cell) {
  const Config config = matrix_config();
  const auto source = make_source(config);
  Session session(config, *communicator, *source);
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
  Trained trained;
  std::vector<std::shared_ptr<const Sample>> hold;
  int retries = 0;
  for (int step = 1; step <= kSteps; ++step) {
    const auto samples = session.load_share(step, hold);
    if (step == 2 && cell.fault != Fault::kNone && communicator->rank() == communicator->world() - 1) {
      memory::CpuAllocator::install().fail_at(place_of(cell.fault, session, samples));
    }
    StepInput input;
    input.step = step;
    input.updates = static_cast<std::int64_t>(trained.losses.size());
    input.samples = samples;
    input.plan = session.plan;
    input.fill = fill;
    StepResult result = session.step->run(input);
    if (cell.filled && result.guardian.retries == 0) {
      EXPECT_LT(result.guardian.micro_batches, static_cast<int>(samples.size()));
    }
    retries += result.guardian.retries + (result.guardian.failed ? 1 : 0);
    if (result.verdict.action == ddp::Action::kReplay) result = session.step->run(input);
    trained.losses.push_back(result.loss);
  }
  if (cell.fault != Fault::kNone && communicator->rank() == communicator->world() - 1) {
    EXPECT_EQ(retries, 1) << "the fault was not met";
  }
  const auto values = session.buffers->parameters();
  trained.values.assign(values.begin(), values.end());
  trained.slots = session.buffers->slots();
  return trained;
}

void save(const Trained& trained, const std::filesystem::path& file) {
  std::string bytes(reinterpret_cast<const char*>(trained.losses.data()), kSteps * sizeof(double));
  bytes.append(reinterpret_cast<const char*>(trained.values.data()), trained.values.size() * sizeof(float));
  write_file_durably(file, bytes);
}

Trained load(const std::filesystem::path& file) {
  const std::string bytes = read_file(file);
  Trained trained{std::vector<double>(kSteps),
                  std::vector<float>((bytes.size() - kSteps * sizeof(double)) / sizeof(float))};
  std::memcpy(trained.losses.data(), bytes.data(), kSteps * sizeof(double));
  std::memcpy(trained.values.data(), bytes.data() + kSteps * sizeof(double), trained.values.size() * sizeof(float));
  return trained;
}

const Trained& reference() {
  static const Trained trained = load(folder / "reference.bin");
  return trained;
}

std::string name_of(const Cell& cell) {
  const char* fault = cell.fault == Fault::kNone      ? "NoFault"
                      : cell.fault == Fault::kForward ? "ForwardFault"
                                                      : "BackwardFault";
  return fmt::format("Micro{}Recompute{}{}{}", cell.micro_batch == 0 ? "All" : std::to_string(cell.micro_batch),
                     cell.recompute, cell.everything ? "ExpertOffload" : (cell.filled ? "Filled" : ""), fault);
}

class InvarianceMatrix : public testing::TestWithParam<Cell> {};

TEST_P(InvarianceMatrix, TheSameLossesAndWeights) {
  at::set_num_threads(1 + GetParam().recompute);  // 1, 3 or 5: the reference had one
  const Trained trained = run_cell(GetParam());
  for (int i = 0; i < kSteps; ++i) {
    EXPECT_NEAR(trained.losses[static_cast<std::size_t>(i)] / reference().losses[static_cast<std::size_t>(i)], 1.0,
                1e-5)
        << "step " << i + 1;
  }
  EXPECT_LT(relative_l2(trained.values, reference().values), 1e-5);
  // And no tensor is left out or counted twice. AdamW divides by the size of the gradient itself: where that is nearly
  // nothing a value moves by its rounding, which a small tensor shows (1.1e-4 was seen).
  for (const FlatSlot& slot : trained.slots) {
    const auto values_of = [&](const std::vector<float>& all) {
      return std::vector<float>(all.begin() + slot.range.begin, all.begin() + slot.range.end);
    };
    EXPECT_LT(relative_l2(values_of(trained.values), values_of(reference().values)), 1e-3) << slot.name;
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
TEST(InvarianceReference, Learns) {
  const Config config = matrix_config();
  const auto source = make_source(config);
  Session session(config, *communicator, *source);
  const auto before = session.buffers->parameters();
  EXPECT_GT(relative_l2(std::vector<float>(before.begin(), before.end()), reference().values), 1e-3);
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
    save(run_cell({0, 0, Fault::kNone}), folder / "reference.bin");
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
