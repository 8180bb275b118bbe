// main() of every test program: a test that logs an unexpected warning or error fails.
#include <gtest/gtest.h>

#include <string>

#include "kvl/log.h"
#include "tests/support/log_guard.h"

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  kvl::test::install_log_guard();
  return RUN_ALL_TESTS();
}
