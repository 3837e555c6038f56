// Lets autograd run backward passes of fake CUDA tensors where there is no GPU: a device guard that
// does nothing, and hooks that have no context instead of raising. `override` makes the compiler
// refuse a torch whose interfaces differ.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <cstring>

using c10::Device, c10::DeviceIndex, c10::Stream;

namespace {

const Device card(c10::kCUDA, 0);
const Stream queue(Stream::DEFAULT, card);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::kCUDA; }
  Device exchangeDevice(Device) const override { return card; }
  Device getDevice() const override { return card; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const override { return queue; }
  Stream getDefaultStream(Device) const override { return queue; }
  Stream getNewStream(Device, int) const override { return queue; }
  Stream exchangeStream(Stream) const override { return queue; }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
};

struct Hooks final : at::CUDAHooksInterface {
  bool isBuilt() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return false; }
  bool supportsBFloat16ConvolutionWithCuDNNv8() const override { return true; }
};

}  // namespace

extern "C" void install() {
  static const Guard guard;
  static const Hooks hooks;
  c10::impl::DeviceGuardImplRegistrar registered(c10::kCUDA, &guard);
  // torch made its hooks when it was imported and offers no way to replace them: give them the
  // functions of ours (both are an object of no members but the pointer to its functions)
  auto* present = const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks());
  std::memcpy(static_cast<void*>(present), static_cast<const void*>(&hooks), sizeof(void*));
}
