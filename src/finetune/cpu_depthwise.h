// The middle of an inverted residual (Sandler et al. 2018, arXiv 1801.04381): BatchNorm and ReLU6, a depthwise 3 x 3
// convolution, BatchNorm and ReLU6, forward and backward, for a CPU; in channels_last.
//
// What the convolution takes is never written: rows of the first ReLU6's output, and backward of the second BatchNorm's
// gradient, are made where it wants them, a few at a time, in what the caches hold, in float32. Sums for the next layer
// are taken of each row as it is made. An image is one thread's; sums over images are taken in their order.

#pragma once

#include "cpu_batchnorm.h"
#include "cpu_rows.h"

namespace {

template <int LANES, typename T>
void convolve_row(const float *const rows[3], const float *taps, T *out, const Maps &maps, double *sum,
                  double *squares) {
    using Of = Lanes<LANES>;
    using Floats = typename Of::Floats;
    const ptrdiff_t channels = maps.channels, stride = maps.stride, width = maps.out_width();
    const NextRow<LANES, T> next(out, maps, width);
    for (ptrdiff_t channel = 0; channel < channels; channel += LANES) {
        Floats tap[3][3], left[3], middle[3], total{};
        for (int y = 0; y < 3; y++) {
            for (int x = 0; x < 3; x++) tap[y][x] = Of::load(taps + (3 * y + x) * channels + channel);
            left[y] = Of::load(rows[y] - channels + channel);
            middle[y] = Of::load(rows[y] + channel);
        }
        for (ptrdiff_t x = 0; x < width; x++) {
            next.expect_to_write(channel, x);
            Floats made{}, right[3];
            for (int y = 0; y < 3; y++) {
                const float *here = rows[y] + stride * x * channels + channel;
                if (stride == 2) middle[y] = Of::load(here);
                right[y] = Of::load(here + channels);
                made += tap[y][0] * left[y] + tap[y][1] * middle[y] + tap[y][2] * right[y];
                left[y] = stride == 2 ? right[y] : middle[y];
                middle[y] = right[y];
            }
            Of::store(out + x * channels + channel, made);
            total += Of::load(out + x * channels + channel);
        }
        const Floats mean = total / float(width);  // squares of what is left lose no digits to it
        Floats square{};
        for (ptrdiff_t x = 0; x < width; x++) {
            const Floats less = Of::load(out + x * channels + channel) - mean;
            square += less * less;
        }
        for (int lane = 0; lane < LANES; lane++) {
            sum[channel + lane] += double(total[lane]);
            squares[channel + lane] += double(square[lane]) + double(total[lane]) * double(total[lane]) / double(width);
        }
    }
}

// The moments of what it makes.
template <int LANES, typename T>
Moments convolve(const T *x, T *out, const Maps &maps, const Kept &kept, const float *taps, int threads) {
    using Of = Lanes<LANES>;
    const ptrdiff_t channels = maps.channels, in_row = maps.width * channels, out_row = maps.out_width() * channels;
    std::vector<double> partial(maps.images * 2 * channels);
#pragma omp parallel num_threads(threads)
    {
        Rows activated(maps.height, maps.width, channels);
#pragma omp for schedule(static)
        for (ptrdiff_t image = 0; image < maps.images; image++) {
            const T *from = x + image * maps.height * in_row;
            T *to = out + image * maps.out_height() * out_row;
            auto make = [&](ptrdiff_t row, float *values) {
                for (ptrdiff_t pixel = 0; pixel < in_row; pixel += channels)
                    for (ptrdiff_t channel = 0; channel < channels; channel += LANES) {
                        const ptrdiff_t at = pixel + channel;
                        expect_more(from + row * in_row + at);
                        const auto value = Of::load(from + row * in_row + at);
                        Of::store(values + at, Of::relu6(normalised<LANES>(value, kept, channel)));
                    }
            };
            activated.begin();
            double *sum = partial.data() + image * 2 * channels;
            for (ptrdiff_t row = 0; row < maps.out_height(); row++) {
                const float *rows[3];
                for (int y = 0; y < 3; y++) rows[y] = activated.get(maps.stride * row + y - 1, make);
                convolve_row<LANES>(rows, taps, to + row * out_row, maps, sum, sum + channels);
            }
        }
    }
    Moments found{std::vector<double>(channels), std::vector<double>(channels)};
    const double rows = double(maps.out().rows);
    for (ptrdiff_t image = 0; image < maps.images; image++)
        for (ptrdiff_t channel = 0; channel < channels; channel++) {
            found.mean[channel] += partial[image * 2 * channels + channel] / rows;
            found.variance[channel] += partial[(image * 2 + 1) * channels + channel] / rows;
        }
    for (ptrdiff_t channel = 0; channel < channels; channel++)
        found.variance[channel] -= found.mean[channel] * found.mean[channel];
    return found;
}

// Sums of an image or of the batch, rows of channels: of the taps, and for the BatchNorm before.
constexpr ptrdiff_t PASSED = 9, PRODUCT = 10, SUMS = 11;

// One row of the convolution's input: its gradient, cut where ReLU6 cuts, and its part of the sums. ROWS rows of the
// gradient of the output reach it, each by a row of taps. At stride 2 an even row or pixel is the middle of one window,
// an odd one at the edges of two.
template <int LANES, int STRIDE, int ROWS, typename T>
void gradient_row(const T *x, T *of_x, const float *const from_above[ROWS], const int tap_rows[ROWS], const float *taps,
                  const Maps &maps, const Kept &kept, float *sum) {
    using Of = Lanes<LANES>;
    using Floats = typename Of::Floats;
    const ptrdiff_t channels = maps.channels, width = maps.width;
    const NextRow<LANES, T> next(x, maps, width), next_of(of_x, maps, width);
    for (ptrdiff_t channel = 0; channel < channels; channel += LANES) {
        Floats tap[ROWS][3], of_tap[ROWS][3] = {}, passed{}, product{};
        Floats left[ROWS], middle[ROWS], right[ROWS];
        const Floats mean = Of::load(kept.mean + channel);
        for (int y = 0; y < ROWS; y++) {
            for (int column = 0; column < 3; column++)
                tap[y][column] = Of::load(taps + (3 * tap_rows[y] + column) * channels + channel);
            left[y] = Of::load(from_above[y] - channels + channel);
            middle[y] = Of::load(from_above[y] + channel);
        }
        const T *values = x + channel;
        T *to = of_x + channel;
        auto pixel = [&](ptrdiff_t at, auto gradient) {
            next.expect(channel, at);
            next_of.expect_to_write(channel, at);
            const Floats value = Of::load(values + at * channels), before = normalised<LANES>(value, kept, channel);
            const Floats activated = Of::relu6(before);
            const Floats cut = Of::where_relu6_is_linear(before, gradient(activated), 6.0f);
            Of::store(to + at * channels, cut);
            passed += cut;
            product += cut * (value - mean);
        };
        if (STRIDE == 1)
            for (ptrdiff_t at = 0; at < width; at++) {
                for (int y = 0; y < ROWS; y++) right[y] = Of::load(from_above[y] + (at + 1) * channels + channel);
                pixel(at, [&](Floats activated) {
                    Floats found{};
                    for (int y = 0; y < ROWS; y++) {
                        found += tap[y][2] * left[y] + tap[y][1] * middle[y] + tap[y][0] * right[y];
                        of_tap[y][2] += activated * left[y];
                        of_tap[y][1] += activated * middle[y];
                        of_tap[y][0] += activated * right[y];
                    }
                    return found;
                });
                for (int y = 0; y < ROWS; y++) left[y] = middle[y], middle[y] = right[y];
            }
        else
            for (ptrdiff_t at = 0; at < width; at += 2) {
                pixel(at, [&](Floats activated) {
                    Floats found{};
                    for (int y = 0; y < ROWS; y++) {
                        found += tap[y][1] * middle[y];
                        of_tap[y][1] += activated * middle[y];
                    }
                    return found;
                });
                if (at + 1 == width) break;
                for (int y = 0; y < ROWS; y++)
                    right[y] = Of::load(from_above[y] + (at / 2 + 1) * channels + channel);
                pixel(at + 1, [&](Floats activated) {
                    Floats found{};
                    for (int y = 0; y < ROWS; y++) {
                        found += tap[y][2] * middle[y] + tap[y][0] * right[y];
                        of_tap[y][2] += activated * middle[y];
                        of_tap[y][0] += activated * right[y];
                    }
                    return found;
                });
                for (int y = 0; y < ROWS; y++) middle[y] = right[y];
            }
        for (int y = 0; y < ROWS; y++)
            for (int column = 0; column < 3; column++)
                Of::add(sum + (3 * tap_rows[y] + column) * channels + channel, of_tap[y][column]);
        Of::add(sum + PASSED * channels + channel, passed);
        Of::add(sum + PRODUCT * channels + channel, product);
    }
}

// What of the gradient of the convolution's output, made by `gradient` of `out` and `from_above`, reaches the first
// BatchNorm's output, into `of_x`; SUMS rows of sums.
template <int LANES, typename T>
std::vector<double> convolve_back(const T *x, T *of_x, const T *out, const T *from_above, const Maps &maps,
                                  const Kept &kept, const Gradient<LANES> &gradient, const float *taps, int threads) {
    using Of = Lanes<LANES>;
    const ptrdiff_t channels = maps.channels, in_row = maps.width * channels, out_row = maps.out_width() * channels;
    std::vector<float> partial(maps.images * SUMS * channels);
#pragma omp parallel num_threads(threads)
    {
        Rows gradients(maps.out_height(), maps.out_width(), channels);
#pragma omp for schedule(static)
        for (ptrdiff_t image = 0; image < maps.images; image++) {
            const ptrdiff_t in_image = image * maps.height * in_row, out_image = image * maps.out_height() * out_row;
            auto make = [&](ptrdiff_t row, float *to) {
                const T *values = out + out_image + row * out_row, *above = from_above + out_image + row * out_row;
                for (ptrdiff_t pixel = 0; pixel < out_row; pixel += channels)
                    for (ptrdiff_t channel = 0; channel < channels; channel += LANES) {
                        const ptrdiff_t at = pixel + channel;
                        expect_more(values + at);
                        expect_more(above + at);
                        Of::store(to + at, gradient.at(Of::load(values + at), Of::load(above + at), channel));
                    }
            };
            gradients.begin();
            float *sum = partial.data() + image * SUMS * channels;
            for (ptrdiff_t row = 0; row < maps.height; row++) {
                const T *from = x + in_image + row * in_row;
                T *to = of_x + in_image + row * in_row;
                const float *rows[3];
                if (maps.stride == 1) {
                    const int tap_rows[] = {2, 1, 0};
                    for (int y = 0; y < 3; y++) rows[y] = gradients.get(row - 1 + y, make);
                    gradient_row<LANES, 1, 3>(from, to, rows, tap_rows, taps, maps, kept, sum);
                } else if (row % 2 == 0) {
                    const int tap_rows[] = {1};
                    rows[0] = gradients.get(row / 2, make);
                    gradient_row<LANES, 2, 1>(from, to, rows, tap_rows, taps, maps, kept, sum);
                } else {
                    const int tap_rows[] = {2, 0};
                    for (int y = 0; y < 2; y++) rows[y] = gradients.get(row / 2 + y, make);
                    gradient_row<LANES, 2, 2>(from, to, rows, tap_rows, taps, maps, kept, sum);
                }
            }
        }
    }
    std::vector<double> total(SUMS * channels);
    for (ptrdiff_t image = 0; image < maps.images; image++)
        for (ptrdiff_t value = 0; value < SUMS * channels; value++)
            total[value] += partial[image * SUMS * channels + value];
    return total;
}

template <int LANES, typename T>
void middle_forward(const T *x, T *convolved, T *y, const Maps &maps, const Norm &first, const Norm &second,
                    const float *taps, int threads) {
    settle(first, maps.in(), moments<LANES>(x, maps.in(), threads));
    const Kept kept(first, maps.channels);
    settle(second, maps.out(), convolve<LANES>(x, convolved, maps, kept, taps, threads));
    normalise<LANES>(convolved, y, maps.out(), Kept(second, maps.channels), true, threads);
}

template <int LANES, typename T>
void middle_backward(const T *x, const T *convolved, const T *from_above, T *of_x, const Maps &maps, const Norm &first,
                     const Norm &second, const float *taps, float *of_taps, float *of_first, float *of_second,
                     int threads) {
    const ptrdiff_t channels = maps.channels;
    Gradient<LANES> behind(second, channels, true, SIX<T>), before(first, channels, false, 0);  // `of_x` comes cut
    behind.settle(behind.sums_of(convolved, from_above, maps.out(), threads), maps.out(), second, of_second,
                  of_second + channels);
    const std::vector<double> sum =
        convolve_back<LANES>(x, of_x, convolved, from_above, maps, Kept(first, channels), behind, taps, threads);
    std::copy_n(sum.begin(), PASSED * channels, of_taps);
    before.settle({sum.begin() + PASSED * channels, sum.end()}, maps.in(), first, of_first, of_first + channels);
    before.write(x, of_x, of_x, maps.in(), threads);
}

}  // namespace
