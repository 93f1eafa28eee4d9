// Views of images, cut, resized, mirrored and normalised, a batch at a time, for a CPU.
//
// Antialiased bilinear resizing of uint8 as PyTorch and Pillow round it: weights in whole numbers, of as many bits as
// leave the largest below 2^15; first across, rounded to uint8, then down. Whole numbers have no order of summation, so
// what comes out is what torch.nn.functional.interpolate gives, to the bit.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu_lanes.h"

namespace {

using std::ptrdiff_t;

// One axis of a view: `whole` pixels are made of `length`, of which `size` from `first` on are wanted.
struct Axis { int64_t length, whole, first; };

struct View {
    int64_t offset, height, width;  // of the image: its place among the pixels, and its size
    int64_t top, left;              // of the part that is resized; beyond the image it is black
    Axis down, across;
    int64_t mirrored;
};

// The source pixels that make a pixel, and their weights.
struct Taps {
    int bits;
    ptrdiff_t most;  // of a pixel
    std::vector<int64_t> begin, count;
    std::vector<int32_t> weights;  // `most` a pixel

    Taps(Axis axis, ptrdiff_t size) : begin(size), count(size) {
        const double scale = double(axis.length) / double(axis.whole), support = std::max(scale, 1.0);
        most = 2 * ptrdiff_t(std::ceil(support)) + 1;
        std::vector<double> exact(size * most), of_one(most);
        double largest = 0;
        for (int64_t pixel = 0; pixel < axis.whole; pixel++) {
            const double centre = scale * (double(pixel) + 0.5);
            const int64_t from = std::max<int64_t>(int64_t(centre - support + 0.5), 0);
            const int64_t end = std::min<int64_t>(int64_t(centre + support + 0.5), axis.length);
            const int64_t taps = std::min<int64_t>(end - from, most);
            double total = 0;
            for (int64_t tap = 0; tap < taps; tap++) {
                const double away = std::abs((double(tap + from) - centre + 0.5) * (1 / support));
                total += of_one[tap] = away < 1 ? 1 - away : 0;
            }
            const int64_t place = pixel - axis.first;
            for (int64_t tap = 0; tap < taps; tap++) {
                if (total != 0) of_one[tap] /= total;
                largest = std::max(largest, of_one[tap]);
                if (place >= 0 && place < size) exact[place * most + tap] = of_one[tap];
            }
            if (place >= 0 && place < size) begin[place] = from, count[place] = taps;
        }
        for (bits = 0; bits < 22; bits++)
            if (int(0.5 + largest * double(1 << (bits + 1))) >= 1 << 15) break;
        weights.resize(exact.size());
        for (size_t at = 0; at < exact.size(); at++) weights[at] = int32_t(0.5 + exact[at] * double(1 << bits));
    }
};

typedef int32_t Four __attribute__((vector_size(16)));
typedef int32_t Sixteen __attribute__((vector_size(64)));
typedef uint16_t SixteenHalves __attribute__((vector_size(32)));
typedef uint8_t SixteenBytes __attribute__((vector_size(16)));

// By way of 16 bits, as compilers take a step that doubles or halves for one instruction.
inline Sixteen widened(SixteenBytes bytes) {
    return __builtin_convertvector(__builtin_convertvector(bytes, SixteenHalves), Sixteen);
}

inline SixteenBytes rounded(Sixteen sum, int bits) {
    sum >>= bits;
    sum = sum > 255 ? Sixteen{} + 255 : sum;
    return __builtin_convertvector(__builtin_convertvector(sum, SixteenHalves), SixteenBytes);
}

// A pixel's bytes as numbers: three, or with the one behind them, where there surely is one, four.
template <int BYTES> inline void spread(const uint8_t *from, int32_t *to) {
    uint32_t bytes = 0;
    std::memcpy(&bytes, from, BYTES);
    const Four values = ((Four{} + int32_t(bytes)) >> Four{0, 8, 16, 24}) & 255;
    std::memcpy(to, &values, sizeof values);
}

constexpr ptrdiff_t ABREAST = 4;  // rows at a time; a pixel is red, green, blue and what lies behind, which is not used

// One thread's view after view.
class Painter {
    using Of = Lanes<16>;
    const uint8_t *const pixels;
    const ptrdiff_t size, line, stride;  // of a view in pixels; of its lines in values, and with room behind
    std::vector<int32_t> wide;           // ABREAST rows of the source, their pixels beside each other
    std::vector<uint8_t> narrow;         // lines that are still to be resized downwards

