# The files of the CUDA kernels, used by the library, by its emulation and by the driver in tests/.
set(LLMC_CUDA_KERNELS
  adamw.cu
  attention.cu
  attention_hopper_backward.cu
  attention_hopper_forward.cu
  attention_mma_backward.cu
  attention_mma_forward.cu
  attention_plain.cu
  classifier.cu
  encoder.cu
  gelu.cu
  global_norm.cu
  layernorm.cu
  partials.cu)
set(LLMC_CUDA_HANDLERS
  adamw.cc
  attention.cc
  classifier.cc
  encoder.cc
  gelu.cc
  global_norm.cc
  layernorm.cc)
list(TRANSFORM LLMC_CUDA_KERNELS PREPEND "${CMAKE_CURRENT_LIST_DIR}/")
list(TRANSFORM LLMC_CUDA_HANDLERS PREPEND "${CMAKE_CURRENT_LIST_DIR}/")
