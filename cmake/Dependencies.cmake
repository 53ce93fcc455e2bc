# The libraries that smyrf is built from. What is missing is named at once, with what to type.
find_package(hwy QUIET)
find_package(Eigen3 3.3 QUIET NO_MODULE)
# Without OpenMP the library runs the same divisions of the work one after the other: the fuzzer needs
# every run of an input to take the same path.
if(NOT SMYRF_FUZZ)
  find_package(OpenMP QUIET COMPONENTS CXX)
endif()

set(missing "")
set(packages "")
if(NOT hwy_FOUND)
  list(APPEND missing Highway)
  list(APPEND packages libhwy-dev)
endif()
if(NOT Eigen3_FOUND)
  list(APPEND missing "Eigen 3.3 or newer")
  list(APPEND packages libeigen3-dev)
endif()
if(NOT SMYRF_FUZZ AND NOT OpenMP_CXX_FOUND)
  list(APPEND missing "OpenMP for ${CMAKE_CXX_COMPILER_ID}")
  list(APPEND packages libomp-dev)
endif()
if(missing)
  list(JOIN missing " and " missing)
  list(JOIN packages " " packages)
  message(FATAL_ERROR "smyrf needs ${missing}, which CMake doesn't find here; on Debian and Ubuntu: "
    "apt-get install ${packages}")
endif()
