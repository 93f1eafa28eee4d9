// What cpu_kernels.py calls. `channels` is a multiple of 8; `of_first` and `of_second` are two rows, weight and bias.

#include "cpu_batchnorm.h"
#include "cpu_depthwise.h"
#include "cpu_views.h"

#define KERNELS(NAME, T)                                                                                               \
    extern "C" void batchnorm_forward_##NAME(const T *x, T *y, ptrdiff_t rows, ptrdiff_t channels, const Norm *norm,   \
                                             int relu6, int threads) {                                                 \
        auto *run = channels % 16 ? forward<8, T> : forward<16, T>;                                                    \
        run(x, y, {rows, channels}, *norm, relu6 != 0, threads);                                                       \
    }                                                                                                                  \
    extern "C" void batchnorm_backward_##NAME(const T *x, const T *from_above, T *of_x, ptrdiff_t rows,                \
                                              ptrdiff_t channels, const Norm *norm, int relu6, float *of_weight,       \
                                              float *of_bias, int threads) {                                           \
        auto *run = channels % 16 ? backward<8, T> : backward<16, T>;                                                  \
        run(x, from_above, of_x, {rows, channels}, *norm, relu6 != 0, of_weight, of_bias, threads);                    \
    }                                                                                                                  \
    extern "C" void middle_forward_##NAME(const T *x, T *convolved, T *y, const Maps *maps, const Norm *first,         \
                                          const Norm *second, const float *taps, int threads) {                        \
        auto *run = maps->channels % 16 ? middle_forward<8, T> : middle_forward<16, T>;                                \
        run(x, convolved, y, *maps, *first, *second, taps, threads);                                                   \
    }                                                                                                                  \
    extern "C" void middle_backward_##NAME(const T *x, const T *convolved, const T *from_above, T *of_x,               \
                                           const Maps *maps, const Norm *first, const Norm *second, const float *taps, \
                                           float *of_taps, float *of_first, float *of_second, int threads) {           \
        auto *run = maps->channels % 16 ? middle_backward<8, T> : middle_backward<16, T>;                              \
        run(x, convolved, from_above, of_x, *maps, *first, *second, taps, of_taps, of_first, of_second, threads);      \
    }

KERNELS(float, float)
KERNELS(bf16, uint16_t)

extern "C" void views(const uint8_t *pixels, const View *views, ptrdiff_t count, ptrdiff_t size, const float *mean,
                      const float *deviation, float *out, int threads) {
    paint(pixels, views, count, size, mean, deviation, out, threads);
}
