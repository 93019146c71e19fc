// What the kernels of this library were compiled by and for, for the banner.
extern "C" const char* llmc_cuda_build() { return LLMC_CUDA_BUILD; }
