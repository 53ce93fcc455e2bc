# The Python extension smyrf._core and its stub. scikit-build-core (SKBUILD) packs them into a wheel;
# any other build puts them beside the Python sources, so that the tree itself can be imported.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module ${SKBUILD_SABI_COMPONENT})
execute_process(
  COMMAND ${Python_EXECUTABLE} -m nanobind --cmake_dir
  OUTPUT_VARIABLE nanobind_ROOT
  OUTPUT_STRIP_TRAILING_WHITESPACE
  COMMAND_ERROR_IS_FATAL ANY)
find_package(nanobind CONFIG REQUIRED)

# STABLE_ABI: where scikit-build-core asks for it, from Python 3.12 on, one wheel is for all later ones.
nanobind_add_module(_core NB_STATIC NB_SUPPRESS_WARNINGS STABLE_ABI bindings/python/module.cc
  bindings/python/results.cc src/methods/registry.cc src/base/lost_pool.cc src/base/team_python.cc)
smyrf_compile_options(_core)
target_include_directories(_core PRIVATE ${PROJECT_SOURCE_DIR}/src)
target_link_libraries(_core PRIVATE smyrf_core hwy::hwy Threads::Threads ${CMAKE_DL_LIBS})
# A program that embeds Python may link a smyrf of its own.
set(python_exports ${PROJECT_SOURCE_DIR}/bindings/python/exports.map)
target_link_options(_core PRIVATE -Wl,--version-script=${python_exports})
set_target_properties(_core PROPERTIES LINK_DEPENDS ${python_exports})

if(SKBUILD)
  set(module_dir ${PROJECT_BINARY_DIR}/python/smyrf)
else()
  set(module_dir ${PROJECT_SOURCE_DIR}/python/smyrf)
endif()
set_target_properties(_core PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${module_dir})
nanobind_add_stub(_core_stub
  MODULE _core
  OUTPUT ${module_dir}/_core.pyi
  PYTHON_PATH ${module_dir}
  DEPENDS _core)

# What a wheel is built from; integrations/ggml adds the plug-in.
add_custom_target(python_package DEPENDS _core _core_stub)

# EXCLUDE_FROM_ALL: `cmake --install` installs the C++ library only; the wheel asks for `python`.
install(TARGETS _core LIBRARY DESTINATION smyrf COMPONENT python EXCLUDE_FROM_ALL)
install(FILES ${module_dir}/_core.pyi DESTINATION smyrf COMPONENT python EXCLUDE_FROM_ALL)
