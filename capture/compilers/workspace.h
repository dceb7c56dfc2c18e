/* Memory that a lane keeps for what its packages make and drop in a replay. Included by launch.c.

   The system's allocator gives pages of some MB back when the last buffer of a replay is dropped,
   and gets them anew, one fault each, in the next. A model with 15 MB of them (DIFM, 20 features,
   128 rows) replays in 4,300 us so and in 1,000 us out of this.

   One region, taken from its beginning, so that what was written last is read again. What does not
   fit is the system's, and the region grows by that when nothing is taken: the replays that a
   runtime proves itself with leave it as large as it has to be. One thread at a time. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ALIGNED 64 /* bytes, as the next two */
#define PAGE 4096
#define HUGE_PAGE 2097152

struct range {
  char *at;
  int64_t bytes;
};

struct workspace {
  /* What packages call (lent_buffers.h), so these come first. */
  void *(*take)(struct workspace *, int64_t);
  void (*give)(void *, void *);
  char *region;
  int64_t room;
  struct range *taken; /* of the region, in its order */
  int64_t count, most;
  int64_t packed; /* of them lie side by side from the beginning on */
  int64_t outside, lacking; /* bytes that did not fit: now, and at most since it grew */
};

static int64_t rounded(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }

/* Where `bytes` fit into the region first, before the range `*place`. */
static char *gap(const struct workspace *space, int64_t bytes, int64_t *place) {
  int64_t i = space->packed;
  char *from = i == 0 ? space->region : space->taken[i - 1].at + space->taken[i - 1].bytes;
  for (; i < space->count; i++) {
    if (space->taken[i].at - from >= bytes) {
      *place = i;
      return from;
    }
    from = space->taken[i].at + space->taken[i].bytes;
  }
  *place = space->count;
  return space->room - (from - space->region) >= bytes ? from : NULL;
}

static int has_place(struct workspace *space) {
  if (space->count < space->most) return 1;
  struct range *more = realloc(space->taken, 2 * (size_t)(space->most + 8) * sizeof *more);
  if (more == NULL) return 0;
  space->taken = more;
  space->most = 2 * (space->most + 8);
  return 1;
}

/* What is taken from the system has its size in front. */
static void *from_system(struct workspace *space, int64_t bytes) {
  char *at = aligned_alloc(ALIGNED, (size_t)(bytes + ALIGNED));
  if (at == NULL) return NULL;
  memcpy(at, &bytes, sizeof bytes);
  space->outside += bytes;
  if (space->outside > space->lacking) space->lacking = space->outside;
  return at + ALIGNED;
}

/* NULL where there is no memory. */
static void *take(struct workspace *space, int64_t bytes) {
  int64_t place;
  bytes = rounded(bytes + 1, ALIGNED); /* so that no two begin at one address */
  char *at = has_place(space) ? gap(space, bytes, &place) : NULL;
  if (at == NULL) return from_system(space, bytes);
  struct range *next = space->taken + place;
  memmove(next + 1, next, (size_t)(space->count++ - place) * sizeof *next);
  *next = (struct range){at, bytes};
  if (place == space->packed) space->packed++;
  return at;
}

static void grow(struct workspace *space) {
  int64_t room = space->room + space->lacking, page = room < HUGE_PAGE ? PAGE : HUGE_PAGE;
  room = rounded(room, page);
  free(space->region);
  space->region = aligned_alloc((size_t)page, (size_t)room);
  space->room = space->region == NULL ? 0 : room;
  space->lacking = 0;
  if (space->region != NULL && page > PAGE) madvise(space->region, (size_t)room, MADV_HUGEPAGE);
}

static void give(void *data, void *from) {
  struct workspace *space = from;
  int64_t i = space->count;
  while (i > 0 && space->taken[i - 1].at != data) i--;
  if (i > 0) {
    struct range *given = space->taken + i - 1;
    memmove(given, given + 1, (size_t)(space->count-- - i) * sizeof *given);
    if (space->packed >= i) space->packed = i - 1;
  } else {
    char *at = (char *)data - ALIGNED;
    int64_t bytes;
    memcpy(&bytes, at, sizeof bytes);
    free(at);
    space->outside -= bytes;
  }
  if (space->lacking && space->count == 0 && space->outside == 0) grow(space);
}

struct workspace *recreplay_workspace(void) {
  struct workspace *space = calloc(1, sizeof *space);
  if (space != NULL) *space = (struct workspace){.take = take, .give = give};
  return space;
}

void recreplay_drop_workspace(struct workspace *space) {
  free(space->region);
  free(space->taken);
  free(space);
}
