/* Fills the staging memory of one bucket in one call: checks the arrays of a request, copies their
   rows, pads with the first row, and looks for ids outside of their tables. Ids of 64 bits are taken
   for an input of 32 where all of them fit.

   Arrays and dtypes are read as numpy lays them out (PyArrayObject_fields and PyArray_Descr of
   ndarraytypes.h, the same in numpy 1 and 2). Whoever loads this library proves by
   `recreplay_reads` and `recreplay_same_dtype` that it is so in his process. Tensors of torch are
   read by the function of torch's own that DLPack's exchange table names. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Bytes. Fewer are copied within 0.1 ms, while who lets go of the lock may wait 5 ms for it. */
#define UNLOCKED_FROM 1048576

struct dtype {
  ptrdiff_t references;
  void *type;
  void *scalar;
  char kind;
  char letter;
  char order;
  char flags;
  int32_t number;
};

struct array {
  ptrdiff_t references;
  void *type;
  char *data;
  int dimensions;
  ptrdiff_t *shape;
  ptrdiff_t *strides;
  void *base;
  const struct dtype *dtype;
};

/* DLTensor of dlpack.h, version 1. */
struct tensor {
  char *data;
  int32_t device; /* its kind */
  int32_t device_number;
  int32_t dimensions;
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
  const int64_t *shape;
  const int64_t *strides; /* in elements */
  uint64_t offset;
};

enum { ON_CPU = 1, INTEGER = 0, FLOAT = 2 }; /* kDLCPU, kDLInt, kDLFloat */

/* What an array or a tensor says of itself. */
struct view {
  const char *data;
  int dimensions;
  const ptrdiff_t *shape;
  const ptrdiff_t *strides;
  ptrdiff_t unit; /* bytes that strides count */
  int wide; /* whether ids are twice as wide as they are staged */
};

/* Where the rows of an input are. */
struct rows {
  const char *first;
  ptrdiff_t step;
  int wide;
};

struct input {
  char *staged;
  const struct dtype *dtype;
  const ptrdiff_t *row; /* the shape of one row */
  size_t row_bytes;
  uint64_t least; /* of ids */
  uint64_t limit; /* ids must be less than this above `least`, and ids that are narrowed even where
                     `id_bytes` is 0 */
  int32_t row_dimensions;
  int32_t id_bytes; /* 4 or 8; 0 where ids are not checked, or elsewhere */
  uint8_t code; /* the dtype as DLPack has it */
  uint8_t bits;
  uint8_t narrows; /* whether ids of 64 bits are taken, of which those in range fit */
};

struct recreplay_fill {
  void *type; /* numpy.ndarray */
  void *tensor; /* torch.Tensor; NULL where torch has no exchange table */
  int (*read)(void *, struct tensor *);
  void *is_negative; /* torch.Tensor.is_neg */
  void *no; /* False */
  const struct dtype *wide; /* int64 */
  size_t rows; /* of a request */
  size_t size; /* of the bucket */
  size_t row_bytes; /* of all inputs */
  size_t count;
  const struct input *inputs;
  struct rows *values; /* room for `count`; where a request was written in place, what it was
                          written to */
};

enum { FILLED, OTHER_ARRAYS, BAD_IDS }; /* both of the last: OTHER_ARRAYS */

#include "fill_rows.h"
#include "crew.h"

extern void *PyTuple_GetItem(void *, ptrdiff_t); /* Python's stable ABI */
extern ptrdiff_t PyTuple_Size(void *);
extern void *PyLong_AsVoidPtr(void *);
extern void *PyLong_FromLong(long);
extern void *PyObject_CallFunctionObjArgs(void *, ...);
extern void Py_DecRef(void *);
extern void PyErr_Clear(void);
extern void *PyEval_SaveThread(void);
extern void PyEval_RestoreThread(void *);

int32_t recreplay_reads(const struct array *array, const void *type, const void *data,
                        int32_t dimensions, const ptrdiff_t *shape, const void *dtype) {
  if (array->type != type || array->data != data || array->dimensions != dimensions) return 0;
  for (int i = 0; i < dimensions; i++)
    if (array->shape[i] != shape[i]) return 0;
  return array->dtype == dtype;
}

/* The same object, or one like it: what was pickled has dtypes of its own. */
int32_t recreplay_same_dtype(const struct dtype *a, const struct dtype *b) {
  return a == b || (a->type == b->type && a->scalar == b->scalar && a->kind == b->kind &&
                    a->letter == b->letter && a->order == b->order && a->number == b->number);
}

/* The kind of an object: the second word of all of them. */
static const void *type_of(const void *object) { return ((const struct array *)object)->type; }

/* Where an array says that its rows are. After a replay all of it has to come from memory, and
   each array would wait for its own in turn: with what is written fetched as well, 26 features of
   128 ids take 6.6 us so and 10.4 else. */
static void fetch_array(const void *object, const struct recreplay_fill *fill) {
  if (type_of(object) != fill->type) return;
  __builtin_prefetch(((const struct array *)object)->shape, 0, 2);
  __builtin_prefetch(((const struct array *)object)->data, 0, 2);
}

/* Torch negates the imaginary part of a conjugate when it is read, and not what DLPack shows. */
static int is_negative(void *object, const struct recreplay_fill *fill) {
  void *answer = PyObject_CallFunctionObjArgs(fill->is_negative, object, NULL);
  if (answer == NULL) PyErr_Clear();
  else Py_DecRef(answer);
  return answer != fill->no;
}

