# One static library a room, one test binary a room. Rooms marked TORCH share one precompiled header.
# -Wrestrict: GCC 12 warns of std::string's own code (GCC bug 105651).
set(PLIMSOLL_WARNINGS -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Wno-restrict -Werror)
if(PLIMSOLL_SANITIZE)
  add_compile_options(-O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1)
  add_link_options(-fsanitize=address,undefined)
endif()

# Sources of a room are compiled so many at a time, since reading libtorch's and the standard library's headers takes most of the
# time. 0: each by itself, for work on one file. Names in anonymous namespaces must differ within a room; where they do not
# (ALONE), every file is compiled by itself.
set(PLIMSOLL_BATCH 8 CACHE STRING "how many source files of a room are compiled together; 0: each by itself")

function(plimsoll_batches target)
  if(PLIMSOLL_BATCH GREATER 1)
    # clang-tidy reads the batches too, and would complain that a .cpp is included.
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE ${PLIMSOLL_BATCH}
      UNITY_BUILD_CODE_BEFORE_INCLUDE "// NOLINTNEXTLINE(bugprone-suspicious-include)")
  endif()
endfunction()

function(plimsoll_options target)
  target_include_directories(${target} PUBLIC ${CMAKE_SOURCE_DIR})
  # Decisions must be equal on all ranks and replays bit-equal: no contraction chosen by the compiler.
  target_compile_options(${target} PRIVATE ${PLIMSOLL_WARNINGS} -ffp-contract=off)
endfunction()

# Without -fopenmp at::parallel_for compiles too, and runs on one thread. The libgomp is libtorch's, so there is one pool.
function(plimsoll_torch target)
  target_link_libraries(${target} PUBLIC libtorch gomp)
  target_compile_options(${target} PRIVATE -march=${PLIMSOLL_MARCH} -fopenmp)
  if(NOT TARGET torch_header)
    add_library(torch_header OBJECT ${CMAKE_SOURCE_DIR}/cmake/torch_header.cpp)
    plimsoll_options(torch_header)
    target_link_libraries(torch_header PUBLIC libtorch fmt::fmt spdlog::spdlog nlohmann_json::nlohmann_json)
    target_compile_options(torch_header PRIVATE -march=${PLIMSOLL_MARCH} -fopenmp)
    target_precompile_headers(torch_header PRIVATE <torch/torch.h>)
  endif()
  target_precompile_headers(${target} REUSE_FROM torch_header)
endfunction()

