// The few lines a test needs: CHECK with a message, and an exit status.
#pragma once
#include <cstdio>
#include <string>

namespace test {

inline int failures = 0, checks = 0;

inline void check(bool ok, const char* what, const char* file, int line, const std::string& detail) {
  ++checks;
  if (ok) return;
  if (++failures <= 20)
    std::fprintf(stderr, "%s:%d: %s failed%s%s\n", file, line, what, detail.empty() ? "" : ": ", detail.c_str());
}

inline int report() {
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures || !checks ? 1 : 0;
}

}  // namespace test

#define CHECK(condition) ::test::check(static_cast<bool>(condition), #condition, __FILE__, __LINE__, "")
#define CHECK_MESSAGE(condition, message) \
  ::test::check(static_cast<bool>(condition), #condition, __FILE__, __LINE__, message)
#define CHECK_THROWS(expression, part)                                                     \
  do {                                                                                     \
    std::string caught;                                                                    \
    try {                                                                                  \
      (void)(expression);                                                                  \
    } catch (const std::exception& e) {                                                    \
      caught = e.what();                                                                   \
    }                                                                                      \
    CHECK_MESSAGE(caught.find(part) != std::string::npos, "message was '" + caught + "'"); \
  } while (false)
