# Installs smyrf into a temporary prefix, copies examples/cpp and examples/c out of the tree, builds them
# against the installed package alone, by CMake and by pkg-config, and runs them: the one in C as C99 with
# warnings as errors. Then a project takes smyrf in by
# add_subdirectory, which must change nothing of its own, and
# smyrf is configured where its dependencies are missing.
execute_process(COMMAND mktemp -d OUTPUT_VARIABLE work OUTPUT_STRIP_TRAILING_WHITESPACE
  COMMAND_ERROR_IS_FATAL ANY)

function(run)
  execute_process(COMMAND ${ARGV} WORKING_DIRECTORY ${work} RESULT_VARIABLE result
    COMMAND_ECHO STDOUT)
  if(NOT result EQUAL 0)
    file(REMOVE_RECURSE ${work})
    message(FATAL_ERROR "failed (${result}): ${ARGV}")
  endif()
endfunction()

run(${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${work}/prefix)
file(COPY ${SOURCE_DIR}/examples/cpp/ DESTINATION ${work}/example)
run(${CMAKE_COMMAND} -S example -B build -G ${GENERATOR}
  -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_PREFIX_PATH=${work}/prefix)
file(STRINGS ${work}/build/CMakeCache.txt found REGEX "^smyrf_DIR:PATH=${work}/prefix/")
run(${CMAKE_COMMAND} --build build)
run(${work}/build/example)
file(COPY ${SOURCE_DIR}/examples/c/ DESTINATION ${work}/example_c)
set(c_flags "-std=c99 -Wall -Wextra -Wpedantic -Wconversion -Wcast-qual -Wstrict-prototypes -Werror")
run(${CMAKE_COMMAND} -S example_c -B build_c -G ${GENERATOR} -DCMAKE_C_FLAGS=${c_flags}
  -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_PREFIX_PATH=${work}/prefix)
run(${CMAKE_COMMAND} --build build_c)
run(${work}/build_c/example)
# The header is C++ too, of any age.
run(${CXX} -std=c++98 -Wall -Wextra -Wpedantic -Wconversion -Werror -fsyntax-only
  -I ${work}/prefix/include -x c++ ${work}/prefix/include/smyrf/c/smyrf.h)

file(GLOB_RECURSE pkgconfig_file ${work}/prefix/smyrf.pc)
get_filename_component(pkgconfig_dir ${pkgconfig_file} DIRECTORY)
set(ENV{PKG_CONFIG_PATH} ${pkgconfig_dir})
get_filename_component(library_dir ${pkgconfig_dir} DIRECTORY)
set(ENV{LD_LIBRARY_PATH} ${library_dir})  # for a shared smyrf
run(sh -c "${CXX} -std=c++20 example/main.cc $(pkg-config --cflags --libs smyrf) -o by_pkgconfig")
run(${work}/by_pkgconfig)
# docs/c.md shows this line.
run(sh -c "cc ${c_flags} example_c/main.c $(pkg-config --cflags --libs smyrf) -lstdc++ -lm -o c_by_pkgconfig")
run(${work}/c_by_pkgconfig)

file(WRITE ${work}/parent/CMakeLists.txt [[
cmake_minimum_required(VERSION 3.25)
project(parent LANGUAGES CXX)
add_subdirectory(${SMYRF} smyrf)
if(CMAKE_BUILD_TYPE OR DEFINED BUILD_SHARED_LIBS OR DEFINED CMAKE_CXX_STANDARD OR NOT TARGET smyrf::smyrf)
  message(FATAL_ERROR "build type ${CMAKE_BUILD_TYPE}, shared ${BUILD_SHARED_LIBS}, C++ ${CMAKE_CXX_STANDARD}")
endif()
]])
run(${CMAKE_COMMAND} -S parent -B parent/build -G ${GENERATOR} -DCMAKE_CXX_COMPILER=${CXX}
  -DSMYRF=${SOURCE_DIR})
run(${CMAKE_COMMAND} --install parent/build --prefix ${work}/parent/prefix)
if(EXISTS ${work}/parent/prefix/include)
  message(FATAL_ERROR "a parent project installs smyrf, which it didn't ask for")
endif()

execute_process(COMMAND ${CMAKE_COMMAND} -S ${SOURCE_DIR} -B ${work}/without -G ${GENERATOR}
  -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_DISABLE_FIND_PACKAGE_hwy=ON -DCMAKE_DISABLE_FIND_PACKAGE_Eigen3=ON
  RESULT_VARIABLE result OUTPUT_QUIET ERROR_VARIABLE said)
file(REMOVE_RECURSE ${work})
string(REGEX REPLACE "[ \n]+" " " said "${said}")
if(NOT result OR NOT said MATCHES "needs Highway and Eigen .*apt-get install libhwy-dev libeigen3-dev")
  message(FATAL_ERROR "without Highway and Eigen it says: ${said}")
endif()
if(NOT found)
  message(FATAL_ERROR "the example was built against another smyrf than the one just installed")
endif()
