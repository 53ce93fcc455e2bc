# Installs the library, its headers and the package that `find_package(smyrf)` reads.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/smyrf)
install(TARGETS smyrf EXPORT smyrf-targets)
install(DIRECTORY include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT smyrf-targets NAMESPACE smyrf:: DESTINATION ${package_dir})
configure_package_config_file(cmake/smyrf-config.cmake.in smyrf-config.cmake
  INSTALL_DESTINATION ${package_dir})
# Before 1.0 a minor release may break callers.
write_basic_package_version_file(smyrf-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES
  ${PROJECT_BINARY_DIR}/smyrf-config.cmake
  ${PROJECT_BINARY_DIR}/smyrf-config-version.cmake
  DESTINATION ${package_dir})
