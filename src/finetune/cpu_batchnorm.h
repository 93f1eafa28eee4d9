// BatchNorm (Ioffe and Szegedy 2015, arXiv 1502.03167) by the statistics of a batch, alone or with ReLU6 behind it, and
// its gradients, for a CPU. A batch is rows of channels, as it lies in memory in channels_last: rows = N x H x W.
//
// Memory bounds it: two reads of the batch and a write forward, four reads and a write backward. So ReLU6 comes along,
// and whether it lets a gradient through is worked out from its input again.
//
// Numbers: float32 within a block of rows, of values less the mean of a few rows from everywhere; double across blocks.
// Blocks and those rows depend on the shape alone, so that threads change no bit.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "cpu_lanes.h"

namespace {

using std::ptrdiff_t;

constexpr ptrdiff_t BLOCK = 65536;  // bytes of float32 in a block of rows: what the first caches hold

struct Shape {
    ptrdiff_t rows, channels;
    ptrdiff_t block() const { return std::max<ptrdiff_t>(16, BLOCK / (ptrdiff_t(sizeof(float)) * channels)); }
    ptrdiff_t blocks() const { return (rows + block() - 1) / block(); }
};

// Calls `work(block, first row, row behind the last)` for every block of rows.
template <typename Work> void in_blocks(Shape shape, int threads, Work work) {
    const ptrdiff_t blocks = shape.blocks(), rows = shape.block();
#pragma omp parallel for num_threads(threads) schedule(static)
    for (ptrdiff_t block = 0; block < blocks; block++)
        work(block, block * rows, std::min(shape.rows, (block + 1) * rows));
}

template <typename Floats> struct Two { Floats first, second; };

// Sums over the rows of two float values per channel, made by `pair(row's offset, channel)`.
template <int LANES, typename Pair>
std::vector<double> sums(Shape shape, int threads, Pair pair) {
    using Of = Lanes<LANES>;
    const ptrdiff_t channels = shape.channels;
    std::vector<float> partial(shape.blocks() * 2 * channels);
    in_blocks(shape, threads, [&](ptrdiff_t block, ptrdiff_t first, ptrdiff_t end) {
        float *one = partial.data() + block * 2 * channels, *other = one + channels;
        for (ptrdiff_t row = first; row < end; row++)
            for (ptrdiff_t channel = 0; channel < channels; channel += LANES) {
                auto values = pair(row * channels + channel, channel);
                Of::add(one + channel, values.first);
                Of::add(other + channel, values.second);
            }
    });
    std::vector<double> total(2 * channels);
    for (ptrdiff_t block = 0; block < shape.blocks(); block++)
        for (ptrdiff_t value = 0; value < 2 * channels; value++)
            total[value] += partial[block * 2 * channels + value];
    return total;
}

// The means of up to 64 rows from all over the batch and its images, whose corners may be far from the rest: squares of
// what is left lose no digits to a mean far from 0.
template <int LANES, typename T> std::vector<float> near_mean(const T *x, Shape shape) {
    using Of = Lanes<LANES>;
    const ptrdiff_t rows = std::min<ptrdiff_t>(shape.rows, 64), apart = shape.rows / rows;
    std::vector<float> mean(shape.channels);
    for (ptrdiff_t number = 0; number < rows; number++) {
        const ptrdiff_t row = number * shape.rows / rows + number * 39 % 64 * apart / 64;
        for (ptrdiff_t channel = 0; channel < shape.channels; channel += LANES)
            Of::add(mean.data() + channel, Of::load(x + row * shape.channels + channel) / float(rows));
    }
    return mean;
}

// A layer, as its caller has it.
struct Norm {
    const float *weight, *bias;
    float *running_mean, *running_variance;
    float *kept;  // four rows of channels, for the backward pass
    double momentum, eps;
};

// What the backward pass needs of the forward pass.
struct Kept {
    float *scale, *shift, *mean, *inverse_deviation;
    Kept(const Norm &norm, ptrdiff_t channels)
        : scale(norm.kept), shift(scale + channels), mean(shift + channels), inverse_deviation(mean + channels) {}
};

struct Moments { std::vector<double> mean, variance; };

template <int LANES, typename T> Moments moments(const T *x, Shape shape, int threads) {
    using Of = Lanes<LANES>;
    const std::vector<float> near = near_mean<LANES>(x, shape);
    const std::vector<double> sum = sums<LANES>(shape, threads, [&](ptrdiff_t at, ptrdiff_t channel) {
        expect_more(x + at);
        auto less = Of::load(x + at) - Of::load(near.data() + channel);
        return Two<typename Of::Floats>{less, less * less};
    });
    const double rows = double(shape.rows);
    Moments found{std::vector<double>(shape.channels), std::vector<double>(shape.channels)};
    for (ptrdiff_t channel = 0; channel < shape.channels; channel++) {
        const double less = sum[channel] / rows;
        found.mean[channel] = near[channel] + less;
        found.variance[channel] = sum[shape.channels + channel] / rows - less * less;
    }
    return found;
}

// Takes the moments of a batch into the running statistics, and keeps what they make of the layer.
inline void settle(const Norm &norm, Shape shape, const Moments &found) {
    const Kept kept(norm, shape.channels);
    const double rows = double(shape.rows), momentum = norm.momentum;
    for (ptrdiff_t channel = 0; channel < shape.channels; channel++) {
        const double mean = found.mean[channel], variance = found.variance[channel] < 0 ? 0 : found.variance[channel];
        const double inverse = 1 / std::sqrt(variance + norm.eps), scale = inverse * norm.weight[channel];
        kept.scale[channel] = float(scale);
        kept.shift[channel] = float(norm.bias[channel] - mean * scale);
        kept.mean[channel] = float(mean);
        kept.inverse_deviation[channel] = float(inverse);
        norm.running_mean[channel] = float((1 - momentum) * norm.running_mean[channel] + momentum * mean);
        norm.running_variance[channel] =
            float((1 - momentum) * norm.running_variance[channel] + momentum * variance * rows / (rows - 1));
    }
}

template <int LANES> inline auto normalised(typename Lanes<LANES>::Floats value, const Kept &kept, ptrdiff_t channel) {
    return value * Lanes<LANES>::load(kept.scale + channel) + Lanes<LANES>::load(kept.shift + channel);
}

template <int LANES, typename T>
void normalise(const T *x, T *y, Shape shape, const Kept &kept, bool relu6, int threads) {
    using Of = Lanes<LANES>;
    in_blocks(shape, threads, [&](ptrdiff_t, ptrdiff_t first, ptrdiff_t end) {
        for (ptrdiff_t row = first; row < end; row++)
            for (ptrdiff_t channel = 0; channel < shape.channels; channel += LANES) {
                const ptrdiff_t at = row * shape.channels + channel;
                expect_more(x + at);
                expect_to_write_more(y + at);
                auto value = normalised<LANES>(Of::load(x + at), kept, channel);
                Of::store(y + at, relu6 ? Of::relu6(value) : value);
            }
    });
}

template <int LANES, typename T>
void forward(const T *x, T *y, Shape shape, const Norm &norm, bool relu6, int threads) {
    settle(norm, shape, moments<LANES>(x, shape, threads));
    normalise<LANES>(x, y, shape, Kept(norm, shape.channels), relu6, threads);
}

// The gradient of a layer's input, once sums over the batch are known:
// (passed - its mean - normalised x * its mean product with that) * weight / deviation,
// where `passed` is what ReLU6 lets through, if there is one.
template <int LANES> struct Gradient {
    using Of = Lanes<LANES>;
    using Floats = typename Of::Floats;

    const Kept kept;
    const bool relu6;
    const float six;
    std::vector<float> of_passed, of_value, constant;

    Gradient(const Norm &norm, ptrdiff_t channels, bool relu6, float six)
        : kept(norm, channels), relu6(relu6), six(six), of_passed(channels), of_value(channels), constant(channels) {}

    Floats passed(Floats value, Floats from_above, ptrdiff_t channel) const {
        if (!relu6) return from_above;
        return Of::where_relu6_is_linear(normalised<LANES>(value, kept, channel), from_above, six);
    }
    Floats less_mean(Floats value, ptrdiff_t channel) const { return value - Of::load(kept.mean + channel); }
    Floats at(Floats value, Floats from_above, ptrdiff_t channel) const {
        return passed(value, from_above, channel) * Of::load(of_passed.data() + channel) +
               less_mean(value, channel) * Of::load(of_value.data() + channel) + Of::load(constant.data() + channel);
    }
    // `sum`: of what passed, and of its products with values less their mean.
    void settle(const std::vector<double> &sum, Shape shape, const Norm &norm, float *of_weight, float *of_bias) {
        const double rows = double(shape.rows);
        for (ptrdiff_t channel = 0; channel < shape.channels; channel++) {
            const double passed = sum[channel], product = sum[shape.channels + channel];
            const double inverse = kept.inverse_deviation[channel], factor = inverse * norm.weight[channel];
            of_bias[channel] = float(passed);
            of_weight[channel] = float(product * inverse);
            of_passed[channel] = float(factor);
            of_value[channel] = float(-factor * inverse * inverse * product / rows);
            constant[channel] = float(-factor * passed / rows);
        }
    }
    template <typename T> std::vector<double> sums_of(const T *x, const T *from_above, Shape shape, int threads) const {
        return sums<LANES>(shape, threads, [&](ptrdiff_t at, ptrdiff_t channel) {
            expect_more(x + at);
            expect_more(from_above + at);
            auto value = Of::load(x + at), passed = this->passed(value, Of::load(from_above + at), channel);
            return Two<Floats>{passed, passed * less_mean(value, channel)};
        });
    }
    // `of_x` may be `from_above`.
    template <typename T> void write(const T *x, const T *from_above, T *of_x, Shape shape, int threads) const {
        in_blocks(shape, threads, [&](ptrdiff_t, ptrdiff_t first, ptrdiff_t end) {
            for (ptrdiff_t row = first; row < end; row++)
                for (ptrdiff_t channel = 0; channel < shape.channels; channel += LANES) {
                    const ptrdiff_t here = row * shape.channels + channel;
                    expect_more(x + here);
                    expect_more(from_above + here);
                    Of::store(of_x + here, at(Of::load(x + here), Of::load(from_above + here), channel));
                }
        });
    }
};

template <int LANES, typename T>
void backward(const T *x, const T *from_above, T *of_x, Shape shape, const Norm &norm, bool relu6, float *of_weight,
              float *of_bias, int threads) {
    Gradient<LANES> gradient(norm, shape.channels, relu6, SIX<T>);
    gradient.settle(gradient.sums_of(x, from_above, shape, threads), shape, norm, of_weight, of_bias);
    gradient.write(x, from_above, of_x, shape, threads);
}

}  // namespace
