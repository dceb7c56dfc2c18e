// What the emulated CUDA runtime keeps: devices, streams, events, captures and graphs.
//
// Device memory is the host's. Work that is queued on a stream runs at once, which is one of the
// orders that streams allow; work that is captured becomes a node, and a launched graph runs its
// nodes in an order drawn anew each time from those that its edges allow. So a missing edge shows
// as a wrong answer, and a call that a capture forbids is refused as CUDA refuses it.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace emulated {

struct Node {
    cudaGraphNodeType type;
    std::string name;
    std::vector<Node*> before;
    std::function<void()> run;  // empty: a kernel that nobody gave a meaning to
};

struct Graph {
    std::vector<std::unique_ptr<Node>> nodes;
    int references = 1;  // the capture's, and one for each executable
};

struct Executable {
    Graph* graph;
    std::set<Node*> disabled;
};

struct Stream;

struct Capture {
    unsigned long long id;
    Graph* graph;
    Stream* origin;
    cudaStreamCaptureMode mode;
    unsigned long thread;
    bool valid = true;
    std::set<Stream*> streams;
};

struct Stream {
    int device = 0;
    unsigned flags = cudaStreamDefault;
    int priority = 0;
    std::shared_ptr<Capture> capture;  // null where none is under way
    std::vector<Node*> last;           // what the next captured node comes after
};

struct Event {
    unsigned flags = 0;
    double at_ms = 0;
    bool recorded = false;
    std::shared_ptr<Capture> capture;  // the one that it was recorded in, if any
    std::vector<Node*> last;
};

extern std::recursive_mutex lock;
extern thread_local int current_device;
extern thread_local cudaError_t last_error;
extern cudaError_t broken;  // a kernel failed: every later call says so, until the process ends

int device_count();
Stream* stream_of(cudaStream_t handle);
bool capturing(Stream* stream);

// Remember an error as the runtime does, say why on stderr, and return it.
cudaError_t fail(cudaError_t code, const char* call, const char* why);

// Success, or why a call that no capture of this thread allows is refused.
cudaError_t unsafe(const char* call);

// Queue work: run it now, or draw it as a node where the stream is capturing.
cudaError_t queue(cudaStream_t stream, const char* call, cudaGraphNodeType type,
                  const std::string& name, std::function<void()> run);

}  // namespace emulated

using Locked = std::lock_guard<std::recursive_mutex>;
