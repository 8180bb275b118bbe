// The copy of a stretch: by memcpy where the bytes are few and will be looked at soon, past the
// caches where they are many.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvl::shm {

// Stores that go past the caches do not fetch the destination first and do not drive out what the
// engines work on. They are ordered by streamed() only: call it before anybody is told of the
// bytes. `next`, where not null, is the source of the following call: its fetch begins here. Like
// memcpy, for any size and alignment; memcpy itself where the CPU has no such stores.
void copy_streaming(std::byte* to, const std::byte* from, std::uint64_t bytes,
                    const std::byte* next, std::uint64_t next_bytes);
void streamed();

}  // namespace kvl::shm
