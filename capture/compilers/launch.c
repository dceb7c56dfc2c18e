/* Calls one AOTInductor package: the whole call in C, without Python's lock where it takes long.

   A package takes over the tensor handles that it is given, so each call needs new ones. From
   Python that would be one foreign call per tensor. */
#include <stddef.h>
#include <stdint.h>
#include <time.h>

/* Who lets go of the lock stands in line for it afterwards, and a wake-up takes as long as a short
   segment: with one of 10 us, two threads answer 51,000 requests a second that keep it and 33,000
   that let go; with one of 15 us, as many. Nanoseconds. */
#define SHORT 12000

extern void *PyTuple_GetItem(void *, ptrdiff_t); /* Python's stable ABI */
extern void *PyLong_AsVoidPtr(void *);
extern void *PyLong_FromLong(long);
extern void *PyErr_Format(void *, const char *, ...);
extern void *PyExc_RuntimeError;
extern void *PyEval_SaveThread(void);
extern void PyEval_RestoreThread(void *);

typedef int32_t (*recreplay_clone)(void *, void **);
typedef int32_t (*recreplay_run)(void *, void **, size_t, void **, size_t, void *, void *);

struct recreplay_call {
  recreplay_clone clone;
  recreplay_run run;
  void *container;
  void **sources; /* handles that stay ours */
  void **handles; /* room for as many */
  size_t count;
  const char *name; /* of the segment */
  int64_t usual; /* nanoseconds; of one call, on the average of the last ones */
};

static int32_t launched(const struct recreplay_call *call) {
  for (size_t i = 0; i < call->count; i++)
    if (call->clone(call->sources[i], &call->handles[i])) return -1;
  return call->run(call->container, call->handles, call->count, NULL, 0, NULL, NULL);
}

static int64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static int32_t timed(struct recreplay_call *call) {
  int64_t begun = now();
  int32_t code = launched(call);
  int64_t spent = now() - begun;
  if (spent > 2 * SHORT) spent = 2 * SHORT; /* it may have been interrupted */
  call->usual += (spent - call->usual) / 8;
  return code;
}

/* A builtin of Python's, as recreplay.runtime.builtin_call makes them. */
void *recreplay_launch(void *self, void *nothing) {
  (void)nothing;
  struct recreplay_call *call = PyLong_AsVoidPtr(PyTuple_GetItem(self, 0));
  void *thread = call->usual < SHORT ? NULL : PyEval_SaveThread();
  int32_t code = timed(call);
  if (thread != NULL) PyEval_RestoreThread(thread);
  if (code)
    return PyErr_Format(PyExc_RuntimeError,
                        "segment %s failed (code %d); what it said is on stderr", call->name, code);
  return PyLong_FromLong(0);
}
