/* Calls one AOTInductor package: the whole call in C, so that Python can let go of its lock.

   A package takes over the tensor handles that it is given, so each call needs new ones. From
   Python that would be one foreign call per tensor. */
#include <stddef.h>
#include <stdint.h>

typedef int32_t (*recreplay_clone)(void *, void **);
typedef int32_t (*recreplay_run)(void *, void **, size_t, void **, size_t, void *, void *);

struct recreplay_call {
  recreplay_clone clone;
  recreplay_run run;
  void *container;
  void **sources; /* handles that stay ours */
  void **handles; /* room for as many */
  size_t count;
};

int32_t recreplay_launch(const struct recreplay_call *call) {
  for (size_t i = 0; i < call->count; i++)
    if (call->clone(call->sources[i], &call->handles[i])) return -1;
  return call->run(call->container, call->handles, call->count, NULL, 0, NULL, NULL);
}
