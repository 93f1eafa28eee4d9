// BatchNorm (Ioffe and Szegedy 2015, arXiv 1502.03167) by the statistics of a batch, alone or with ReLU6 behind it, and
// its gradients, for a CPU. A batch is rows of channels, as it lies in memory in channels_last: rows = N x H x W.
//
// Memory bounds it: two reads of the batch and a write forward, four reads and a write backward. So ReLU6 comes along,
// and whether it lets a gradient through is worked out from its input again.
//
// Numbers: float32 within a block of rows, of values less the mean of a few rows from everywhere; double across blocks.
// Blocks and those rows depend on the shape alone, so that threads change no bit.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using std::ptrdiff_t;

constexpr ptrdiff_t BLOCK = 65536;  // bytes of float32 in a block of rows: what the first caches hold

template <int LANES> struct Vector;
template <> struct Vector<16> {
    typedef float Floats __attribute__((vector_size(64)));
    typedef uint32_t Words __attribute__((vector_size(64)));
    typedef uint16_t Halves __attribute__((vector_size(32)));
};
template <> struct Vector<8> {
    typedef float Floats __attribute__((vector_size(32)));
    typedef uint32_t Words __attribute__((vector_size(32)));
    typedef uint16_t Halves __attribute__((vector_size(16)));
};

template <typename To, typename From> inline To bits_of(From value) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Values of a tensor, float or bf16 (as uint16_t), as float vectors.
template <int LANES> struct Lanes {
    using Floats = typename Vector<LANES>::Floats;
    using Words = typename Vector<LANES>::Words;
    using Halves = typename Vector<LANES>::Halves;

    static Floats load(const float *from) {
        Floats values;
        std::memcpy(&values, from, sizeof values);
        return values;
    }
    static Floats load(const uint16_t *from) {
        Halves halves;
        std::memcpy(&halves, from, sizeof halves);
        return bits_of<Floats>(__builtin_convertvector(halves, Words) << 16);
    }
    static void store(float *to, Floats values) { std::memcpy(to, &values, sizeof values); }
    static void store(uint16_t *to, Floats values) {
        Words words = bits_of<Words>(values);
        Words rounded = words + 0x7fff + ((words >> 16) & 1);  // to the nearest, ties to even
        rounded = values == values ? rounded : Words{} + 0x7fc00000;
        Halves halves = __builtin_convertvector((rounded >> 16) & 0xffff, Halves);
        std::memcpy(to, &halves, sizeof halves);
    }
    static Floats relu6(Floats values) {
        values = values < 0.0f ? Floats{} : values;  // NaN stays
        return values > 6.0f ? Floats{} + 6.0f : values;
    }
    static Floats where_relu6_is_linear(Floats before, Floats gradient, float six) {
        return bits_of<Floats>(bits_of<Words>(gradient) & ~bits_of<Words>((before <= 0.0f) | (before >= six)));
    }
};

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
                Of::store(one + channel, Of::load(one + channel) + values.first);
                Of::store(other + channel, Of::load(other + channel) + values.second);
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
template <typename T, int LANES> std::vector<float> near_mean(const T *x, Shape shape) {
    using Of = Lanes<LANES>;
    const ptrdiff_t rows = std::min<ptrdiff_t>(shape.rows, 64), apart = shape.rows / rows;
    std::vector<float> mean(shape.channels);
    for (ptrdiff_t number = 0; number < rows; number++) {
        const ptrdiff_t row = number * shape.rows / rows + number * 39 % 64 * apart / 64;
        for (ptrdiff_t channel = 0; channel < shape.channels; channel += LANES) {
            const auto value = Of::load(x + row * shape.channels + channel);
            Of::store(mean.data() + channel, Of::load(mean.data() + channel) + value / float(rows));
        }
    }
    return mean;
}

// From where on values are 6 once they are rounded: 6, and in bf16 6 less half of the step from there down.
template <typename T> constexpr float SIX = sizeof(T) == sizeof(float) ? 6.0f : 6.0f - 1.0f / 64;

template <typename Floats> struct Two { Floats first, second; };

// What the backward pass needs of the forward pass, a row of channels each.
struct Kept {
    float *scale, *shift, *mean, *inverse_deviation;
    Kept(float *kept, ptrdiff_t channels)
        : scale(kept), shift(kept + channels), mean(kept + 2 * channels), inverse_deviation(kept + 3 * channels) {}
};

