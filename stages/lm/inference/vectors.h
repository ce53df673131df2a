/* Arithmetic on vectors of LANES floats. */

INLINE F splat(float x) { return x - (F){0}; }
INLINE F load(const float *p) { return *(const F *)p; }
INLINE F blend(I mask, F yes, F no) { return (F)((mask & (I)yes) | (~mask & (I)no)); }
INLINE F maximum(F a, F b) { return blend(a > b, a, b); }

/* a * b + c, rounded once if the processor has an instruction for it. */
INLINE F multiply_add(F a, F b, F c) {
#if LANES == 16
    return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

INLINE float sum_lanes(F x) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}

INLINE float max_lane(F x) {
    float best = x[0];
    for (int i = 1; i < LANES; i++) best = x[i] > best ? x[i] : best;
    return best;
}

#if defined(__F16C__) && LANES == 16
INLINE F load_half(const Half *p) { return (F)_mm512_cvtph_ps(_mm256_load_si256((const void *)p)); }
INLINE void store_half(F x, Half *p) {
    _mm256_store_si256((void *)p, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
INLINE F load_half(const Half *p) { return (F)_mm256_cvtph_ps(_mm_load_si128((const void *)p)); }
INLINE void store_half(F x, Half *p) {
    _mm_store_si128((void *)p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
}
#else
INLINE F load_half(const Half *p) { return load(p); }
INLINE void store_half(F x, Half *p) { *(F *)p = x; }
#endif

#define ROUND_MAGIC 12582912.0f /* 1.5 * 2^23: adding it to a float rounds that to an integer */

INLINE I round_to_int(F x) { return (I)(x + ROUND_MAGIC) - (I)splat(ROUND_MAGIC); }

/* e^x to about 2 units in the last place; exactly 1 at 0. */
INLINE F exp_approx(F x) {
    x = maximum(x, splat(-87));
    x = blend(x < 88, x, splat(88));
    F n = (x * 1.44269504f + ROUND_MAGIC) - ROUND_MAGIC;
    F r = multiply_add(n, splat(2.12194440e-4f), multiply_add(n, splat(-0.693359375f), x));
    F p = multiply_add(r, splat(1.0f / 5040), splat(1.0f / 720));
    p = multiply_add(p, r, splat(1.0f / 120));
    p = multiply_add(p, r, splat(1.0f / 24));
    p = multiply_add(p, r, splat(1.0f / 6));
    p = multiply_add(p, r, splat(0.5f));
    p = multiply_add(p, r, splat(1));
    p = multiply_add(p, r, splat(1));
    return (F)((I)p + (round_to_int(n) << 23));
}
