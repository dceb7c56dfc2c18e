/* As many floats as the processor takes at once, which the compiler may not make of one: wider ones
   are kept in memory. As many numbers of their size. */
#ifndef RECREPLAY_VECTOR
#define RECREPLAY_VECTOR
/* Small functions, which code compiled with -O1 would call: vectors go by memory then. */
#define RECREPLAY_INLINE __attribute__((always_inline)) static inline
namespace recreplay {
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
constexpr int64_t kWide = sizeof(Vector) / sizeof(float);
} // namespace recreplay
#endif
