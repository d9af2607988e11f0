// Does what a file of requests says and writes what came out, so that tests in Python can compare it with transformers.
//
//   vlm_input_probe REQUESTS.json RESULTS.json
//
// A list of objects in, a list of objects out. Arrays of values go into raw files that the request names. An Error
// becomes
// {"error": text, "code": number}.

#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "core/error.h"
#include "data/hub_files.h"
#include "data/image_file.h"
#include "data/image_processor.h"
#include "data/tokenizer.h"
#include "data/vlm_input.h"

namespace {

using Json = nlohmann::json;
namespace data = plimsoll::data;

template <class T>
void write_raw(const std::string& path, const std::vector<T>& values) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(T)));
  if (!file.flush()) plimsoll::fail(plimsoll::ExitCode::kData, "{}: cannot be written", path);
}

Json encode(const Json& request) {
  const data::Tokenizer tokenizer(request.at("tokenizer").get<std::string>());
  Json ids = Json::array(), decoded = Json::array();
  for (const Json& text : request.at("texts")) {
    const auto encoded = tokenizer.encode(text.get<std::string>());
    ids.push_back(encoded);
    decoded.push_back(tokenizer.decode(encoded));
  }
  return {{"ids", ids}, {"decoded", decoded}};
}

Json decode(const Json& request) {
  const data::Image image = data::read_image(request.at("path").get<std::string>());
  write_raw(request.at("out").get<std::string>(), image.pixels);
  return {{"height", image.height}, {"width", image.width}};
}

Json to_json(const plimsoll::VlmInput& input) {
  return {
      {"input_ids", input.input_ids}, {"position_ids", input.position_ids}, {"image_grid_thw", input.image_grid_thw}};
}

Json prepare(const Json& request) {
  static std::map<std::string, std::unique_ptr<data::VlmProcessor>> processors;
  const auto model = request.at("model").get<std::string>(), text = request.at("text").get<std::string>();
  auto& processor = processors[model];
  if (!processor) processor = std::make_unique<data::VlmProcessor>(model);
  const std::int64_t resolution = request.value("resolution", 0);
  std::vector<data::Image> images;
  std::vector<data::ImageSize> sizes;
  for (const Json& path : request.at("images")) {
    images.push_back(data::read_image(path.get<std::string>()));
    sizes.push_back(images.back().size());
  }
  const plimsoll::VlmInput input = processor->prepare(text, images, resolution);
  if (request.contains("out")) write_raw(request.at("out").get<std::string>(), input.pixel_values);
  Json result = to_json(input);
  const plimsoll::SampleShape shape = processor->shape(text, sizes, resolution);
  result["shape"] = {shape.tokens, shape.patches};
  return result;
}

Json write_model(const Json& request) {
  const auto dir = request.at("dir").get<std::string>();
  const data::SpecialIds ids = data::write_tokenizer(dir, request.at("vocabulary").get<std::int64_t>());
  data::write_image_processor(dir, {});
  return {{"pad", ids.pad},
          {"im_start", ids.im_start},
          {"im_end", ids.im_end},
          {"vision_start", ids.vision_start},
          {"vision_end", ids.vision_end},
          {"vision_pad", ids.vision_pad},
          {"image_pad", ids.image_pad},
          {"video_pad", ids.video_pad}};
}

Json answer(const Json& request) {
  const auto op = request.at("op").get<std::string>();
  if (op == "encode") return encode(request);
  if (op == "decode") return decode(request);
  if (op == "prepare") return prepare(request);
  if (op == "write_model") return write_model(request);
  plimsoll::fail(plimsoll::ExitCode::kUsage, "request \"{}\" is not known", op);
}

Json answer_or_error(const Json& request) {
  try {
    return answer(request);
  } catch (const plimsoll::Error& error) {
    return {{"error", error.what()}, {"code", static_cast<int>(error.code())}};
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    fmt::print(stderr, "usage: vlm_input_probe REQUESTS.json RESULTS.json\n");
    return 2;
  }
  try {
    std::ifstream requests(arguments[1]);
    Json results = Json::array();
    for (const Json& request : Json::parse(requests)) results.push_back(answer_or_error(request));
    std::ofstream(arguments[2]) << results.dump(-1, ' ', false, Json::error_handler_t::replace);
  } catch (const std::exception& error) {
    fmt::print(stderr, "vlm_input_probe: {}\n", error.what());
    return 1;
  }
  return 0;
}
