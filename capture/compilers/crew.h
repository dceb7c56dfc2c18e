/* Threads that help whoever fills a large request: one core copies less than a link to a device
   carries. A library has one crew, and who finds it busy goes alone. Included by fill.c. */
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#define MOST_HELPERS 15
/* Bytes. One helper makes 293 to 355 us of 375 to 390 there; at half of it, it gained and lost. */
#define SHARED_FROM 2097152
#define SHARE 131072 /* bytes */

/* Does share `at` of `count` of a job, none of which waits for another. */
typedef int (*share_of)(const void *job, size_t at, size_t count);

static struct crew {
  pthread_mutex_t lock; /* of all but `taken` and `found`, which are atomic */
  pthread_cond_t called;
  pthread_cond_t left;
  share_of work; /* NULL where all shares are taken */
  const void *job;
  size_t shares;
  size_t taken;  /* and beyond `shares`, in the end */
  int found;     /* by all shares */
  int busy;      /* whether a job is under way */
  size_t inside; /* helpers that are at it */
  size_t era;    /* helpers of an earlier one end */
  size_t users;  /* who opened it and has not closed it */
  pid_t process; /* that the threads are of: a fork leaves them behind */
  size_t wanted;
  size_t helpers; /* of them, those that there are */
  pthread_t threads[MOST_HELPERS];
} crew;

/* A fork may have left the lock taken, too. */
static int is_of_this_process(void) { return crew.process == getpid(); }

static void take_shares(share_of work, const void *job, size_t shares) {
  int found = 0;
  size_t at;
  while ((at = __atomic_fetch_add(&crew.taken, 1, __ATOMIC_RELAXED)) < shares)
    found |= work(job, at, shares);
  __atomic_fetch_or(&crew.found, found, __ATOMIC_RELAXED);
}

static void *help(void *era) {
  pthread_mutex_lock(&crew.lock);
  while (crew.era == (size_t)era) {
    if (crew.work == NULL) {
      pthread_cond_wait(&crew.called, &crew.lock);
      continue;
    }
    share_of work = crew.work;
    const void *job = crew.job;
    size_t shares = crew.shares;
    crew.inside++; /* until it is none again there is no other job */
    pthread_mutex_unlock(&crew.lock);
    take_shares(work, job, shares);
    pthread_mutex_lock(&crew.lock);
    crew.work = NULL;
    if (--crew.inside == 0) pthread_cond_signal(&crew.left);
  }
  pthread_mutex_unlock(&crew.lock);
  return NULL;
}

/* As many helpers as are wanted, or as the system gives. */
static void call_helpers(void) {
  sigset_t all, before;
  sigfillset(&all); /* signals are for threads that know what to do */
  pthread_sigmask(SIG_BLOCK, &all, &before);
  while (crew.helpers < crew.wanted &&
         pthread_create(&crew.threads[crew.helpers], NULL, help, (void *)crew.era) == 0)
    crew.helpers++;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Whether there is somebody to help. */
static int begin_job(share_of work, const void *job, size_t shares) {
  pthread_mutex_lock(&crew.lock);
  if (!crew.busy && crew.helpers < crew.wanted) call_helpers();
  int begun = !crew.busy && crew.helpers > 0;
  if (begun) {
    crew.work = work;
    crew.job = job;
    crew.shares = shares;
    crew.taken = 0;
    crew.found = 0;
    crew.busy = 1;
    pthread_cond_broadcast(&crew.called);
  }
  pthread_mutex_unlock(&crew.lock);
  return begun;
}

static int end_job(void) {
  pthread_mutex_lock(&crew.lock);
  crew.work = NULL;
  while (crew.inside > 0) pthread_cond_wait(&crew.left, &crew.lock);
  int found = crew.found;
  crew.busy = 0;
  pthread_mutex_unlock(&crew.lock);
  return found;
}

/* Does a job that copies so many bytes. Returns what its shares found, or-ed. */
static int do_job(share_of work, const void *job, size_t bytes) {
  size_t shares = bytes / SHARE;
  if (bytes < SHARED_FROM || !is_of_this_process() || !begin_job(work, job, shares))
    return work(job, 0, 1);
  take_shares(work, job, shares);
  return end_job();
}

/* Lets jobs have so many helpers, who begin with the first job. Called by one thread at a time. */
void recreplay_open_crew(size_t helpers) {
  if (!is_of_this_process()) {
    crew = (struct crew){.lock = PTHREAD_MUTEX_INITIALIZER,
                         .called = PTHREAD_COND_INITIALIZER,
                         .left = PTHREAD_COND_INITIALIZER,
                         .process = getpid()};
  }
  pthread_mutex_lock(&crew.lock);
  crew.users++;
  if (helpers > MOST_HELPERS) helpers = MOST_HELPERS;
  if (helpers > crew.wanted) crew.wanted = helpers;
  pthread_mutex_unlock(&crew.lock);
}

/* The last who closes it waits for all helpers to end: their code may be unloaded next. */
void recreplay_close_crew(void) {
  pthread_t threads[MOST_HELPERS];
  if (!is_of_this_process()) return;
  pthread_mutex_lock(&crew.lock);
  int last = --crew.users == 0;
  size_t helpers = last ? crew.helpers : 0;
  if (last) {
    memcpy(threads, crew.threads, sizeof threads);
    crew.wanted = crew.helpers = 0;
    crew.era++;
    pthread_cond_broadcast(&crew.called);
  }
  pthread_mutex_unlock(&crew.lock);
  for (size_t i = 0; i < helpers; i++) pthread_join(threads[i], NULL);
}
