// cublasLt, as far as to see which products are launched where.

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>

extern "C" {

cudaError_t emulated_kernel(cudaStream_t stream, const char* name, int (*call)(size_t),
                            size_t argument);
static int nothing(size_t) { return 0; }

static int made(void** out) { return *out = malloc(8), 0; }
int cublasLtMatmulDescCreate(void** out) { return made(out); }
int cublasLtMatmulDescDestroy(void* it) { return free(it), 0; }
int cublasLtMatmulDescSetAttribute(void*) { return 0; }
int cublasLtMatmulPreferenceCreate(void** out) { return made(out); }
int cublasLtMatmulPreferenceDestroy(void* it) { return free(it), 0; }
int cublasLtMatmulPreferenceSetAttribute(void*) { return 0; }
int cublasLtMatrixLayoutCreate(void** out) { return made(out); }
int cublasLtMatrixLayoutDestroy(void* it) { return free(it), 0; }
int cublasLtMatrixLayoutSetAttribute(void*) { return 0; }
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void* found,
                                   int* count) {
    memset(found, 0, 64);
    return *count = 1, 0;
}
int cublasLtMatmul(void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*,
                   void*, void*, size_t, cudaStream_t stream) {
    const char* said = getenv("EMULATED_KERNELS");
    if (!said || strcmp(said, "record")) return 15;
    return emulated_kernel(stream, "cublasLtMatmul", nothing, 0) ? 14 : 0;
}

}  // extern "C"
