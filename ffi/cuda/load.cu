// Loads all kernels onto a device at once.
//
// By itself CUDA loads a kernel when it is first launched, and may wait there for what runs on the
// device. XLA launches kernels while NCCL's wait for other devices, which wait for this process:
// it would hang in its first step.
#include <thread>
#include <vector>

#include "cuda/gpu.cuh"

namespace llmc::cuda {
namespace {

std::vector<const void*>& Kernels() {
  static std::vector<const void*> kernels;  // there when the first variable is made
  return kernels;
}

cudaError_t Load(int device) {
  cudaError_t error = cudaSetDevice(device);
  for (const void* kernel : Kernels()) {
    cudaFuncAttributes attributes;  // they are known of what is loaded only
    if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel);
  }
  return error;
}

}  // namespace

void Register(const void* kernel) { Kernels().push_back(kernel); }

}  // namespace llmc::cuda

// Null, or what CUDA says where the kernels do not run on the device of this number.
extern "C" const char* llmc_cuda_load(int device) {
  cudaError_t error = cudaSuccess;
  // A thread has a device in use of its own, and the caller's stays. (To set it anew after this
  // would start CUDA on device 0 where the caller had used none, in every process of a machine.)
  std::thread([&] { error = llmc::cuda::Load(device); }).join();
  return llmc::cuda::ToStatus(error).error;
}

// How many there are, for a test.
extern "C" int llmc_cuda_kernels() {
  return static_cast<int>(llmc::cuda::Kernels().size());
}
