/* Calls one AOTInductor package: the whole call in C, without Python's lock.

   A package takes over the tensor handles that it is given, so each call needs new ones. From
   Python that would be one foreign call per tensor. */
#include <stddef.h>
#include <stdint.h>

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
};

static int32_t launched(const struct recreplay_call *call) {
  for (size_t i = 0; i < call->count; i++)
    if (call->clone(call->sources[i], &call->handles[i])) return -1;
  return call->run(call->container, call->handles, call->count, NULL, 0, NULL, NULL);
}

/* A builtin of Python's, as recreplay.runtime.builtin_call makes them. */
void *recreplay_launch(void *self, void *nothing) {
  (void)nothing;
  const struct recreplay_call *call = PyLong_AsVoidPtr(PyTuple_GetItem(self, 0));
  void *thread = PyEval_SaveThread();
  int32_t code = launched(call);
  PyEval_RestoreThread(thread);
  if (code)
    return PyErr_Format(PyExc_RuntimeError,
                        "segment %s failed (code %d); what it said is on stderr", call->name, code);
  return PyLong_FromLong(0);
}
