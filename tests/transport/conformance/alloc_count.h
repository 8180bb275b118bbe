// Counts allocations of the calling thread, to prove that post() and poll() make none.
#pragma once

#include <cstdint>

namespace kvl::conformance {

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define KVL_NO_ALLOC_COUNT 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define KVL_NO_ALLOC_COUNT 1
#endif

#ifdef KVL_NO_ALLOC_COUNT
inline constexpr bool kCountsAllocations = false;  // operator new belongs to the sanitizer
inline std::uint64_t thread_allocations() { return 0; }
#else
inline constexpr bool kCountsAllocations = true;
std::uint64_t thread_allocations();
#endif

}  // namespace kvl::conformance
