// cuBLAS, as far as to see which products are launched where.

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>

extern "C" {

cudaError_t emulated_kernel(cudaStream_t stream, const char* name, int (*call)(size_t),
                            size_t argument);

struct Handle {
    cudaStream_t stream;
    int math;
};

static int nothing(size_t) { return 0; }
static int product(Handle* handle, const char* name) {
    const char* said = getenv("EMULATED_KERNELS");
    if (!said || strcmp(said, "record")) return 15;  // CUBLAS_STATUS_NOT_SUPPORTED
    return emulated_kernel(handle->stream, name, nothing, 0) ? 14 : 0;
}

int cublasCreate_v2(Handle** out) { return *out = new Handle{}, 0; }
int cublasDestroy_v2(Handle* handle) { return delete handle, 0; }
int cublasSetStream_v2(Handle* handle, cudaStream_t stream) { return handle->stream = stream, 0; }
int cublasSetWorkspace_v2(Handle*, void*, size_t) { return 0; }
int cublasSetMathMode(Handle* handle, int mode) { return handle->math = mode, 0; }
int cublasGetMathMode(Handle* handle, int* out) { return *out = handle->math, 0; }
int cublasSetPointerMode_v2(Handle*, int) { return 0; }
int cublasGetPointerMode_v2(Handle*, int* out) { return *out = 0, 0; }

int cublasSgemm_v2(Handle* handle) { return product(handle, "cublasSgemm"); }
int cublasSgemv_v2(Handle* handle) { return product(handle, "cublasSgemv"); }
int cublasGemmEx(Handle* handle) { return product(handle, "cublasGemmEx"); }
int cublasSgemmStridedBatched(Handle* handle) { return product(handle, "cublasSgemmBatched"); }
int cublasGemmStridedBatchedEx(Handle* handle) { return product(handle, "cublasGemmBatchedEx"); }

}  // extern "C"
