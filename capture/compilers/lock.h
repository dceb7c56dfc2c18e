/* Python's lock around a call: let go of, unless it costs more to have it back. Included by
   launch.c.

   Who lets go of the lock stands in line for it afterwards: for a wake-up, and behind threads that
   run Python, each of which may keep it for 5 ms. Calls keep it where that takes much longer than
   they do. Measured on two cores with two threads, letting go and keeping give the same where the
   wait is about three times the call. */
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define SHORT 1000000  /* nanoseconds; longer calls always let go */
#define PATIENCE 3     /* times the call */
#define SURPRISE 10000 /* nanoseconds by which a call may pass four times the average */
#define MEASURED 8     /* calls, of which one reads the clock where nothing is waited for: 0.1 us */
#define LOOK_AGAIN 256 /* calls, of which one lets go, to see what that costs now */

extern void *PyEval_SaveThread(void); /* Python's stable ABI */
extern void PyEval_RestoreThread(void *);

/* Nanoseconds on the average of the last calls. */
struct lock {
  int64_t spent; /* by a call, */
  int64_t waited; /* and for the lock afterwards */
  int64_t calls;
};

static int64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* What is out of line, say of a thread that was interrupted, counts as `most`. */
static void count(int64_t *average, int64_t found, int64_t most) {
  *average += ((found < most ? found : most) - *average) / 8;
}

static int keeps_lock(const struct lock *lock) {
  return lock->spent < SHORT && lock->waited > PATIENCE * lock->spent &&
         lock->calls % LOOK_AGAIN != 0;
}

/* What `work` says of `job`. */
static int64_t called(struct lock *lock, int64_t (*work)(const void *), const void *job) {
  int measures = lock->waited > lock->spent || lock->calls % MEASURED == 0;
  void *thread = keeps_lock(lock) ? NULL : PyEval_SaveThread();
  int64_t begun = measures ? now() : 0;
  int64_t said = work(job);
  int64_t ended = measures ? now() : 0;
  if (measures) count(&lock->spent, ended - begun, 4 * lock->spent + SURPRISE);
  if (thread != NULL) {
    PyEval_RestoreThread(thread);
    if (measures) count(&lock->waited, now() - ended, 4 * PATIENCE * lock->spent);
  }
  lock->calls++;
  return said;
}
