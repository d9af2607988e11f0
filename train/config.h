#pragma once
// The configuration of a run: one struct per TOML table, each key declared once with its text and its range
// (core/config.h says how). [memory] and [batch] are declared in memory/config.h, by the room that reads them; Config
// below puts all tables together. What a key means is its text, which `plimsoll config` prints as the manual; comments
// here say where a table is used.
//
// Whether a key may change between a run and its resumption is decided by kFreeSettings in train/session.cpp: a new key
// counts as one that changes what is learned unless it is listed there.

#include <string>
#include <vector>

#include "cache/config.h"
#include "core/config.h"
#include "data/dataset_mapping.h"
#include "memory/config.h"

namespace plimsoll::train {

/// [run]: train/run.cpp makes the folder and sets the threads; the seed goes to the weights (VlaOptions), to the order
/// of the samples (SampleStream) and to noise, times and dropout (PackingRules). The launcher reads `dir` for exit.json
/// and checkpoints.
struct RunConfig {
  std::string dir = "runs/default";
  std::int64_t seed = 0;
  std::int64_t threads = 0;
  std::string device = "cpu";

  template <class V>
  void visit(V& v) {
    v("dir", dir, "Folder that the run writes to.", not_empty());
    v("seed", seed, "Seed of initial weights, sample order, noise and dropout.", at_least(0));
    v("threads", threads, "Threads of a rank for tensor operations; 0: the cores divided by the ranks of the node.",
      at_least(0));
    v("device", device,
      "What the ranks compute on: \"cpu\", \"cuda\", or \"auto\" (a GPU where the driver knows one and the CUDA "
      "library was built). Ranks take the machine's GPUs in turn, and share them where there are fewer. "
      "Nothing has run on a GPU yet.",
      one_of({"auto", "cpu", "cuda"}));
  }
};

/// [model]: to VlaOptions by train/options.cpp; `path` also to the tokenizer and image processor of the data source. An
/// `adapter` is read before the first step of a new run only: a resumed run takes its own from the checkpoint.
struct ModelConfig {
  std::string path, dtype = "bf16", adapter;

  template <class V>
  void visit(V& v) {
    v("path", path, "Hugging Face directory of a Qwen2.5-VL model.");
    v("dtype", dtype,
      "\"bf16\": frozen weights and matrix products in bfloat16, as under autocast; \"fp32\": throughout.",
      one_of({"bf16", "fp32"}));
    v("adapter", adapter, "PEFT directory of the adapter to start from; empty: a new one.");
  }
};

/// [lora]: to model::LoraOptions. Not used in stage 1. With `model.adapter`, rank and alpha must be those of that
/// adapter.
struct LoraConfig {
  std::int64_t rank = 8;
  double alpha = 16, dropout = 0.05;
  std::string targets = R"(.*language_model.*\.(q|k|v|o|gate|up|down)_proj)";

  template <class V>
  void visit(V& v) {
    v("rank", rank, "Rank of the adapters.", at_least(1));
    v("alpha", alpha, "The adapters' product is scaled by alpha / rank.", above(0));
    v("dropout", dropout, "Dropout of the adapters' input in training.", between(0.0, 0.95));
    v("targets", targets, "Regular expression that a module's full name must match to be adapted.", not_empty());
  }
};

/// [expert]: to model::ExpertOptions. `chunk` also tells the data source how many actions a sample has. More `draws`
/// cost memory and time in the expert only: they share one forward of the VLM.
struct ExpertConfig {
  std::string kind = "ddpm";
  std::int64_t width = 384, depth = 8, heads = 6, draws = 4, chunk = 16, diffusion_steps = 100, sampling_steps = 10;

