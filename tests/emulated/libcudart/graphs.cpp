// Graphs: read back, made executable, and launched in a drawn order.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>

#include "state.h"

using namespace emulated;

namespace {

void drop(Graph* graph) {
    if (--graph->references == 0) delete graph;
}

// Nodes in an order that their edges allow, drawn at random.
std::vector<Node*> drawn_order(const Graph& graph) {
    static const char* seed = getenv("EMULATED_SEED");
    static std::mt19937 draw(seed ? atoi(seed) : 1);
    std::map<Node*, size_t> waiting;
    std::map<Node*, std::vector<Node*>> after;
    std::vector<Node*> ready, order;
    for (auto& node : graph.nodes) {
        waiting[node.get()] = node->before.size();
        for (Node* before : node->before) after[before].push_back(node.get());
        if (node->before.empty()) ready.push_back(node.get());
    }
    while (!ready.empty()) {
        std::swap(ready[draw() % ready.size()], ready.back());
        Node* node = ready.back();
        ready.pop_back();
        order.push_back(node);
        for (Node* next : after[node])
            if (--waiting[next] == 0) ready.push_back(next);
    }
    return order;
}

template <typename Handle>
cudaError_t give(const std::vector<Node*>& found, Handle* out, size_t* count) {
    if (out) std::copy_n((Handle*)found.data(), std::min(*count, found.size()), out);
    *count = found.size();
    return cudaSuccess;
}

}  // namespace

extern "C" {

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    Locked locked(lock);
    return drop((Graph*)graph), cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* out, cudaGraph_t graph,
                                          unsigned long long) {
    Locked locked(lock);
    if (cudaError_t refused = unsafe("cudaGraphInstantiateWithFlags")) return refused;
    ((Graph*)graph)->references++;
    return *out = (cudaGraphExec_t) new Executable{(Graph*)graph, {}}, cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t handle) {
    Locked locked(lock);
    auto* executable = (Executable*)handle;
    drop(executable->graph);
    return delete executable, cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }

cudaError_t cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t on) {
    if (broken) return broken;
    auto* executable = (Executable*)handle;
    std::vector<Node*> order;
    {
        Locked locked(lock);
        Stream* stream = stream_of(on);
        if (stream->device != current_device)
            return fail(cudaErrorInvalidResourceHandle, "cudaGraphLaunch", "another device");
        if (stream->capture)
            return fail(cudaErrorNotSupported, "cudaGraphLaunch", "no graphs inside of graphs");
        order = drawn_order(*executable->graph);
    }
    for (Node* node : order)
        if (node->run && !broken && !executable->disabled.count(node)) node->run();
    return cudaSuccess;
}

cudaError_t cudaGraphNodeSetEnabled(cudaGraphExec_t handle, cudaGraphNode_t node, unsigned on) {
    Locked locked(lock);
    auto type = ((Node*)node)->type;
    if (type != cudaGraphNodeTypeKernel && type != cudaGraphNodeTypeMemcpy &&
        type != cudaGraphNodeTypeMemset)
        return fail(cudaErrorInvalidValue, "cudaGraphNodeSetEnabled", "not for such a node");
    auto& disabled = ((Executable*)handle)->disabled;
    on ? (void)disabled.erase((Node*)node) : (void)disabled.insert((Node*)node);
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* out, size_t* count) {
    Locked locked(lock);
    std::vector<Node*> found;
    for (auto& node : ((Graph*)graph)->nodes) found.push_back(node.get());
    return give(found, out, count);
}
cudaError_t cudaGraphGetRootNodes(cudaGraph_t graph, cudaGraphNode_t* out, size_t* count) {
    Locked locked(lock);
    std::vector<Node*> found;
    for (auto& node : ((Graph*)graph)->nodes)
        if (node->before.empty()) found.push_back(node.get());
    return give(found, out, count);
}
cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t node, cudaGraphNode_t* out,
                                         cudaGraphEdgeData*, size_t* count) {
    return give(((Node*)node)->before, out, count);
}
cudaError_t cudaGraphGetEdges(cudaGraph_t graph, cudaGraphNode_t* from, cudaGraphNode_t* to,
                              cudaGraphEdgeData*, size_t* count) {
    Locked locked(lock);
    size_t found = 0;
    for (auto& node : ((Graph*)graph)->nodes)
        for (Node* before : node->before) {
            if (from && found < *count) {
                from[found] = (cudaGraphNode_t)before;
                to[found] = (cudaGraphNode_t)node.get();
            }
            ++found;
        }
    return *count = found, cudaSuccess;
}
cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* out) {
    return *out = ((Node*)node)->type, cudaSuccess;
}
cudaError_t cudaGraphDebugDotPrint(cudaGraph_t graph, const char* path, unsigned) {
    FILE* file = fopen(path, "w");
    if (!file) return fail(cudaErrorOperatingSystem, "cudaGraphDebugDotPrint", path);
    fprintf(file, "digraph {\n");
    for (auto& node : ((Graph*)graph)->nodes) {
        fprintf(file, "\"%p\" [label=\"%s\"];\n", (void*)node.get(), node->name.c_str());
        for (Node* before : node->before)
            fprintf(file, "\"%p\" -> \"%p\";\n", (void*)before, (void*)node.get());
    }
    fprintf(file, "}\n");
    return fclose(file), cudaSuccess;
}

// The name that the emulator gave a node: CUDA itself has functions and not names.
const char* emulated_node_name(cudaGraphNode_t node) { return ((Node*)node)->name.c_str(); }

// A kernel of ours: `call(argument)` now, or when the graph is launched that is being captured.
cudaError_t emulated_kernel(cudaStream_t stream, const char* name, int (*call)(size_t),
                            size_t argument) {
    auto run = [=] {
        if (call(argument)) broken = cudaErrorAssert;
    };
    return queue(stream, name, cudaGraphNodeTypeKernel, name, run);
}

}  // extern "C"
