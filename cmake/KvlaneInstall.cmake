# install(EXPORT) for find_package(kvlane), and kvlane.pc for pkg-config. Proven by tests/consumer.
include(CMakePackageConfigHelpers)
get_property(kvl_targets GLOBAL PROPERTY KVL_INSTALL_TARGETS)
install(TARGETS ${kvl_targets} EXPORT kvlaneTargets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT kvlaneTargets NAMESPACE kvl:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/kvlane)
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/kvlaneConfig.cmake.in
  ${PROJECT_BINARY_DIR}/kvlaneConfig.cmake INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/kvlane)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/kvlaneConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/kvlaneConfig.cmake ${PROJECT_BINARY_DIR}/kvlaneConfigVersion.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/kvlane)
configure_file(${CMAKE_CURRENT_LIST_DIR}/kvlane.pc.in ${PROJECT_BINARY_DIR}/kvlane.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/kvlane.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