static int view_of_tensor(void *object, const struct input *input,
                          const struct recreplay_fill *fill, struct view *view) {
  struct tensor tensor;
  if (fill->read(object, &tensor) != 0) {
    PyErr_Clear(); /* of what has no memory of its own, or none here */
    return 0;
  }
  if (tensor.device != ON_CPU || tensor.lanes != 1 || tensor.strides == NULL) return 0;
  int empty = tensor.dimensions == 1 && tensor.shape[0] == 0;
  if (tensor.data == NULL && !empty) return 0;
  int wide = input->narrows && tensor.code == INTEGER && tensor.bits == 64;
  if (!wide && (tensor.code != input->code || tensor.bits != input->bits)) return 0;
  if (tensor.code == FLOAT && is_negative(object, fill)) return 0;
  _Static_assert(sizeof(ptrdiff_t) == sizeof(int64_t), "strides are read as ptrdiff_t");
  *view = (struct view){tensor.data + tensor.offset, tensor.dimensions,
                        (const ptrdiff_t *)tensor.shape, (const ptrdiff_t *)tensor.strides,
                        tensor.bits / 8, wide};
  return 1;
}

static int view_of(void *object, const struct input *input, const struct recreplay_fill *fill,
                   struct view *view) {
  if (type_of(object) == fill->tensor) return view_of_tensor(object, input, fill, view);
  const struct array *array = object;
  if (array->type != fill->type) return 0;
  int same = recreplay_same_dtype(array->dtype, input->dtype);
  int wide = !same && input->narrows && recreplay_same_dtype(array->dtype, fill->wide);
  if (!same && !wide) return 0;
  *view = (struct view){array->data, array->dimensions, array->shape, array->strides, 1, wide};
  return 1;
}

static int fits(const struct view *view, const struct input *input, size_t rows) {
  if (view->dimensions != input->row_dimensions + 1 || view->shape[0] != (ptrdiff_t)rows) return 0;
  ptrdiff_t step = (ptrdiff_t)input->row_bytes << view->wide;
  for (int i = 0; i < input->row_dimensions; i++) {
    if (view->shape[i + 1] != input->row[i]) return 0;
    step /= input->row[i] ? input->row[i] : 1;
    if (input->row[i] > 1 && view->strides[i + 1] * view->unit != step) return 0;
  }
  return 1;
}

/* A share of all inputs, by rows of the bucket. */
static int fill_share(const void *job, size_t at, size_t count) {
  const struct recreplay_fill *fill = job;
  size_t from = fill->size * at / count, to = fill->size * (at + 1) / count;
  int found = FILLED;
  for (size_t i = 0; i < fill->count; i++)
    if (fill_rows(&fill->values[i], &fill->inputs[i], fill->rows, from, to))
      found |= fill->values[i].wide ? OTHER_ARRAYS : BAD_IDS;
  return found;
}

/* Without the interpreter lock, where much is copied. */
static int do_unlocked(share_of work, const void *job, size_t bytes) {
  if (bytes < UNLOCKED_FROM) return work(job, 0, 1);
  void *thread = PyEval_SaveThread();
  int found = do_job(work, job, bytes);
  PyEval_RestoreThread(thread);
  return found;
}

static int32_t filled(const struct recreplay_fill *fill) {
  int found = do_unlocked(fill_share, fill, fill->size * fill->row_bytes);
  return found & OTHER_ARRAYS ? OTHER_ARRAYS : found;
}

/* `values`: a tuple of arrays and tensors, which keeps them. Nothing is copied before all of them
   have proved right. */
static int32_t fill_with(void *values, const struct recreplay_fill *fill) {
  if (PyTuple_Size(values) != (ptrdiff_t)fill->count) return OTHER_ARRAYS;
  for (size_t i = 0; i < fill->count; i++) fetch_array(PyTuple_GetItem(values, (ptrdiff_t)i), fill);
  for (size_t i = 0; i < fill->count; i++) {
    struct view view;
    void *value = PyTuple_GetItem(values, (ptrdiff_t)i);
    if (!view_of(value, &fill->inputs[i], fill, &view)) return OTHER_ARRAYS;
    if (!fits(&view, &fill->inputs[i], fill->rows)) return OTHER_ARRAYS;
    size_t bytes = fill->rows * fill->inputs[i].row_bytes << view.wide;
    fetch(view.data, bytes < BLOCK ? bytes : BLOCK);
    fetch_to_write(fill->inputs[i].staged, fill->rows * fill->inputs[i].row_bytes);
    fill->values[i] = (struct rows){view.data, view.strides[0] * view.unit, view.wide};
  }
  return filled(fill);
}

/* The same for a request that was written into the staging memory, or into memory beside it where
   ids are staged narrower. */
static int32_t fill_in_place(const struct recreplay_fill *fill) {
  for (size_t i = 0; i < fill->count; i++) {
    const struct rows *value = &fill->values[i];
    if (value->first == fill->inputs[i].staged) continue;
    size_t bytes = fill->rows * fill->inputs[i].row_bytes;
    fetch(value->first, bytes << value->wide < BLOCK ? bytes << value->wide : BLOCK);
    fetch_to_write(fill->inputs[i].staged, bytes);
  }
  return filled(fill);
}

/* Builtins of Python's, as recreplay.runtime.builtin_call makes them. */
static const struct recreplay_fill *bound(void *self) {
  return PyLong_AsVoidPtr(PyTuple_GetItem(self, 0));
}

void *recreplay_fill(void *self, void *values) {
  return PyLong_FromLong(fill_with(values, bound(self)));
}

void *recreplay_in_place(void *self, void *nothing) {
  (void)nothing;
  return PyLong_FromLong(fill_in_place(bound(self)));
}

#include "fill_mixed.h"