  template <class V>
  void visit(V& v) {
    v("kind", kind, "\"ddpm\" (noise prediction, DDIM sampling) or \"flow\" (flow matching).",
      one_of({"ddpm", "flow"}));
    v("width", width, "Features of the action expert.", at_least(8));
    v("depth", depth, "Blocks of the action expert.", at_least(1));
    v("heads", heads, "Attention heads; must divide the width.", at_least(1));
    v("draws", draws, "Noise draws per sample that share one VLM forward.", at_least(1));
    v("chunk", chunk, "Actions predicted at once.", at_least(1));
    v("diffusion_steps", diffusion_steps, "Noise levels of \"ddpm\".", at_least(2));
    v("sampling_steps", sampling_steps, "Denoising steps when acting.", at_least(1));
  }
};

/// [sensor]: the data source cuts windows of `window` rows out of `feature`; the encoder makes window / patch tokens of
/// each. Made-up samples have a sensor whenever `window` is not 0; datasets need `feature` too.
struct SensorConfig {
  std::string feature;
  std::int64_t window = 0, patch = 4, width = 128;

  template <class V>
  void visit(V& v) {
    v("feature", feature, "Dataset feature that holds the sensor's channels; empty: no sensor.");
    v("window", window, "Time steps of the sensor window; 0: no sensor.", at_least(0));
    v("patch", patch, "Time steps per sensor token; must divide the window.", at_least(1));
    v("width", width, "Features of the sensor encoder.", at_least(8));
  }
};

/// [data]: to data::LeRobotSourceOptions or data::SyntheticOptions by train/source.cpp (an entry of `mix` is declared
/// in data/dataset_mapping.h, what `action_space` does in data/action_space.h), `workers` and `prefetch` to the loader.
/// The last two change no sample, only how long a step waits. `resolution` is where the plan's resolution starts; the
/// bounds are the policy's, and matter only where memory.knobs names "resolution".
struct DataConfig {
  std::vector<std::string> path;
  std::vector<double> weights;
  std::vector<data::DatasetMapping> mix;
  std::vector<std::string> cameras;
  std::string action_space = "absolute", statistics = "each";
  std::vector<std::int64_t> delta_dimensions;
  std::string state = "observation.state", action = "action", normalisation = "mean_std";
  std::int64_t resolution = 0, min_resolution = 112, max_resolution = 448, workers = 1, prefetch = 2;
  double eval_fraction = 0.05;
  bool adaptive = true;
  Setting loader_bytes = "auto";
  std::int64_t adjust_every = 50, most_adjustments = 0, most_workers = 0, most_prefetch = 16;
  std::int64_t synthetic_samples = 0, synthetic_images = 1, synthetic_side = 0, synthetic_text = 0, synthetic_tasks = 0;

  template <class V>
  void visit(V& v) {
    visit_samples(v);
    visit_sizes(v);
    visit_loader(v);
    v("eval_fraction", eval_fraction, "Fraction of the episodes, the last ones, kept out of training to measure on.",
      between(0.0, 0.5));
    visit_synthetic(v);
  }

