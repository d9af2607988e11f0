#include "model/host_copy.h"

#include <array>
#include <utility>

#include "model/ops_node.h"

namespace plimsoll::model {
namespace {

using Table = std::array<const HostCopies*, static_cast<std::size_t>(c10::DeviceType::COMPILE_TIME_MAX_DEVICE_TYPES)>;

Table& table() {
  static Table entries{};
  return entries;
}

class DryCopies final : public HostCopies {
 public:
  at::Tensor host_like(const at::Tensor&) const override { return {}; }
  std::unique_ptr<Transfer> copy(const at::Tensor&, const at::Tensor&) const override { return nullptr; }
};

// The CPU's own memory, without asking the budgeted allocator.
at::Tensor seen_as_tensor(std::byte* block, at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::from_blob(block, sizes, at::TensorOptions(dtype));
}

void end(std::unique_ptr<Transfer>& transfer) {
  if (transfer) transfer->wait();
  transfer.reset();
}

}  // namespace

const HostCopies* host_copies_for(c10::DeviceType device) { return table()[static_cast<std::size_t>(device)]; }

void register_host_copies(c10::DeviceType device, const HostCopies* copies) {
  table()[static_cast<std::size_t>(device)] = copies;
}

const HostCopies& dry_host_copies() {
  static const DryCopies copies;
  return copies;
}

std::size_t HostChain::keep(const at::Tensor& values) {
  const at::NoGradGuard no_graph;
  Kept kept{values.sizes().vec(), values.scalar_type(), true, nullptr, {}, {}, nullptr};
  if (const HostCopies* copies = host_copies_for(values.device().type())) {
    kept.host = copies->host_like(values);
    kept.device = values.detach();
    kept.transfer = copies->copy(kept.device, kept.host);
  } else if (!values.is_meta()) {
    // Not std::make_unique: it would fill with zeros what is overwritten at once.
    kept.block.reset(new std::byte[values.nbytes()]);  // NOLINT(modernize-make-unique)
    seen_as_tensor(kept.block.get(), kept.sizes, kept.dtype).copy_(values);
  }
  kept_.push_back(std::move(kept));
  return kept_.size() - 1;
}

void HostChain::let_go() {
  end(kept_.back().transfer);
  kept_.back().device.reset();
}

void HostChain::fetch(Kept& kept, const at::Tensor& like) {
  if (kept.device.defined()) return;
  const HostCopies* copies = host_copies_for(like.device().type());
  kept.device = make(kept.sizes, kept.dtype, like);
  if (copies != nullptr) {
    kept.transfer = copies->copy(kept.host, kept.device);
  } else if (kept.block) {
    kept.device.copy_(seen_as_tensor(kept.block.get(), kept.sizes, kept.dtype));
  }
}

at::Tensor HostChain::restore(std::size_t place, const at::Tensor& like) {
  const at::NoGradGuard no_graph;
  Kept& kept = kept_.at(place);
  fetch(kept, like);
  end(kept.transfer);
  at::Tensor values = std::exchange(kept.device, {});
  if (place > 0 && kept_[place - 1].holds && host_copies_for(like.device().type()) != nullptr)
    fetch(kept_[place - 1], like);
  release(place);
  return values;
}

void HostChain::release(std::size_t place) {
  Kept& kept = kept_.at(place);
  end(kept.transfer);
  kept = Kept{};
}

}  // namespace plimsoll::model
