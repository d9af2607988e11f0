#pragma once
// Folders with a small tokenizer and image processor, for tests of what reads them.

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "data/hub_files.h"

namespace plimsoll::data {

/// A folder that is removed with its owner.
class TestFolder {
 public:
  TestFolder() {
    std::string made = (std::filesystem::temp_directory_path() / "plimsoll_XXXXXX").string();
    if (!mkdtemp(made.data())) throw std::runtime_error("no temporary folder");
    path_ = made;
  }
  ~TestFolder() { std::filesystem::remove_all(path_); }
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;

  std::string file(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }
  void write(const std::string& name, const std::string& content) const { std::ofstream(file(name)) << content; }
  nlohmann::json read_json(const std::string& name) const {
    std::ifstream stream(file(name));
    return nlohmann::json::parse(stream);
  }

 private:
  std::string path_;
};

/// The text and image side of a model directory, as init-model writes it.
class ModelFolder : public TestFolder {
 public:
  explicit ModelFolder(std::int64_t vocabulary = 600, const ImageProcessorOptions& options = {})
      : ids(write_tokenizer(path(), vocabulary)) {
    write_image_processor(path(), options);
  }
  SpecialIds ids;
};

}  // namespace plimsoll::data
