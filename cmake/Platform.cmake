# Sets MOBILENET_EXT_ARCH; stops with one sentence where the package is not supported.
string(TOLOWER "${CMAKE_SYSTEM_PROCESSOR}" processor)
if(processor MATCHES "^(x86_64|amd64)$")
  set(MOBILENET_EXT_ARCH x86_64)
elseif(processor MATCHES "^(aarch64|arm64)$")
  set(MOBILENET_EXT_ARCH aarch64)
endif()

if(NOT CMAKE_SYSTEM_NAME STREQUAL "Linux" OR NOT MOBILENET_EXT_ARCH OR NOT CMAKE_SIZEOF_VOID_P EQUAL 8)
  message(FATAL_ERROR "mobilenet_ext: the target is ${CMAKE_SYSTEM_NAME} ${CMAKE_SYSTEM_PROCESSOR}; "
                      "supported are Linux on x86_64 and on aarch64, 64 bits.")
endif()

# The oldest releases that compile PyTorch's own headers and know every instruction set used here.
set(minimum_GNU 9.4)
set(minimum_Clang 10)
if(NOT DEFINED minimum_${CMAKE_CXX_COMPILER_ID} OR CMAKE_CXX_COMPILER_VERSION VERSION_LESS minimum_${CMAKE_CXX_COMPILER_ID})
  message(FATAL_ERROR "mobilenet_ext: the compiler is ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}; "
                      "supported are g++ ${minimum_GNU} and clang ${minimum_Clang} or newer: set CXX to one of them.")
endif()
