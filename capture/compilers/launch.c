/* Calls one AOTInductor package: the whole call in C, without Python's lock unless that costs more.

   A package takes over the tensor handles that it is given, so each call needs new ones. From
   Python that would be one foreign call per tensor. */
#include <stddef.h>
#include <stdint.h>
#include <time.h>

/* Who lets go of the lock stands in line for it afterwards: for a wake-up, and behind threads that
   run Python, each of which may keep it for 5 ms. Calls keep it where that takes much longer than
   they do. Measured on two cores with two threads, letting go and keeping give the same where the
   wait is about three times the call. */
#define SHORT 1000000  /* nanoseconds; longer calls always let go */
#define PATIENCE 3     /* times the call */
#define SURPRISE 10000 /* nanoseconds by which a call may pass four times the average */
#define MEASURED 8     /* calls, of which one reads the clock where nothing is waited for: 0.1 us */
#define LOOK_AGAIN 256 /* calls, of which one lets go, to see what that costs now */

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
  int64_t spent;  /* nanoseconds that a call takes, */
  int64_t waited; /* and that the lock does afterwards, on the average of the last calls */
  int64_t calls;
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

/* What is out of line, say of a thread that was interrupted, counts as `most`. */
static void count(int64_t *average, int64_t found, int64_t most) {
  *average += ((found < most ? found : most) - *average) / 8;
}

static int keeps_lock(const struct recreplay_call *call) {
  return call->spent < SHORT && call->waited > PATIENCE * call->spent &&
         call->calls % LOOK_AGAIN != 0;
}

static int32_t called(struct recreplay_call *call) {
  int measures = call->waited > call->spent || call->calls % MEASURED == 0;
  void *thread = keeps_lock(call) ? NULL : PyEval_SaveThread();
  int64_t begun = measures ? now() : 0;
  int32_t code = launched(call);
  int64_t ended = measures ? now() : 0;
  if (measures) count(&call->spent, ended - begun, 4 * call->spent + SURPRISE);
  if (thread != NULL) {
    PyEval_RestoreThread(thread);
    if (measures) count(&call->waited, now() - ended, 4 * PATIENCE * call->spent);
  }
  call->calls++;
  return code;
}

/* A builtin of Python's, as recreplay.runtime.builtin_call makes them. */
void *recreplay_launch(void *self, void *nothing) {
  (void)nothing;
  struct recreplay_call *call = PyLong_AsVoidPtr(PyTuple_GetItem(self, 0));
  int32_t code = called(call);
  if (code)
    return PyErr_Format(PyExc_RuntimeError,
                        "segment %s failed (code %d); what it said is on stderr", call->name, code);
  return PyLong_FromLong(0);
}