 private:
  template <class V>
  void visit_samples(V& v) {
    v("path", path,
      "LeRobot dataset directory, or several whose features have the same names: they are trained on as one. The last "
      "episodes of each are held out, tasks of the same text are one task.");
    v("weights", weights,
      "How often samples of each dataset of `path` are drawn, in its order: numbers above 0, which mean what `weight` "
      "does in `mix`; empty: by their numbers of samples.");
    v("mix", mix,
      "Datasets of different layouts in place of `path`, each with the mapping of its features. "
      "Rows are taken as recorded, whatever the frames per second.");
    v("cameras", cameras,
      "Image features to use, in this order; empty: all (of the first dataset). With `mix`, the roles of the cameras "
      "in the order of a sample's pictures.");
    v("state", state, "Feature that holds the proprioceptive state.", not_empty());
    v("action", action, "Feature that holds the action.", not_empty());
    v("action_space", action_space,
      "\"absolute\": actions as the dataset holds them; \"delta\": their difference to the state at the moment of the "
      "sample, for all actions of the chunk. Normalised by statistics of the differences, which are computed over the "
      "whole dataset when it is opened; data/action_space.h has the way back.",
      one_of({"absolute", "delta"}));
    v("delta_dimensions", delta_dimensions,
      "With \"delta\", the dimensions of an action that are differences, from 0, after a mapping; the others, such as "
      "a "
      "gripper, stay absolute. Each belongs to the state's dimension of the same name, else of the same index. Empty: "
      "all that have one: of the same name where both features name theirs, else of the same index.");
    v("normalisation", normalisation, "How states, actions and sensors are normalised, from the dataset's statistics.",
      one_of({"mean_std", "min_max", "quantiles"}));
    v("statistics", statistics,
      "With several datasets, \"each\": every one is normalised by its own statistics; \"joint\": all by those of all "
      "their frames together, which has no quantiles.",
      one_of({"each", "joint"}));
  }
  template <class V>
  void visit_sizes(V& v) {
    v("resolution", resolution, "Longer side of an image in pixels; 0: as it is.", at_least(0));
    v("min_resolution", min_resolution, "Smallest resolution that the policy chooses, where that knob is on.",
      at_least(28));
    v("max_resolution", max_resolution, "Largest resolution that the policy chooses, where that knob is on.",
      at_least(28));
  }
  template <class V>
  void visit_loader(V& v) {
    v("workers", workers, "Loader threads at start.", between(1, 64));
    v("prefetch", prefetch, "Steps that the loader is ahead at start.", at_least(1));
    v("adaptive", adaptive,
      "Both change while the run goes on, by how busy the device is, whether loading is slower than processing "
      "and what memory is free. "
      "`loader.toml` in run.dir says at the end where to start the next run.");
    v("adjust_every", adjust_every, "Steps between two such changes.", at_least(1));
    v("most_adjustments", most_adjustments,
      "Such changes of a run after which the loader stays as it is; 0: as many as there is reason for.", at_least(0));
    v("most_workers", most_workers,
      "Loader threads that it may come to; 0: the machine's cores by all ranks, or `workers` if that is more.",
      between(0, 64));
    v("most_prefetch", most_prefetch, "Steps that it may come to be ahead.", at_least(1));
    v("loader_bytes", loader_bytes,
      "Bytes of host memory that a rank's loaded samples and decoded frames may take: \"auto\" (no bound of samples "
      "but that the adaptive loader is less far ahead where more than four fifths of the machine's memory are in use) "
      "or a size. A single step's samples may take more.",
      either({one_of({"auto"}), byte_size()}));
  }
  template <class V>
  void visit_synthetic(V& v) {
    v("synthetic_samples", synthetic_samples,
      "Train on this many made-up samples instead of a dataset, to try memory and speed; 0: off.", at_least(0));
    v("synthetic_images", synthetic_images, "Pictures of a made-up sample.", between(1, 64));
    v("synthetic_side", synthetic_side,
      "Pixels of their sides, a multiple of 28; 0: sides differ from 56 to 112, and every 16th sample has 224.",
      between(0, 4480));
    v("synthetic_text", synthetic_text, "Text tokens of a made-up sample; 0: 8 to 40.", between(0, 100000));
    v("synthetic_tasks", synthetic_tasks, "Tasks that made-up samples are of, in turn; 0: none.", between(0, 1000));
  }
};

/// [train]: optimiser and schedule (step_options in train/options.h, train/schedule.h), length of the run, checkpoints,
/// evaluation. `lr` is for expert and sensor encoder, `vl_lr` for adapters; both follow the same schedule. `clip_norm`
/// bounds the norm over all trainable tensors together. Steps that were skipped count towards the length, not towards
/// AdamW's time.
struct TrainConfig {
  std::int64_t stage = 2, epochs = 10, max_steps = 0, warmup_steps = 0, checkpoint_every = 200, eval_samples = 0;
  std::string stage1_checkpoint;
  double lr = 1e-4, vl_lr = 1e-5, weight_decay = 0.01, clip_norm = 1.0, beta1 = 0.9, beta2 = 0.999;

