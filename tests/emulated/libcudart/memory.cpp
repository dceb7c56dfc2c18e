// Memory: all of it is the host's, and each block knows what kind CUDA would say it is.

#include <cstdlib>
#include <cstring>
#include <map>

#include "state.h"

namespace {

struct Block {
    size_t bytes;
    cudaMemoryType type;
    int device;
    bool ours;  // allocated here, and not registered
};

std::map<char*, Block> blocks;
constexpr size_t kTotal = 8ull << 30;
constexpr size_t kAlignment = 512;  // what cudaMalloc gives
size_t used = 0;

const Block* find(const void* address) {
    auto at = blocks.upper_bound((char*)address);
    if (at == blocks.begin()) return nullptr;
    --at;
    return (char*)address < at->first + at->second.bytes ? &at->second : nullptr;
}

cudaError_t allocate(void** out, size_t bytes, cudaMemoryType type, const char* call) {
    Locked locked(emulated::lock);
    if (emulated::broken) return emulated::broken;
    if (cudaError_t refused = emulated::unsafe(call)) return refused;
    if (bytes == 0) return *out = nullptr, cudaSuccess;
    if (type == cudaMemoryTypeDevice && used + bytes > kTotal)
        return emulated::fail(cudaErrorMemoryAllocation, call, "beyond the emulated memory");
    size_t room = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    char* block = (char*)aligned_alloc(kAlignment, room);
    // Real memory holds what was there before; a pattern shows a read of what was never written.
    memset(block, 0xA5, room);
    blocks[block] = {bytes, type, emulated::current_device, true};
    if (type == cudaMemoryTypeDevice) used += bytes;
    *out = block;
    return cudaSuccess;
}

cudaError_t release(void* address, const char* call) {
    Locked locked(emulated::lock);
    if (address == nullptr) return cudaSuccess;
    if (cudaError_t refused = emulated::unsafe(call)) return refused;
    auto at = blocks.find((char*)address);
    if (at == blocks.end() || !at->second.ours)
        return emulated::fail(cudaErrorInvalidValue, call, "no such block");
    if (at->second.type == cudaMemoryTypeDevice) used -= at->second.bytes;
    blocks.erase(at);
    free(address);
    return cudaSuccess;
}

cudaError_t copy(void* to, const void* from, size_t bytes, cudaStream_t stream, const char* call) {
    auto run = [=] { memmove(to, from, bytes); };
    return emulated::queue(stream, call, cudaGraphNodeTypeMemcpy, "copy", run);
}

}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** out, size_t bytes) {
    return allocate(out, bytes, cudaMemoryTypeDevice, "cudaMalloc");
}
cudaError_t cudaFree(void* address) { return release(address, "cudaFree"); }
cudaError_t cudaMallocAsync(void** out, size_t bytes, cudaStream_t stream) {
    if (emulated::capturing(emulated::stream_of(stream)))
        return emulated::fail(cudaErrorNotSupported, "cudaMallocAsync", "no allocation nodes");
    return allocate(out, bytes, cudaMemoryTypeDevice, "cudaMallocAsync");
}
cudaError_t cudaFreeAsync(void* address, cudaStream_t) { return release(address, "cudaFreeAsync"); }
cudaError_t cudaHostAlloc(void** out, size_t bytes, unsigned) {
    return allocate(out, bytes, cudaMemoryTypeHost, "cudaHostAlloc");
}
cudaError_t cudaFreeHost(void* address) { return release(address, "cudaFreeHost"); }

cudaError_t cudaHostRegister(void* address, size_t bytes, unsigned) {
    Locked locked(emulated::lock);
    blocks[(char*)address] = {bytes, cudaMemoryTypeHost, emulated::current_device, false};
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void* address) {
    Locked locked(emulated::lock);
    blocks.erase((char*)address);
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* address) {
    Locked locked(emulated::lock);
    const Block* block = find(address);
    *found = {};
    found->type = block ? block->type : cudaMemoryTypeUnregistered;
    found->device = block ? block->device : -2;
    bool on_device = block && block->type == cudaMemoryTypeDevice;
    found->devicePointer = block ? (void*)address : nullptr;
    found->hostPointer = on_device ? nullptr : (void*)address;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
    Locked locked(emulated::lock);
    *free_bytes = kTotal - used;
    *total = kTotal;
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    if (cudaError_t refused = emulated::unsafe("cudaMemcpy")) return refused;
    return copy(to, from, bytes, nullptr, "cudaMemcpy");
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
    return copy(to, from, bytes, stream, "cudaMemcpyAsync");
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes,
                                cudaStream_t stream) {
    return copy(to, from, bytes, stream, "cudaMemcpyPeerAsync");
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t stream) {
    auto run = [=] {
        for (size_t row = 0; row < height; ++row)
            memmove((char*)to + row * to_pitch, (const char*)from + row * from_pitch, width);
    };
    return emulated::queue(stream, "cudaMemcpy2DAsync", cudaGraphNodeTypeMemcpy, "copy", run);
}
cudaError_t cudaMemset(void* at, int value, size_t bytes) {
    if (cudaError_t refused = emulated::unsafe("cudaMemset")) return refused;
    return memset(at, value, bytes), cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t stream) {
    auto run = [=] { memset(at, value, bytes); };
    return emulated::queue(stream, "cudaMemsetAsync", cudaGraphNodeTypeMemset, "set", run);
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
    return *pool = nullptr, cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* value) {
    return *(size_t*)value = 0, cudaSuccess;
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }

}  // extern "C"
