// The device's description, the kernels that libraries register, and what is left of the runtime.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "state.h"

using namespace emulated;

namespace {

std::map<const void*, std::string> kernels;  // by the host's function

// A kernel of a library has no meaning here. It is refused, so that no answer is made up, unless
// the question is only which kernels are launched.
cudaError_t launch(const void* function, cudaStream_t stream) {
    static const char* said = getenv("EMULATED_KERNELS");
    std::string name = kernels.count(function) ? kernels[function] : "kernel";
    if (!said || strcmp(said, "record"))
        return fail(cudaErrorNotSupported, "a kernel", name.c_str());
    return queue(stream, "a kernel", cudaGraphNodeTypeKernel, name, {});
}

struct Configuration {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
};
thread_local Configuration configuration;

int refused_driver_call() { return 801; }  // CUDA_ERROR_NOT_SUPPORTED

}  // namespace

extern "C" {

cudaError_t cudaGetDeviceCount(int* out) { return *out = device_count(), cudaSuccess; }
cudaError_t cudaGetDevice(int* out) { return *out = current_device, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= device_count())
        return fail(cudaErrorInvalidDevice, "cudaSetDevice", "no such device");
    return current_device = device, cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* out) { return *out = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* out) { return *out = 13000, cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int* out, int, int) { return *out = 1, cudaSuccess; }
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }
cudaError_t cudaDeviceGetPCIBusId(char* out, int size, int device) {
    return snprintf(out, size, "0000:%02x:00.0", device + 1), cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* out, cudaDeviceAttr attribute, int) {
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: return *out = 9, cudaSuccess;
        case cudaDevAttrComputeCapabilityMinor: return *out = 0, cudaSuccess;
        case cudaDevAttrMultiProcessorCount: return *out = 132, cudaSuccess;
        case cudaDevAttrMaxThreadsPerBlock: return *out = 1024, cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: return *out = 232448, cudaSuccess;
        case cudaDevAttrWarpSize: return *out = 32, cudaSuccess;
        case cudaDevAttrMaxGridDimX: return *out = 2147483647, cudaSuccess;
        default: return *out = 0, cudaSuccess;
    }
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int) {
    *found = {};
    strcpy(found->name, "Emulated (no GPU)");
    found->totalGlobalMem = 8ull << 30;
    found->sharedMemPerBlock = 49152;
    found->sharedMemPerBlockOptin = 232448;
    found->sharedMemPerMultiprocessor = 233472;
    found->regsPerBlock = found->regsPerMultiprocessor = 65536;
    found->warpSize = 32;
    found->maxThreadsPerBlock = 1024;
    found->maxThreadsPerMultiProcessor = 2048;
    for (int i = 0; i < 3; ++i) found->maxThreadsDim[i] = i < 2 ? 1024 : 64;
    for (int i = 0; i < 3; ++i) found->maxGridSize[i] = i ? 65535 : 2147483647;
    found->major = 9;
    found->multiProcessorCount = 132;
    found->l2CacheSize = 50 << 20;
    found->memoryBusWidth = 5120;
    found->concurrentKernels = 1;
    found->asyncEngineCount = 3;
    found->unifiedAddressing = 1;
    return cudaSuccess;
}

cudaError_t cudaGetLastError() {
    cudaError_t found = last_error;
    return last_error = cudaSuccess, found;
}
cudaError_t cudaPeekAtLastError() { return last_error; }
const char* cudaGetErrorName(cudaError_t) { return "emulated CUDA error"; }
const char* cudaGetErrorString(cudaError_t code) {  // CUDA's words for what tests look for
    switch (code) {
        case cudaErrorAssert: return "device-side assert triggered";
        case cudaErrorStreamCaptureUnsupported:
            return "operation not permitted when stream is capturing";
        case cudaErrorStreamCaptureInvalidated:
            return "operation failed due to a previous error during capture";
        default: return "emulated CUDA error, see stderr";
    }
}

cudaError_t cudaProfilerStart() { return cudaSuccess; }
cudaError_t cudaProfilerStop() { return cudaSuccess; }

cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** out, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* status) {
    if (status) *status = cudaDriverEntryPointSuccess;
    return *out = (void*)refused_driver_call, cudaSuccess;
}

// Kernels

void** __cudaRegisterFatBinary(void*) {
    static void* handle = nullptr;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, void*,
                            void*, void*, void*, int*) {
    kernels[function] = name;
}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
cudaError_t __cudaGetKernel(cudaKernel_t* out, const void* function) {
    return *out = (cudaKernel_t)function, cudaSuccess;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
    return configuration = {grid, block, shared, stream}, 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
    *grid = configuration.grid;
    *block = configuration.block;
    *shared = configuration.shared;
    *(cudaStream_t*)stream = configuration.stream;
    return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void**, size_t, cudaStream_t on) {
    return launch((const void*)kernel, on);
}
cudaError_t cudaLaunchKernel(const void* function, dim3, dim3, void**, size_t, cudaStream_t on) {
    return launch(function, on);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* given, const void* function, void**) {
    return launch(function, given->stream);
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
    *found = {};
    found->maxThreadsPerBlock = 1024;
    found->numRegs = 32;
    found->ptxVersion = found->binaryVersion = 90;
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* out, const void*, int,
                                                                   size_t, unsigned) {
    return *out = 2, cudaSuccess;
}

}  // extern "C"