  template <class V>
  void visit(V& v) {
    v("stage", stage, "1: sensor encoder and expert, the VLM frozen; 2: with LoRA in the VLM.", between(1, 2));
    v("stage1_checkpoint", stage1_checkpoint,
      "Checkpoint folder of stage 1 that stage 2 starts from; empty: from scratch.");
    v("epochs", epochs, "Passes over the training samples.", at_least(1));
    v("max_steps", max_steps, "Optimiser steps; 0: as many as the epochs have.", at_least(0));
    v("lr", lr, "Learning rate of expert and sensor encoder.", above(0));
    v("vl_lr", vl_lr, "Learning rate of the adapters in the VLM.", above(0));
    v("warmup_steps", warmup_steps, "Steps over which the learning rates rise; then they fall along a cosine.",
      at_least(0));
    v("weight_decay", weight_decay, "Decoupled weight decay of AdamW.", at_least(0));
    v("clip_norm", clip_norm, "Largest global gradient norm; 0: no clipping.", at_least(0));
    v("beta1", beta1, "AdamW: decay of the first moment.", between(0.0, 0.9999));
    v("beta2", beta2, "AdamW: decay of the second moment.", between(0.0, 0.99999));
    v("checkpoint_every", checkpoint_every, "Steps between two checkpoints; one more is written at the end.",
      at_least(1));
    v("eval_samples", eval_samples, "Held-out samples on which the action error is measured at start and end; 0: none.",
      at_least(0));
  }
};

/// An item of tasks.rules.
struct TaskRule {
  std::string name, match, field = "task";

  template <class V>
  void visit(V& v) {
    v("name", name, "Name of the type.", not_empty());
    v("match", match, "Regular expression that is looked for in the sample's `field`.", not_empty());
    v("field", field,
      "What is known of a sample that the rule is about: \"task\" (the text of its task), \"dataset\" (the name of its "
      "dataset: that of data.mix, else its folder's), \"images\" (how many images it has, in digits), \"episode\" (the "
      "index of its episode in that dataset) or \"column:NAME\" (what its row has in that column of the dataset's "
      "files, which holds one text or number a row; true and false are these words).",
      either({one_of({"task", "dataset", "images", "episode"}), starting_with("column:")}));
  }
};

/// [tasks]: train/task_types.h finds the types, data/sample_stream.h draws them, train/step.h weighs them.
struct TaskConfig {
  std::string by = "off";
  std::vector<TaskRule> rules;
  Setting target = "auto";
  std::vector<double> weights;
  bool normalise = false, gradnorm = false;
  double alpha = 1.5, balance_lr = 0.025;

  template <class V>
  void visit(V& v) {
    v("by", by,
      "What makes samples of different types, 8 at most: \"off\" (all are of one), \"task\" (each text of the "
      "dataset's tasks is a type), \"rules\" (the first of tasks.rules that matches the sample), \"dataset\" (each of "
      "data.path or data.mix is one) or \"images\" (how many images a sample has).",
      one_of({"off", "task", "rules", "dataset", "images"}));
    v("rules", rules, "Types by patterns, in the order in which they are tried.");
    v("target", target,
      "How often each type is drawn: \"natural\" (as often as the data has it, datasets by their weights if they have "
      "some), a fraction for each, or \"auto\" (0.4, 0.3, 0.3 for three types, else equal ones). Types are in the "
      "order of the dataset's tasks, of the rules, of the datasets, or of ascending numbers of images. Every type's "
      "samples come in passes of their own.",
      either({one_of({"auto", "natural"}), each(between(0.0, 1.0))}));
    v("weights", weights, "How much the loss of each type counts, 0 or more; empty: 1 each.");
    v("normalise", normalise,
      "Divide a type's loss by the samples of it in the step and multiply it by its part of the draws, so that it "
      "counts by that part in every step.");
    v("gradnorm", gradnorm,
      "Learn a weight for each type beside these, so that all types train at a like pace (GradNorm, Chen et al. 2018). "
      "The layer that they are balanced by is the expert's last.");
    v("alpha", alpha, "GradNorm: how strongly a type that has learned less is pulled ahead.", between(0.0, 12.0));
    v("balance_lr", balance_lr, "GradNorm: learning rate of the weights.", above(0));
  }
};

/// [launch]: read by `plimsoll launch` (ranks, restarts, time limit, mpirun) and, `timeout` only, by every rank's
/// communicator.
struct LaunchConfig {
  std::int64_t ranks = 1, max_restarts = 10;
  double time_limit = 0, timeout = 600;
  std::vector<std::string> mpirun_args;

