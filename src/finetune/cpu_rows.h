// Rows of the maps that a convolution takes and makes, for a CPU; in channels_last.

#pragma once

#include <cstddef>
#include <vector>

#include "cpu_batchnorm.h"

namespace {

// A batch of maps, and what a convolution of `stride` with a pixel of zeros around makes of it.
struct Maps {
    ptrdiff_t images, height, width, channels, stride;
    ptrdiff_t out_height() const { return (height - 1) / stride + 1; }
    ptrdiff_t out_width() const { return (width - 1) / stride + 1; }
    Shape in() const { return {images * height * width, channels}; }
    Shape out() const { return {images * out_height() * out_width(), channels}; }
};

// The last rows of a map, in float32, with a pixel of zeros at either end, and zeros for rows that there are not.
class Rows {
    const ptrdiff_t height, width, channels, size;
    ptrdiff_t next = 0;
    std::vector<float> memory;
    float *base;
    float *place(ptrdiff_t slot) { return base + slot * size + channels; }

  public:
    Rows(ptrdiff_t height, ptrdiff_t width, ptrdiff_t channels)
        : height(height), width(width), channels(channels), size((width + 2) * channels), memory(4 * size + 16) {
        base = memory.data() + (64 - bits_of<uintptr_t>(memory.data()) % 64) % 64 / sizeof(float);
    }
    void begin() { next = 0; }
    // The row of that number, the last two before it still being there; `make(row, to)` makes each once, in order.
    template <typename Make> const float *get(ptrdiff_t row, Make make) {
        for (; next <= row && next < height; next++) make(next, place(next % 3));
        return row < 0 || row >= height ? place(3) : place(row % 3);
    }
};

// Asks for the next row, vector by vector, while one is worked on channel by channel, which memory is slow at.
template <int LANES, typename T> class NextRow {
    const T *const row;
    const ptrdiff_t width;

  public:
    NextRow(const T *row, const Maps &maps, ptrdiff_t width) : row(row + width * maps.channels), width(width) {}
    void expect(ptrdiff_t channel, ptrdiff_t pixel) const { __builtin_prefetch(row + channel * width + pixel * LANES); }
    void expect_to_write(ptrdiff_t channel, ptrdiff_t pixel) const {
        __builtin_prefetch(row + channel * width + pixel * LANES, 1);
    }
};

}  // namespace
