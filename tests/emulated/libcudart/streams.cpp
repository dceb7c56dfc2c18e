// Streams, events and captures, with the refusals that a capture brings.

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "state.h"

namespace emulated {

std::recursive_mutex lock;
thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;
cudaError_t broken = cudaSuccess;

namespace {

std::vector<std::weak_ptr<Capture>> captures;
unsigned long long next_capture = 1;
std::set<Stream*> alive;
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

Stream* legacy() {
    static Stream streams[16];
    streams[current_device].device = current_device;
    return &streams[current_device];
}

double now_ms() {
    auto now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double, std::milli>(now).count();
}

bool under_way(const std::weak_ptr<Capture>& held) {
    auto capture = held.lock();
    return capture && !capture->streams.empty();
}

// Whether `node` runs before one of `ends`, or is one.
bool covered(Node* node, const std::vector<Node*>& ends) {
    std::vector<Node*> open = ends;
    std::set<Node*> seen;
    while (!open.empty()) {
        Node* at = open.back();
        open.pop_back();
        if (at == node) return true;
        if (seen.insert(at).second) open.insert(open.end(), at->before.begin(), at->before.end());
    }
    return false;
}

void merge(std::vector<Node*>& into, const std::vector<Node*>& more) {
    for (Node* node : more)
        if (std::find(into.begin(), into.end(), node) == into.end()) into.push_back(node);
}

}  // namespace

int device_count() {
    const char* said = getenv("EMULATED_DEVICES");
    return said ? atoi(said) : 1;
}

Stream* stream_of(cudaStream_t handle) {
    auto number = (size_t)handle;
    if (number <= 2) return legacy();  // 0, cudaStreamLegacy, cudaStreamPerThread
    Locked locked(lock);
    if (alive.count((Stream*)handle)) return (Stream*)handle;
    // A driver may do anything: what it does is seen here at once.
    fprintf(stderr, "emulated CUDA: a stream is used that was destroyed\n");
    abort();
}

bool capturing(Stream* stream) { return stream->capture != nullptr; }

cudaError_t fail(cudaError_t code, const char* call, const char* why) {
    fprintf(stderr, "emulated CUDA: %s is refused (%d): %s\n", call, (int)code, why);
    return last_error = code;
}

cudaError_t unsafe(const char* call) {
    Locked locked(lock);
    if (thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
    for (auto& held : captures) {
        if (!under_way(held)) continue;
        auto capture = held.lock();
        bool own = capture->thread == (unsigned long)pthread_self();
        bool minds = capture->mode == cudaStreamCaptureModeGlobal
                         ? own || thread_mode == cudaStreamCaptureModeGlobal
                         : own && capture->mode == cudaStreamCaptureModeThreadLocal;
        if (!minds) continue;
        capture->valid = false;
        return fail(cudaErrorStreamCaptureUnsupported, call, "a capture is under way");
    }
    return cudaSuccess;
}

cudaError_t queue(cudaStream_t handle, const char* call, cudaGraphNodeType type,
                  const std::string& name, std::function<void()> run) {
    if (broken) return broken;
    {
        Locked locked(lock);
        Stream* stream = stream_of(handle);
        if (stream->device != current_device)
            return fail(cudaErrorInvalidResourceHandle, call, "a stream of another device");
        if (!capturing(stream)) {
            // The legacy stream waits for every blocking one, which a capture cannot be waited for.
            for (auto& held : captures) {
                if (stream != legacy() || !under_way(held)) continue;
                auto capture = held.lock();
                for (Stream* other : capture->streams) {
                    if (other->flags & cudaStreamNonBlocking) continue;
                    capture->valid = false;
                    return fail(cudaErrorStreamCaptureImplicit, call, "the legacy stream is used");
                }
            }
        } else {
            Capture& capture = *stream->capture;
            if (!capture.valid)
                return fail(cudaErrorStreamCaptureInvalidated, call, "an earlier call broke it");
            auto node = std::make_unique<Node>(Node{type, name, stream->last, std::move(run)});
            stream->last = {node.get()};
            capture.graph->nodes.push_back(std::move(node));
            return cudaSuccess;
        }
    }
    if (run) run();
    return cudaSuccess;
}

}  // namespace emulated

using namespace emulated;

extern "C" {

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* out, unsigned flags, int priority) {
    auto* stream = new Stream;
    stream->device = current_device;
    stream->flags = flags;
    stream->priority = priority;
    Locked locked(lock);
    alive.insert(stream);
    return *out = (cudaStream_t)stream, cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* out) {
    return cudaStreamCreateWithPriority(out, cudaStreamDefault, 0);
}
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
    if (stream_of(handle)->capture)
        return fail(cudaErrorStreamCaptureUnsupported, "cudaStreamDestroy", "it is capturing");
    Locked locked(lock);
    alive.erase((Stream*)handle);  // its memory stays, so that no other gets its address
    return cudaSuccess;
}
cudaError_t cudaStreamGetPriority(cudaStream_t handle, int* out) {
    if (broken) return broken;
    return *out = stream_of(handle)->priority, cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    return *least = 0, *greatest = -5, cudaSuccess;
}

