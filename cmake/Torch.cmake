# Imported targets for the torch package in MOBILENET_EXT_TORCH_DIR.  find_package(Torch) is not used: with a CUDA torch
# it fails where no CUDA toolkit is installed.
if(NOT EXISTS ${MOBILENET_EXT_TORCH_DIR}/include/torch/csrc/stable/library.h)
  message(FATAL_ERROR "mobilenet_ext: MOBILENET_EXT_TORCH_DIR is '${MOBILENET_EXT_TORCH_DIR}'; "
                      "it must be the directory of a torch 2.10 or newer package with its C++ headers.")
endif()

add_library(mobilenet_ext_torch_headers INTERFACE)
target_include_directories(mobilenet_ext_torch_headers SYSTEM INTERFACE ${MOBILENET_EXT_TORCH_DIR}/include)
# The stable ABI of torch 2.10: one binary for that release and every later one.
target_compile_definitions(mobilenet_ext_torch_headers INTERFACE TORCH_TARGET_VERSION=0x020a000000000000)

add_library(mobilenet_ext_torch INTERFACE)
target_link_libraries(mobilenet_ext_torch INTERFACE mobilenet_ext_torch_headers ${MOBILENET_EXT_TORCH_DIR}/lib/libtorch_cpu.so)