template <typename T, int LANES>
void forward(const T *x, T *y, Shape shape, const float *weight, const float *bias, float *running_mean,
             float *running_variance, double momentum, double eps, bool relu6, float *kept_rows, int threads) {
    using Of = Lanes<LANES>;
    const ptrdiff_t channels = shape.channels;
    const std::vector<float> near = near_mean<T, LANES>(x, shape);
    const std::vector<double> sum = sums<LANES>(shape, threads, [&](ptrdiff_t at, ptrdiff_t channel) {
        auto less = Of::load(x + at) - Of::load(near.data() + channel);
        return Two<typename Of::Floats>{less, less * less};
    });
    Kept kept(kept_rows, channels);
    const double rows = double(shape.rows);
    for (ptrdiff_t channel = 0; channel < channels; channel++) {
        const double less = sum[channel] / rows, mean = near[channel] + less;
        const double found = sum[channels + channel] / rows - less * less, variance = found < 0 ? 0 : found;  // NaN stays
        const double inverse = 1 / std::sqrt(variance + eps), scale = inverse * weight[channel];
        kept.scale[channel] = float(scale);
        kept.shift[channel] = float(bias[channel] - mean * scale);
        kept.mean[channel] = float(mean);
        kept.inverse_deviation[channel] = float(inverse);
        running_mean[channel] = float((1 - momentum) * running_mean[channel] + momentum * mean);
        running_variance[channel] =
            float((1 - momentum) * running_variance[channel] + momentum * variance * rows / (rows - 1));
    }
    in_blocks(shape, threads, [&](ptrdiff_t, ptrdiff_t from, ptrdiff_t end) {
        for (ptrdiff_t row = from; row < end; row++)
            for (ptrdiff_t channel = 0; channel < channels; channel += LANES) {
                const ptrdiff_t at = row * channels + channel;
                auto value = Of::load(x + at) * Of::load(kept.scale + channel) + Of::load(kept.shift + channel);
                Of::store(y + at, relu6 ? Of::relu6(value) : value);
            }
    });
}

// `of_x` may be `gradient`.
template <typename T, int LANES>
void backward(const T *x, const T *gradient, T *of_x, Shape shape, const float *weight, float *kept_rows, bool relu6,
              float *of_weight, float *of_bias, int threads) {
    using Of = Lanes<LANES>;
    const ptrdiff_t channels = shape.channels;
    const Kept kept(kept_rows, channels);
    auto passed = [&](typename Of::Floats value, ptrdiff_t at, ptrdiff_t channel) {
        auto from_above = Of::load(gradient + at);
        if (!relu6) return from_above;
        auto normalised = value * Of::load(kept.scale + channel) + Of::load(kept.shift + channel);
        return Of::where_relu6_is_linear(normalised, from_above, SIX<T>);
    };
    const std::vector<double> sum = sums<LANES>(shape, threads, [&](ptrdiff_t at, ptrdiff_t channel) {
        auto value = Of::load(x + at), from_above = passed(value, at, channel);
        return Two<typename Of::Floats>{from_above, from_above * (value - Of::load(kept.mean + channel))};
    });
    // of x = (passed - its mean - normalised x * its mean product with that) * weight / deviation
    std::vector<float> of_passed(channels), of_value(channels), constant(channels);
    for (ptrdiff_t channel = 0; channel < channels; channel++) {
        const double inverse = kept.inverse_deviation[channel], factor = inverse * weight[channel];
        const double slope = -factor * inverse * inverse * sum[channels + channel] / double(shape.rows);
        of_bias[channel] = float(sum[channel]);
        of_weight[channel] = float(sum[channels + channel] * inverse);
        of_passed[channel] = float(factor);
        of_value[channel] = float(slope);
        constant[channel] = float(-factor * sum[channel] / double(shape.rows));
    }
    in_blocks(shape, threads, [&](ptrdiff_t, ptrdiff_t from, ptrdiff_t end) {
        for (ptrdiff_t row = from; row < end; row++)
            for (ptrdiff_t channel = 0; channel < channels; channel += LANES) {
                const ptrdiff_t at = row * channels + channel;
                const auto value = Of::load(x + at);
                Of::store(of_x + at, passed(value, at, channel) * Of::load(of_passed.data() + channel) +
                                         (value - Of::load(kept.mean + channel)) * Of::load(of_value.data() + channel) +
                                         Of::load(constant.data() + channel));
            }
    });
}

}  // namespace

// `channels` is a multiple of 8; `kept` has four rows of channels.
#define KERNELS(NAME, T)                                                                                               \
    extern "C" void batchnorm_forward_##NAME(const T *x, T *y, ptrdiff_t rows, ptrdiff_t channels,                     \
                                             const float *weight, const float *bias, float *running_mean,              \
                                             float *running_variance, double momentum, double eps, int relu6,          \
                                             float *kept, int threads) {                                               \
        auto *run = channels % 16 ? forward<T, 8> : forward<T, 16>;                                                    \
        run(x, y, {rows, channels}, weight, bias, running_mean, running_variance, momentum, eps, relu6 != 0, kept,     \
            threads);                                                                                                  \
    }                                                                                                                  \
    extern "C" void batchnorm_backward_##NAME(const T *x, const T *gradient, T *of_x, ptrdiff_t rows,                  \
                                              ptrdiff_t channels, const float *weight, float *kept, int relu6,         \
                                              float *of_weight, float *of_bias, int threads) {                         \
        auto *run = channels % 16 ? backward<T, 8> : backward<T, 16>;                                                  \
        run(x, gradient, of_x, {rows, channels}, weight, kept, relu6 != 0, of_weight, of_bias, threads);               \
    }

KERNELS(float, float)
KERNELS(bf16, uint16_t)
