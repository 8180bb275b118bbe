# How every target of kvlane is made: one library per folder, one warning set, one place for
# sanitizers. A folder says `kvl_library(kvl_x SOURCES … HEADERS … DEPENDS …)` and nothing more.

set(KVL_SANITIZE "" CACHE STRING "Comma list for -fsanitize= (address,undefined or thread)")
option(KVL_TIDY "Run clang-tidy with the build" OFF)
option(KVL_COVERAGE "Build for gcov" OFF)

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
# Packages found in a folder are known to KvlaneInstall, too.
set(CMAKE_FIND_PACKAGE_TARGETS_GLOBAL ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

find_program(KVL_CCACHE ccache)
if(KVL_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${KVL_CCACHE})
endif()
if(KVL_TIDY)
  find_program(KVL_CLANG_TIDY NAMES clang-tidy-14 clang-tidy REQUIRED)
  set(CMAKE_CXX_CLANG_TIDY ${KVL_CLANG_TIDY} --quiet)  # .clang-tidy makes its findings errors
endif()

# gcc 12 sees overlapping copies in every optimised std::string + std::string (its bug 105651).
set(kvl_gcc12_optimised $<AND:$<CXX_COMPILER_ID:GNU>,$<VERSION_LESS:$<CXX_COMPILER_VERSION>,13>>)
set(kvl_gcc12_optimised $<AND:${kvl_gcc12_optimised},$<CONFIG:Release,RelWithDebInfo>>)

add_library(kvl_flags INTERFACE)
target_compile_options(kvl_flags INTERFACE -Wall -Wextra -Wconversion -Wshadow -Werror
  -Wno-missing-field-initializers $<$<CXX_COMPILER_ID:GNU>:-Wno-interference-size>
  $<${kvl_gcc12_optimised}:-Wno-restrict;-Wno-array-bounds;-Wno-stringop-overflow>)
target_include_directories(kvl_flags INTERFACE ${PROJECT_SOURCE_DIR})
if(KVL_SANITIZE)
  add_compile_options(-fsanitize=${KVL_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${KVL_SANITIZE})
endif()
if(KVL_SANITIZE MATCHES thread)
  # ThreadSanitizer knows no fences; Asio's are beside locks that it does know.
  add_compile_definitions(BOOST_ASIO_DISABLE_FENCED_BLOCK)
endif()
if(KVL_COVERAGE)
  add_compile_options(--coverage)
  add_link_options(--coverage)
  # After the tests: a table by file, and pages with the lines.
  add_custom_target(coverage_report
    COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/report
    COMMAND gcovr --root ${PROJECT_SOURCE_DIR} --object-directory ${CMAKE_BINARY_DIR}
      --filter '${PROJECT_SOURCE_DIR}/\(transport\|kvcache\|router\|tools\)/' --exclude-throw-branches
      --gcov-ignore-parse-errors --html-details ${CMAKE_BINARY_DIR}/report/index.html --print-summary --txt
    WORKING_DIRECTORY ${CMAKE_BINARY_DIR} VERBATIM USES_TERMINAL
    COMMENT "Coverage: ${CMAKE_BINARY_DIR}/report/index.html (needs gcovr)")
endif()

# kvl_library(NAME SOURCES a.cc … HEADERS kvl/x.h … DEPENDS other … PRIVATE_DEPENDS lib …)
# HEADERS are the public ones, below the folder's include/; each is compiled alone.
function(kvl_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;HEADERS;DEPENDS;PRIVATE_DEPENDS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  string(REGEX REPLACE "^kvl_" "" short ${name})
  add_library(kvl::${short} ALIAS ${name})
  set_target_properties(${name} PROPERTIES EXPORT_NAME ${short})
  target_compile_features(${name} PUBLIC cxx_std_20)  # the public headers need it
  if(ARG_HEADERS)
    list(TRANSFORM ARG_HEADERS PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/include/)
    target_sources(${name} PUBLIC FILE_SET HEADERS BASE_DIRS ${CMAKE_CURRENT_SOURCE_DIR}/include
      FILES ${ARG_HEADERS})
    set_target_properties(${name} PROPERTIES VERIFY_INTERFACE_HEADER_SETS ON)
  endif()
  target_link_libraries(${name} PUBLIC ${ARG_DEPENDS} PRIVATE $<BUILD_INTERFACE:kvl_flags>
    ${ARG_PRIVATE_DEPENDS})
  set_property(GLOBAL APPEND PROPERTY KVL_INSTALL_TARGETS ${name})
endfunction()

# kvl_test(NAME SOURCES … LIBS … LABELS unit …): one gtest program, one CTest entry per LABELS set.
# RESOURCE_LOCK serialises tests that load every core.
function(kvl_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;LIBS;LABELS;ARGS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE kvl_flags ${ARG_LIBS} kvl_test_main GTest::gtest GTest::gmock)
  add_test(NAME ${name} COMMAND ${name} ${ARG_ARGS})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
  foreach(label IN LISTS ARG_LABELS)
    set_property(GLOBAL APPEND PROPERTY KVL_TESTS_${label} ${name})
  endforeach()
endfunction()

# kvl_test_group(TARGET label …): builds the test programs with one of the labels, for presets that
# run no others.
function(kvl_test_group target)
  set(programs "")
  foreach(label IN LISTS ARGN)
    get_property(labelled GLOBAL PROPERTY KVL_TESTS_${label})
    list(APPEND programs ${labelled})
  endforeach()
  list(REMOVE_DUPLICATES programs)
  add_custom_target(${target} DEPENDS ${programs})
endfunction()
