// Values of a tensor, float32 or bf16 (as uint16_t), as vectors of floats: 16 lanes fill one of AVX-512, 8 one of AVX2.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

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
    static void add(float *to, Floats values) { store(to, load(to) + values); }

    static Floats relu6(Floats values) {
        values = values < 0.0f ? Floats{} : values;  // NaN stays
        return values > 6.0f ? Floats{} + 6.0f : values;
    }
    static Floats where_relu6_is_linear(Floats before, Floats gradient, float six) {
        return bits_of<Floats>(bits_of<Words>(gradient) & ~bits_of<Words>((before <= 0.0f) | (before >= six)));
    }
};

// Asks for what lies a little further on, as the processor's own prefetching ends with each page of 4 KiB.
template <typename T> inline void expect_more(const T *at) {
    __builtin_prefetch(reinterpret_cast<const char *>(at) + 2048);
}
template <typename T> inline void expect_to_write_more(T *at) {
    __builtin_prefetch(reinterpret_cast<char *>(at) + 2048, 1);
}

// From where on values are 6 once they are rounded: 6, and in bf16 6 less half of the step from there down.
template <typename T> constexpr float SIX = sizeof(T) == sizeof(float) ? 6.0f : 6.0f - 1.0f / 64;

}  // namespace
