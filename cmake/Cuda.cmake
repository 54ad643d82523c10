# The CUDA kernels and their binding. nvcc is called directly: CMake's own CUDA support wants to link a test program with
# the toolkit's layout, which a wrapper named nvcc does not have.
get_filename_component(nvcc_bin ${MOBILENET_EXT_NVCC} DIRECTORY)
get_filename_component(cuda_home ${nvcc_bin} DIRECTORY)
find_library(MOBILENET_EXT_CUDART cudart_static PATHS ${cuda_home}/lib64 ${cuda_home}/lib
             ${cuda_home}/targets/x86_64-linux/lib ${cuda_home}/targets/sbsa-linux/lib NO_DEFAULT_PATH REQUIRED)
separate_arguments(gencode UNIX_COMMAND "${MOBILENET_EXT_GENCODE}")
file(GLOB cuda_headers CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/*.h ${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/*.cuh
     ${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/*.inl)
set(kernels ${CMAKE_BINARY_DIR}/cuda_kernels.o)
add_custom_command(
  OUTPUT ${kernels}
  COMMAND ${MOBILENET_EXT_NVCC} -std=c++17 -O3 ${gencode} -ccbin ${CMAKE_CXX_COMPILER} -Xcompiler -fPIC,-fvisibility=hidden
          -I${CMAKE_CURRENT_SOURCE_DIR}/csrc -c ${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/kernels.cu -o ${kernels}
  DEPENDS csrc/cuda/kernels.cu ${cuda_headers}
  COMMENT "nvcc csrc/cuda/kernels.cu (minutes)"
  VERBATIM)

add_library(mobilenet_ext_cuda SHARED ${CUDA_SOURCES} ${kernels})
set_source_files_properties(${kernels} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
target_include_directories(mobilenet_ext_cuda SYSTEM PRIVATE ${cuda_home}/include)
target_compile_definitions(mobilenet_ext_cuda PRIVATE USE_CUDA)
target_link_libraries(mobilenet_ext_cuda PRIVATE mobilenet_ext_flags mobilenet_ext_torch
                      ${MOBILENET_EXT_TORCH_DIR}/lib/libtorch_cuda.so ${MOBILENET_EXT_CUDART} Threads::Threads ${CMAKE_DL_LIBS} rt)
set_target_properties(mobilenet_ext_cuda PROPERTIES SKIP_BUILD_RPATH ON)
file(APPEND ${CMAKE_BINARY_DIR}/parts.txt "CUDA part: built by ${MOBILENET_EXT_NVCC} with ${MOBILENET_EXT_GENCODE}\n")
