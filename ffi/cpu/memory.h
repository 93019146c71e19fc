// Large pages for large results.
#pragma once

#include <cstdint>

namespace llmc {

// Asks for pages of 2 MiB where `data` has not been touched yet.
//
// XLA gets a step's temporaries anew from the operating system each time, half a gigabyte of them,
// and each page is cleared when it is first touched: in pages of 4 KiB that is 140,000 page faults
// a step of GPT-2 124M, and a third of its time.
void UseHugePages(void* data, uint64_t bytes);

}  // namespace llmc