static cudaError_t settled(cudaStream_t handle, const char* call) {
    Locked locked(lock);
    if (broken) return broken;
    Stream* stream = stream_of(handle);
    if (!stream->capture) return cudaSuccess;
    stream->capture->valid = false;
    return fail(cudaErrorStreamCaptureUnsupported, call, "the stream is capturing");
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) { return settled(s, "cudaStreamSynchronize"); }
cudaError_t cudaStreamQuery(cudaStream_t s) { return settled(s, "cudaStreamQuery"); }
// Refused beside any capture on the device, whatever its mode and thread, and ends it.
cudaError_t cudaDeviceSynchronize() {
    Locked locked(lock);
    cudaError_t result = broken;
    for (auto& held : captures) {
        if (!under_way(held) || held.lock()->origin->device != current_device) continue;
        held.lock()->valid = false;
        result = fail(cudaErrorStreamCaptureUnsupported, "cudaDeviceSynchronize",
                      "a capture is under way on this device");
    }
    return result;
}

cudaError_t cudaStreamAddCallback(cudaStream_t handle, cudaStreamCallback_t call, void* data,
                                  unsigned) {
    if (cudaError_t refused = settled(handle, "cudaStreamAddCallback")) return refused;
    return call(handle, cudaSuccess, data), cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t call, void* data) {
    return queue(stream, "cudaLaunchHostFunc", cudaGraphNodeTypeHost, "host", [=] { call(data); });
}

// Events

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* out, unsigned flags) {
    auto* event = new Event;
    event->flags = flags;
    return *out = (cudaEvent_t)event, cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* out) { return cudaEventCreateWithFlags(out, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete (Event*)event, cudaSuccess; }

cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t on, unsigned) {
    Locked locked(lock);
    if (broken) return last_error = broken;
    auto* event = (Event*)handle;
    Stream* stream = stream_of(on);
    event->capture = stream->capture;
    event->last = stream->last;
    event->recorded = true;
    event->at_ms = now_ms();
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t on) {
    return cudaEventRecordWithFlags(event, on, 0);
}

