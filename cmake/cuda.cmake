# The CUDA library: what the program opens when it finds a GPU (train/device.h). Built where there are nvcc and the wheels of
# tools/requirements-cuda.txt; without them the program is complete, and runs on the CPU.
option(PLIMSOLL_CUDA "Build the CUDA library where nvcc is found" ON)
find_program(PLIMSOLL_NVCC nvcc PATHS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
set(PLIMSOLL_NCCL ${PLIMSOLL_SITE}/nvidia/nccl)
if(NOT PLIMSOLL_CUDA OR PLIMSOLL_SANITIZE)
  return()
endif()
set(PLIMSOLL_CUBLAS ${PLIMSOLL_SITE}/nvidia/cu13/lib)
if(NOT PLIMSOLL_NVCC OR NOT EXISTS ${PLIMSOLL_NCCL}/include/nccl.h OR NOT EXISTS ${PLIMSOLL_CUBLAS}/libcublasLt.so.13 OR NOT EXISTS ${PLIMSOLL_SITE}/torch/lib/libtorch_cuda.so)
  message(STATUS "no CUDA library: it wants nvcc and the wheels of tools/requirements-cuda.txt")
  return()
endif()

execute_process(COMMAND ${PLIMSOLL_NVCC} --version OUTPUT_VARIABLE nvcc_version)
if(NOT nvcc_version MATCHES "release 13\\.")
  message(STATUS "no CUDA library: ${PLIMSOLL_NVCC} is not of CUDA 13, which libtorch's wheel is built for")
  return()
endif()

set(CMAKE_CUDA_COMPILER ${PLIMSOLL_NVCC})
set(CMAKE_CUDA_ARCHITECTURES 80-real 90)  # the second as PTX too, for what comes after it
if(CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
endif()
enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)  # nvcc knows it, and CMake 3.25 does not know that
endif()
find_package(CUDAToolkit REQUIRED)

file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/*/cuda/*.cpp ${CMAKE_SOURCE_DIR}/*/cuda/*.cu)
add_library(plimsoll_cuda SHARED ${sources})
target_include_directories(plimsoll_cuda PRIVATE ${CMAKE_SOURCE_DIR})
target_include_directories(plimsoll_cuda SYSTEM PRIVATE ${CMAKE_BINARY_DIR}/include/libtorch
  ${PLIMSOLL_SITE}/torch/include/torch/csrc/api/include ${PLIMSOLL_NCCL}/include ${CUDAToolkit_INCLUDE_DIRS})
target_compile_options(plimsoll_cuda PRIVATE $<$<COMPILE_LANGUAGE:CXX>:${PLIMSOLL_WARNINGS}>
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Werror>)
set_target_properties(plimsoll_cuda PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR} POSITION_INDEPENDENT_CODE ON)
# libtorch_cuda.so wants a dozen libraries more, which are looked for when it is opened.
file(GLOB nvidia_folders ${PLIMSOLL_SITE}/nvidia/*/lib)
list(TRANSFORM nvidia_folders PREPEND "-Wl,-rpath,")
target_link_directories(plimsoll_cuda PRIVATE ${PLIMSOLL_SITE}/torch/lib)
target_link_libraries(plimsoll_cuda PRIVATE fmt::fmt torch_cuda c10_cuda torch_cpu c10
  ${PLIMSOLL_NCCL}/lib/libnccl.so.2 ${PLIMSOLL_CUBLAS}/libcublas.so.13 ${PLIMSOLL_CUBLAS}/libcublasLt.so.13 CUDA::cudart -Wl,--no-undefined -Wl,--unresolved-symbols=ignore-in-shared-libs
  -Wl,-rpath,${PLIMSOLL_SITE}/torch/lib ${nvidia_folders})