function(plimsoll_room name)
  cmake_parse_arguments(ROOM "TORCH;ALONE" "FOLDER" "LINKS" ${ARGN})
  if(NOT ROOM_FOLDER)
    set(ROOM_FOLDER ${name})
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${ROOM_FOLDER}/*.cpp)
  set(target plimsoll_${name})
  if(sources)
    add_library(${target} STATIC ${sources})
    plimsoll_options(${target})
    target_link_libraries(${target} PUBLIC ${ROOM_LINKS} Threads::Threads fmt::fmt spdlog::spdlog nlohmann_json::nlohmann_json)
    if(ROOM_TORCH)
      plimsoll_torch(${target})
    endif()
    if(NOT ROOM_ALONE)
      plimsoll_batches(${target})
    endif()
  else()
    add_library(${target} INTERFACE)
    target_link_libraries(${target} INTERFACE ${ROOM_LINKS})
  endif()
endfunction()

# launcher/main.cpp becomes the program; the other files a library that its tests link too.
function(plimsoll_program name)
  cmake_parse_arguments(ROOM "" "FOLDER" "LINKS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${ROOM_FOLDER}/*.cpp)
  list(REMOVE_ITEM sources ${CMAKE_SOURCE_DIR}/${ROOM_FOLDER}/main.cpp)
  if(NOT EXISTS ${CMAKE_SOURCE_DIR}/${ROOM_FOLDER}/main.cpp)
    return()
  endif()
  add_library(plimsoll_launcher STATIC ${sources})
  plimsoll_options(plimsoll_launcher)
  plimsoll_batches(plimsoll_launcher)
  target_link_libraries(plimsoll_launcher PUBLIC ${ROOM_LINKS})
  add_executable(${name} ${CMAKE_SOURCE_DIR}/${ROOM_FOLDER}/main.cpp)
  plimsoll_options(${name})
  target_link_libraries(${name} PRIVATE plimsoll_launcher)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
endfunction()

# What CTest runs leaves its cases in test-results/<test>.xml (under mpirun: one file a rank, by tools/run_rank.sh), which
# tools/run_tests.py counts. As root, OpenMPI refuses to run without the first two.
set(PLIMSOLL_RESULTS ${CMAKE_BINARY_DIR}/test-results)
set(PLIMSOLL_MPI_ENVIRONMENT OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1)

function(plimsoll_tests name)
  cmake_parse_arguments(ROOM "TORCH;ALONE" "FOLDER" "LINKS" ${ARGN})
  if(NOT ROOM_FOLDER)
    set(ROOM_FOLDER tests/${name})
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${ROOM_FOLDER}/*_test.cpp)
  if(NOT sources)
    return()
  endif()
  set(target tests_${name})
  add_executable(${target} ${sources})
  plimsoll_options(${target})
  target_link_libraries(${target} PRIVATE plimsoll_${name} ${ROOM_LINKS} GTest::gtest GTest::gmock GTest::gtest_main)
  if(ROOM_TORCH)
    plimsoll_torch(${target})
  endif()
  if(NOT ROOM_ALONE)
    plimsoll_batches(${target})
  endif()
  add_test(NAME ${name} COMMAND ${target} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  # Tests with torch use two threads, which on two cores wait for each other while another program runs.
  if(ROOM_TORCH)
    set_tests_properties(${name} PROPERTIES PROCESSORS 2)
  endif()
  # In full (make proofs) every allocation of a step fails once. OpenMP's threads must not spin while they wait: where
  # other programs want the cores too, that takes ten times as long.
  set_tests_properties(${name} PROPERTIES TIMEOUT 3600 ENVIRONMENT
    "${PLIMSOLL_MPI_ENVIRONMENT};OMP_WAIT_POLICY=passive;GTEST_OUTPUT=xml:${PLIMSOLL_RESULTS}/${name}.xml")
endfunction()

# The same program as so many ranks under mpirun; more environment variables may follow.
function(plimsoll_ranks_test name target world)
  add_test(NAME ${name} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR} COMMAND
    ${MPIEXEC_EXECUTABLE} --oversubscribe -n ${world} ${CMAKE_SOURCE_DIR}/tools/run_rank.sh $<TARGET_FILE:${target}>)
  set_tests_properties(${name} PROPERTIES PROCESSORS ${world} TIMEOUT 300 ENVIRONMENT
    "${PLIMSOLL_MPI_ENVIRONMENT};PLIMSOLL_RESULTS=${PLIMSOLL_RESULTS}/${name};${ARGN}")
endfunction()

# Every bench/*_bench.cpp is a program of its own. policy_bench needs no torch.
function(plimsoll_benchmarks folder)
  add_executable(policy_bench ${CMAKE_SOURCE_DIR}/${folder}/policy_bench.cpp ${CMAKE_SOURCE_DIR}/${folder}/rivals.cpp
                              ${CMAKE_SOURCE_DIR}/${folder}/rival_policy.cpp)
  plimsoll_options(policy_bench)
  target_link_libraries(policy_bench PRIVATE plimsoll_planning plimsoll_ddp)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${folder}/*_bench.cpp)
  list(REMOVE_ITEM sources ${CMAKE_SOURCE_DIR}/${folder}/policy_bench.cpp)
  foreach(source ${sources})
    get_filename_component(target ${source} NAME_WE)
    add_executable(${target} ${source})
    plimsoll_options(${target})
    target_link_libraries(${target} PRIVATE plimsoll_train benchmark::benchmark)
    plimsoll_torch(${target})
  endforeach()
  target_sources(rivals_bench PRIVATE ${CMAKE_SOURCE_DIR}/${folder}/rival_policy.cpp
                                      ${CMAKE_SOURCE_DIR}/${folder}/scenario_trainers.cpp)
endfunction()
