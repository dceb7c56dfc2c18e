/* What a replay is made of, each in one call from Python: an AOTInductor package on the CPU, or the
   graph of a bucket on CUDA. */
#include "lock.h"
#include "workspace.h"

extern void *PyTuple_GetItem(void *, ptrdiff_t);
extern void *PyLong_AsVoidPtr(void *);
extern void *PyLong_FromLongLong(long long);
extern void *PyErr_Format(void *, const char *, ...);
extern void *PyExc_RuntimeError;

typedef int32_t (*recreplay_clone)(void *, void **);
typedef int32_t (*recreplay_run)(void *, void **, size_t, void **, size_t, void *, void *);

/* A package takes over the tensor handles that it is given, so each call needs new ones. From
   Python that would be one foreign call per tensor. */
struct recreplay_call {
  recreplay_clone clone;
  recreplay_run run;
  void *container;
  void *workspace;
  void **sources; /* handles that stay ours */
  void **handles; /* room for as many */
  size_t count;
  const char *name; /* of the segment */
  struct lock lock;
};

static int64_t run_package(const void *job) {
  const struct recreplay_call *call = job;
  for (size_t i = 0; i < call->count; i++)
    if (call->clone(call->sources[i], &call->handles[i])) return -1;
  return call->run(call->container, call->handles, call->count, NULL, 0, call->workspace,
                   NULL);
}

/* Builtins of Python's, as recreplay.runtime.builtin_call makes them. */
void *recreplay_launch(void *self, void *nothing) {
  (void)nothing;
  struct recreplay_call *call = PyLong_AsVoidPtr(PyTuple_GetItem(self, 0));
  int code = (int)called(&call->lock, run_package, call);
  if (code)
    return PyErr_Format(PyExc_RuntimeError,
                        "segment %s failed (code %d); what it said is on stderr", call->name, code);
  return PyLong_FromLongLong(0);
}

/* Functions of CUDA's runtime, which give 0 or the number of an error. */
struct recreplay_replay {
  int (*launch)(void *, void *);  /* cudaGraphLaunch */
  int (*record)(void *, void *);  /* cudaEventRecord */
  int (*await_stream)(void *);    /* cudaStreamSynchronize */
  int (*await_event)(void *);     /* cudaEventSynchronize */
  void *graph;
  void *stream;
  void *event; /* waited for in place of the stream; NULL where there is none */
  struct lock lock;
};

/* An error of the stream sticks, and whoever asks next is told it as well. */
static int await(const struct recreplay_replay *replay) {
  if (replay->event == NULL) return replay->await_stream(replay->stream);
  int recorded = replay->record(replay->event, replay->stream);
  return recorded ? recorded : replay->await_event(replay->event);
}

static int64_t run_graph(const void *job) {
  const struct recreplay_replay *replay = job;
  int64_t launched = replay->launch(replay->graph, replay->stream);
  return launched << 16 | await(replay);
}

/* The error of the launch, times 65536, and that of the wait. */
void *recreplay_replay(void *self, void *nothing) {
  (void)nothing;
  struct recreplay_replay *replay = PyLong_AsVoidPtr(PyTuple_GetItem(self, 0));
  return PyLong_FromLongLong(called(&replay->lock, run_graph, replay));
}