    // Row `row` of the part, 0 where there is no image, as every ABREASTth pixel of `to`.
    void widen(const View &view, int64_t row, int32_t *to) const {
        const int64_t y = view.top + row, length = view.across.length;
        const int64_t begin = std::clamp<int64_t>(-view.left, 0, length);
        const bool black = y < 0 || y >= view.height;
        const int64_t end = black ? begin : std::clamp<int64_t>(view.width - view.left, begin, length);
        for (int64_t x = 0; x < begin; x++) std::memset(to + 4 * ABREAST * x, 0, sizeof(Four));
        for (int64_t x = end; x < length; x++) std::memset(to + 4 * ABREAST * x, 0, sizeof(Four));
        if (begin == end) return;
        const uint8_t *from = pixels + view.offset + 3 * (y * view.width + view.left);
        for (int64_t x = begin; x + 1 < end; x++) spread<4>(from + 3 * x, to + 4 * ABREAST * x);
        spread<3>(from + 3 * (end - 1), to + 4 * ABREAST * (end - 1));  // there may be nothing behind
    }

  public:
    Painter(const uint8_t *pixels, ptrdiff_t size) : pixels(pixels), size(size), line(3 * size), stride(line + 16) {}

    // `mean`, `deviation`: of a line of pixels' values.
    void paint(const View &view, const float *mean, const float *deviation, float *out) {
        const Taps across(view.across, size), down(view.down, size);
        const int64_t first = down.begin[0], rows = down.begin[size - 1] + down.count[size - 1] - first;
        wide.resize(4 * ABREAST * view.across.length);
        narrow.resize(stride * (rows + ABREAST));
        for (int64_t row = 0; row < rows; row += ABREAST) {
            for (int64_t beside = 0; beside < ABREAST; beside++)
                widen(view, std::min(first + row + beside, view.down.length - 1), wide.data() + 4 * beside);
            for (ptrdiff_t place = 0; place < size; place++) {
                const ptrdiff_t x = view.mirrored ? size - 1 - place : place;
                Sixteen sum = Sixteen{} + (1 << across.bits >> 1);
                for (int64_t tap = 0; tap < across.count[x]; tap++) {
                    Sixteen values;
                    std::memcpy(&values, wide.data() + 4 * ABREAST * (across.begin[x] + tap), sizeof values);
                    sum += values * across.weights[x * across.most + tap];
                }
                const SixteenBytes bytes = rounded(sum, across.bits);
                for (int64_t beside = 0; beside < ABREAST; beside++) {  // the fourth byte will be the next pixel's
                    uint8_t *to = narrow.data() + stride * (row + beside) + 3 * place;
                    std::memcpy(to, reinterpret_cast<const uint8_t *>(&bytes) + 4 * beside, 4);
                }
            }
        }
        for (ptrdiff_t y = 0; y < size; y++)
            for (ptrdiff_t at = 0; at < line; at += 16) {
                Sixteen sum = Sixteen{} + (1 << down.bits >> 1);
                for (int64_t tap = 0; tap < down.count[y]; tap++) {
                    SixteenBytes bytes;
                    std::memcpy(&bytes, narrow.data() + stride * (down.begin[y] - first + tap) + at, sizeof bytes);
                    sum += widened(bytes) * down.weights[y * down.most + tap];
                }
                const auto values = __builtin_convertvector(widened(rounded(sum, down.bits)), Of::Floats);
                if (at + 16 <= line) {
                    Of::store(out + y * line + at, (values - Of::load(mean + at)) / Of::load(deviation + at));
                } else {
                    for (ptrdiff_t last = at; last < line; last++)
                        out[y * line + last] = (values[last - at] - mean[last]) / deviation[last];
                }
            }
    }
};

inline void paint(const uint8_t *pixels, const View *views, ptrdiff_t count, ptrdiff_t size, const float *mean,
                  const float *deviation, float *out, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Painter painter(pixels, size);
#pragma omp for schedule(dynamic)
        for (ptrdiff_t view = 0; view < count; view++)
            painter.paint(views[view], mean, deviation, out + view * 3 * size * size);
    }
}

}  // namespace