  template <class V>
  void visit(V& v) {
    v("ranks", ranks, "Ranks to start when -n is not given.", at_least(1));
    v("max_restarts", max_restarts, "Restarts from the last checkpoint after a rank was lost.", at_least(0));
    v("time_limit", time_limit, "Seconds after which the run is checkpointed and stopped; 0: none.", at_least(0));
    v("timeout", timeout,
      "Seconds that a rank waits for the others in a collective, at least; ten times the longest step if that is more.",
      above(0));
    v("mpirun_args", mpirun_args, "Further arguments for mpirun.");
  }
};

/// [report]: what rank 0 prints (report/console.h), leaves behind (report/report_files.h, called by train/run.cpp) and
/// sends to an MLflow server (report/mlflow_log.h). On a terminal one progress line is redrawn in place and `every` is
/// not used.
struct ReportConfig {
  std::int64_t every = 1;
  bool files = true;
  std::string mlflow_uri, mlflow_experiment = "plimsoll";
  double mlflow_flush = 5;

  template <class V>
  void visit(V& v) {
    v("every", every, "Steps between two progress lines where there is no terminal.", at_least(1));
    v("files", files,
      "Write report files at the end of a run that is done or stopped: metrics as JSON, plots where gnuplot is "
      "installed, report.html. `plimsoll report` writes the same at any time.");
    v("mlflow_uri", mlflow_uri,
      "MLflow tracking server that parameters and metrics are sent to: http://host:port or https://host:port/prefix; "
      "empty: none. It never holds a step: what it does not take waits in the run's folder.");
    v("mlflow_experiment", mlflow_experiment, "Experiment on that server; made where there is none.", not_empty());
    v("mlflow_flush", mlflow_flush,
      "Seconds that the end of a run waits, at most, for what is still to be sent to that server; never more than half "
      "of launch.timeout.",
      between(0.0, 3600.0));
  }
};

/// All tables, in the order of the manual. Equal on every rank: the start handshake compares its hash.
struct Config {
  RunConfig run;
  ModelConfig model;
  LoraConfig lora;
  ExpertConfig expert;
  SensorConfig sensor;
  DataConfig data;
  memory::BatchConfig batch;
  memory::MemoryConfig memory;
  cache::CacheConfig cache;
  TrainConfig train;
  TaskConfig tasks;
  LaunchConfig launch;
  ReportConfig report;

  template <class V>
  void visit(V& v) {
    v.table("run", run, "Where a run lives.");
    v.table("model", model, "The vision-language model.");
    v.table("lora", lora, "Low-rank adapters in the language model (stage 2).");
    v.table("expert", expert, "The diffusion action expert.");
    v.table("sensor", sensor, "The sensor encoder.");
    v.table("data", data, "The dataset and its loader.");
    v.table("batch", batch, "The batch, which is fixed, and how it is cut, which is not.");
    v.table("memory", memory, "Budgets, and how the plan is chosen.");
    v.table("cache", cache, "Features that are kept across epochs.");
    v.table("train", train, "The optimisation.");
    v.table("tasks", tasks, "Types of samples: how often they are drawn, and how much they count.");
    v.table("launch", launch, "Starting and supervising ranks.");
    v.table("report", report, "What is printed, what is left for people, and what is sent.");
  }
};

}  // namespace plimsoll::train