static cudaError_t event_settled(cudaEvent_t handle, const char* call) {
    Locked locked(lock);
    if (broken) return last_error = broken;
    auto* event = (Event*)handle;
    if (!event->capture || event->capture->streams.empty()) return cudaSuccess;
    event->capture->valid = false;
    return fail(cudaErrorCapturedEvent, call, "the event belongs to a capture");
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) { return event_settled(e, "cudaEventSynchronize"); }
cudaError_t cudaEventQuery(cudaEvent_t e) { return event_settled(e, "cudaEventQuery"); }
cudaError_t cudaEventElapsedTime(float* out, cudaEvent_t from, cudaEvent_t to) {
    auto *a = (Event*)from, *b = (Event*)to;
    if (!a->recorded || !b->recorded)
        return fail(cudaErrorInvalidResourceHandle, "cudaEventElapsedTime", "not recorded");
    if ((a->flags | b->flags) & cudaEventDisableTiming)
        return fail(cudaErrorInvalidResourceHandle, "cudaEventElapsedTime", "timing is off");
    return *out = (float)(b->at_ms - a->at_ms), cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t waited, unsigned) {
    Locked locked(lock);
    auto* event = (Event*)waited;
    Stream* stream = stream_of(handle);
    if (!event->recorded) return cudaSuccess;
    bool live = event->capture && !event->capture->streams.empty();
    if (!live && !stream->capture) return cudaSuccess;
    if (stream->capture && !live) {
        stream->capture->valid = false;
        return fail(cudaErrorStreamCaptureIsolation, "cudaStreamWaitEvent",
                    "a capturing stream waits for an event from outside of the capture");
    }
    if (stream->capture && stream->capture != event->capture)
        return fail(cudaErrorStreamCaptureMerge, "cudaStreamWaitEvent", "two captures would merge");
    if (stream == legacy())
        return fail(cudaErrorStreamCaptureImplicit, "cudaStreamWaitEvent", "the legacy stream");
    stream->capture = event->capture;
    event->capture->streams.insert(stream);
    merge(stream->last, event->last);
    return cudaSuccess;
}

// Captures

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
    std::swap(*mode, thread_mode);
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
    Locked locked(lock);
    Stream* stream = stream_of(handle);
    if (stream == legacy())
        return fail(cudaErrorStreamCaptureUnsupported, "cudaStreamBeginCapture", "legacy stream");
    if (stream->capture)
        return fail(cudaErrorIllegalState, "cudaStreamBeginCapture", "it is capturing already");
    auto made = new Capture{next_capture++, new Graph, stream, mode, (unsigned long)pthread_self()};
    stream->capture = std::shared_ptr<Capture>(made);
    made->streams.insert(stream);
    stream->last.clear();
    captures.push_back(stream->capture);
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* out) {
    Locked locked(lock);
    auto capture = stream_of(handle)->capture;
    *out = nullptr;
    if (!capture) return fail(cudaErrorIllegalState, "cudaStreamEndCapture", "none is under way");
    if (capture->origin != stream_of(handle))
        return fail(cudaErrorStreamCaptureUnmatched, "cudaStreamEndCapture", "begun elsewhere");
    if (capture->mode != cudaStreamCaptureModeRelaxed &&
        capture->thread != (unsigned long)pthread_self())
        return fail(cudaErrorStreamCaptureWrongThread, "cudaStreamEndCapture", "another thread");
    bool joined = true;
    for (Stream* stream : capture->streams)
        for (Node* node : stream->last) joined &= covered(node, capture->origin->last);
    for (Stream* stream : capture->streams) {
        stream->last.clear();
        stream->capture.reset();
    }
    capture->streams.clear();
    if (!capture->valid)
        return fail(cudaErrorStreamCaptureInvalidated, "cudaStreamEndCapture", "it was broken");
    if (!joined) return fail(cudaErrorStreamCaptureUnjoined, "cudaStreamEndCapture", "not joined");
    return *out = (cudaGraph_t)capture->graph, cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* out) {
    return cudaStreamGetCaptureInfo(handle, out, nullptr, nullptr, nullptr, nullptr, nullptr);
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t* graph,
                                     const cudaGraphNode_t** nodes, const cudaGraphEdgeData** edges,
                                     size_t* count) {
    Locked locked(lock);
    Stream* stream = stream_of(handle);
    auto& capture = stream->capture;
    *status = !capture          ? cudaStreamCaptureStatusNone
              : capture->valid ? cudaStreamCaptureStatusActive
                               : cudaStreamCaptureStatusInvalidated;
    if (!capture) return cudaSuccess;
    if (id) *id = capture->id;
    if (graph) *graph = (cudaGraph_t)capture->graph;
    if (nodes) *nodes = (const cudaGraphNode_t*)stream->last.data();
    if (edges) *edges = nullptr;
    if (count) *count = stream->last.size();
    return cudaSuccess;
}

}  // extern "C"
