// The driver, as far as torch asks it, and as Triton and AOTInductor load and launch kernels.

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <string>

extern "C" {

cudaError_t emulated_kernel(cudaStream_t stream, const char* name, int (*call)(size_t),
                            size_t argument);

static int nothing(size_t) { return 0; }
static CUresult launch(CUfunction function, CUstream stream) {
    auto name = ((std::string*)function)->c_str();
    const char* said = getenv("EMULATED_KERNELS");
    if (!said || strcmp(said, "record")) return CUDA_ERROR_NOT_SUPPORTED;
    return emulated_kernel((cudaStream_t)stream, name, nothing, 0) ? CUDA_ERROR_LAUNCH_FAILED
                                                                    : CUDA_SUCCESS;
}

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult, const char** out) {
    return *out = "emulated driver error, see stderr", CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice* out, int device) { return *out = device, CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int* out, CUdevice_attribute attribute, CUdevice device) {
    cudaDeviceGetAttribute(out, (cudaDeviceAttr)attribute, device);
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
    return *flags = 0, *active = 1, CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice) {
    return *out = (CUcontext)1, CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext* out) { return *out = (CUcontext)1, CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit, size_t) { return CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t* out, CUlimit) { return *out = 1 << 20, CUDA_SUCCESS; }

CUresult cuPointerGetAttribute(void* out, CUpointer_attribute attribute, CUdeviceptr address) {
    if (attribute != CU_POINTER_ATTRIBUTE_DEVICE_POINTER) return CUDA_ERROR_NOT_SUPPORTED;
    return *(CUdeviceptr*)out = address, CUDA_SUCCESS;
}

CUresult cuModuleLoad(CUmodule* out, const char*) { return *out = (CUmodule)1, CUDA_SUCCESS; }
CUresult cuModuleLoadData(CUmodule* out, const void*) { return *out = (CUmodule)1, CUDA_SUCCESS; }
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction* out, CUmodule, const char* name) {
    return *out = (CUfunction) new std::string(name), CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int* out, CUfunction_attribute attribute, CUfunction) {
    *out = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
    return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveClusters(int* out, CUfunction, const CUlaunchConfig*) {
    return *out = 1, CUDA_SUCCESS;
}
CUresult cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                                const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
    return CUDA_ERROR_NOT_SUPPORTED;
}
CUresult cuLaunchKernel(CUfunction function, unsigned, unsigned, unsigned, unsigned, unsigned,
                        unsigned, unsigned, CUstream stream, void**, void**) {
    return launch(function, stream);
}
CUresult cuLaunchKernelEx(const CUlaunchConfig* given, CUfunction function, void**, void**) {
    return launch(function, given->hStream);
}

}  // extern "C"
