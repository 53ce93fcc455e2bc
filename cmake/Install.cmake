# Installs the library, its headers, and the packages that `find_package(smyrf)` and pkg-config read.
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

# pkg-config's file finds its prefix from where it lies, so that the installed folder can be moved.
set(pkgconfig_dir ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
file(RELATIVE_PATH to_prefix /${pkgconfig_dir} /)
get_target_property(library_type smyrf TYPE)
# Whoever links a static smyrf links what it needs; a shared one has it inside.
set(private "")
set(public_libraries " ${OpenMP_CXX_FLAGS}")
set(private_libraries "")
if(library_type STREQUAL SHARED_LIBRARY)
  set(private .private)
  set(public_libraries "")
  set(private_libraries " ${OpenMP_CXX_FLAGS}")
endif()
configure_file(cmake/smyrf.pc.in smyrf.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/smyrf.pc DESTINATION ${pkgconfig_dir})
