/* smyrf from C (C99 and later; C++ programs may use it too). docs/c.md shows how.
 *
 * - Every struct begins with its size: set struct_size to its sizeof. Fields of 0 are defaults, so
 *   `smyrf_call call = {.struct_size = sizeof call}` has nothing else set yet. Structs only grow at
 *   their end: a program compiled with an older header works with a newer library. A struct that
 *   is larger than the library's is refused.
 * - Pointers say what is optional: where a field is a pointer, NULL means "not given".
 * - Functions that return smyrf_status say there what went wrong, and smyrf_last_error says it in a
 *   sentence. Where they return SMYRF_ERROR_VALUE, _TYPE or _UNSUPPORTED, nothing has been written.
 * - Handles (plan, workspace, statistics) are made by the library and given back to its _free.
 *   A plan never changes, so threads may share it; the others serve one call at a time.
 */
/* clang-tidy's rules are for C++. NOLINTBEGIN */
#ifndef SMYRF_C_SMYRF_H_
#define SMYRF_C_SMYRF_H_

#include <stddef.h>
#include <stdint.h>

#include "smyrf/version.h"

#if defined(__GNUC__)
#define SMYRF_C_API __attribute__((visibility("default")))
#else
#define SMYRF_C_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum smyrf_status {
  SMYRF_OK = 0,
  SMYRF_ERROR_VALUE = 1,       /* right type, wrong content: shapes that disagree, a null pointer */
  SMYRF_ERROR_TYPE = 2,        /* wrong dtype or rank */
  SMYRF_ERROR_UNSUPPORTED = 3, /* a combination that the method does not take */
  SMYRF_ERROR_NO_MEMORY = 4,   /* outputs are not complete */
  SMYRF_ERROR_INTERNAL = 5     /* a thread pool failed, or the library did; not complete either */
} smyrf_status;

/* What the last failed call of this thread has to say, "" if none has failed. The text is the
 * thread's own, and stays until another call of this thread fails or the thread ends. */
SMYRF_C_API const char* smyrf_last_error(void);

/* The library's version, "0.2.0": SMYRF_VERSION_STRING is the header's. */
SMYRF_C_API const char* smyrf_version(void);
/* Names and one line each of the methods: index 0, 1, ... until NULL. */
SMYRF_C_API const char* smyrf_method_name(size_t index);
SMYRF_C_API const char* smyrf_method_summary(size_t index);
/* The instruction sets that this machine and build can run, best first, until NULL. */
SMYRF_C_API const char* smyrf_instruction_set(size_t index);
/* Restricts calls to one of them; NULL: the best. Not while another thread computes. */
SMYRF_C_API smyrf_status smyrf_force_instruction_set(const char* name);

enum { SMYRF_FLOAT32 = 0, SMYRF_FLOAT16 = 1, SMYRF_BFLOAT16 = 2, SMYRF_BOOL = 3 };

/* A view of the program's memory, of at most 4 dimensions. Strides count elements, and may be 0
 * (broadcast) or negative; the last of query, key, value and outputs is 1. A bool is one byte, zero
 * or not. The library writes to tensors that are outputs and to no others. */
typedef struct smyrf_tensor {
  size_t struct_size;
  void* data;
  int32_t dtype; /* SMYRF_FLOAT32, ... */
  int32_t rank;
  int64_t shape[4];
  int64_t strides[4];
} smyrf_tensor;

typedef struct smyrf_plan smyrf_plan;
typedef struct smyrf_workspace smyrf_workspace;
typedef struct smyrf_statistics smyrf_statistics;

/* The program's threads. Callbacks do not longjmp out of a call. */
typedef struct smyrf_thread_pool {
  size_t struct_size;
  void* user; /* handed to both callbacks */
  /* Threads that a call with num_threads = 0 asks for, the caller's among them. */
  int32_t (*size)(void* user);
  /* Calls work(argument) on the caller's thread and side by side on others, on at most `threads` in
   * all, and returns when every call of work has returned: no later call may follow. Fewer threads
   * are only slower. Returns 0; another number ends the call with SMYRF_ERROR_INTERNAL. */
  int32_t (*run)(void* user, int32_t threads, void (*work)(void* argument), void* argument);
} smyrf_thread_pool;

/* softmax(scale q k^T + masks) v. B batch, Hq and Hkv heads, Nq and Nk rows, D and Dv depths up to
 * 2048. All masks combine by AND. */
typedef struct smyrf_call {
  size_t struct_size;
  /* (B, Hq, Nq, D), (B, Hkv, Nk, D), (B, Hkv, Nk, Dv): float32, float16 or bfloat16. key and value
   * have one dtype, query may have another; gradients need one for all. */
  const smyrf_tensor* query;
  const smyrf_tensor* key;
  const smyrf_tensor* value;
  const smyrf_tensor* attn_mask; /* bool (not 0 takes part) or additive, to (B, Hq, Nq, Nk) */
  const smyrf_tensor* key_padding_mask;   /* bool (B, Nk), not 0 is valid */
  const smyrf_tensor* query_padding_mask; /* bool (B, Nq), not 0 is valid */
  const char* method;                     /* "dense", "lsh", "tree"; NULL: "auto" */
  /* To carry out; its method, dials, padding, causality, window and positions apply. */
  const smyrf_plan* plan;
  int32_t is_causal;           /* 1: a query sees no key at a later position than its own */
  int32_t enable_gqa;          /* 1: keys may have fewer heads, query head h uses h / (Hq / Hkv) */
  const int64_t* window;       /* {left, right} around a query's position; -1: no bound there */
  const int64_t* positions;    /* {of query 0, of key 0}; NULL: the last query is at the last key */
  const double* scale;         /* NULL: 1 / sqrt(D) */
  const int64_t* n_hashes;     /* of `lsh`, NULL: 8 */
  const int64_t* cluster_size; /* of `lsh`, NULL: 32 */
  const double* tolerance;     /* of `tree`: relative error to aim for, NULL: 0.05 */
  const double* max_density;   /* of `tree`: most pairs over all pairs, NULL: no limit */
  const char* precision;       /* of products: "float32", "int16", "int8"; NULL: "auto" */
  double dropout_p;            /* `dense` and `lsh` */
  uint64_t seed;
  int64_t num_threads;                  /* 0: the pool's size */
  const smyrf_thread_pool* thread_pool; /* NULL: the library's */
  smyrf_workspace* workspace;           /* NULL: each thread's own memory */
} smyrf_call;

typedef struct smyrf_outputs {
  size_t struct_size;
  const smyrf_tensor* out;      /* (B, Hq, Nq, Dv), dtype of the query */
  const smyrf_tensor* lse;      /* contiguous float32 (B, Hq, Nq), natural log */
  smyrf_statistics* statistics; /* becomes what the call did */
  smyrf_plan** plan; /* becomes a new handle of the plan carried out; NULL where the call fails */
} smyrf_outputs;

/* A query that may see no key gives 0, and lse -infinity. */
SMYRF_C_API smyrf_status smyrf_attention(const smyrf_call* call, const smyrf_outputs* outputs);

typedef struct smyrf_backward {
  size_t struct_size;
  const smyrf_tensor* out; /* what smyrf_attention gave for the same call, with lse */
  const smyrf_tensor* lse;
  const smyrf_tensor* grad_out;
  const smyrf_tensor* grad_lse; /* contiguous float32 (B, Hq, Nq); NULL: lse was not used */
  /* Outputs, of the shapes and the dtype of query, key and value. */
  const smyrf_tensor* grad_query;
  const smyrf_tensor* grad_key;
  const smyrf_tensor* grad_value;
} smyrf_backward;

/* Pass the plan that smyrf_attention kept in call->plan: else it is made again. */
SMYRF_C_API smyrf_status smyrf_attention_backward(const smyrf_call* call,
                                                  const smyrf_backward* backward);

/* What `tree` would do, without doing it: SMYRF_ERROR_UNSUPPORTED for `lsh`. call->plan is NULL. */
SMYRF_C_API smyrf_status smyrf_estimate(const smyrf_call* call, smyrf_statistics* statistics);

/* (out, lse) becomes the attention over its own keys and those of (other_out, other_lse). Not for
 * `lsh`. thread_pool may be NULL. */
SMYRF_C_API smyrf_status smyrf_merge(const smyrf_tensor* out, const smyrf_tensor* lse,
                                     const smyrf_tensor* other_out, const smyrf_tensor* other_lse,
                                     int64_t num_threads, const smyrf_thread_pool* thread_pool);

/* --- Plans ------------------------------------------------------------------------------------ */

typedef struct smyrf_plan_info {
  size_t struct_size;
  const char* method;    /* never "auto"; lives as long as the library */
  const char* reason;    /* why this method; lives as long as the plan */
  const char* precision; /* of products; "auto": what the tolerance allows */
  int64_t batch;
  int64_t query_heads;
  int64_t key_heads;
  int64_t queries;
  int64_t keys;
  int64_t depth;
  int32_t is_causal;
  int32_t has_attn_mask; /* 1: a call must pass it */
  int32_t has_window;    /* 0: window means nothing, and so on */
  int32_t has_positions;
  int32_t has_max_density;
  int32_t has_scale; /* 0: the plan serves any */
  int64_t window[2];
  int64_t positions[2];
  int64_t n_hashes; /* dials that the method does not have are 0 */
  int64_t cluster_size;
  double tolerance;
  double max_density;
  double scale;
  uint64_t seed;
} smyrf_plan_info;

/* The plan that smyrf_attention would carry out. Without call->value, `auto` plans dense;
 * call->plan is NULL. *plan becomes a new handle, or NULL where it fails, as in the functions
 * below. */
SMYRF_C_API smyrf_status smyrf_make_plan(const smyrf_call* call, smyrf_plan** plan);
SMYRF_C_API smyrf_status smyrf_plan_get_info(const smyrf_plan* plan, smyrf_plan_info* info);
/* Evaluated pairs over allowed pairs. */
SMYRF_C_API smyrf_status smyrf_plan_density(const smyrf_plan* plan, int64_t batch_index,
                                            int64_t query_head, double* density);
/* The file appears whole or not at all. A damaged one, or one of another version, is refused. */
SMYRF_C_API smyrf_status smyrf_plan_save(const smyrf_plan* plan, const char* path);
SMYRF_C_API smyrf_status smyrf_plan_load(const char* path, smyrf_plan** plan);
/* The same bytes into memory. *size is that of the buffer, and becomes that of the plan: with a
 * NULL buffer that is all; a buffer that is too small is refused. */
SMYRF_C_API smyrf_status smyrf_plan_to_bytes(const smyrf_plan* plan, void* buffer, size_t* size);
SMYRF_C_API smyrf_status smyrf_plan_from_bytes(const void* bytes, size_t size, smyrf_plan** plan);
SMYRF_C_API void smyrf_plan_free(smyrf_plan* plan);

/* --- Statistics ------------------------------------------------------------------------------- */

/* Its texts live until the next call that fills the statistics, or their end. */
typedef struct smyrf_summary {
  size_t struct_size;
  const char* method; /* that was taken */
  const char* reason;
  const char* instruction_set;
  int64_t batch;
  int64_t query_heads;
  double planning_seconds; /* 0 where a plan was passed in */
  double execution_seconds;
} smyrf_summary;

typedef struct smyrf_head {
  size_t struct_size;
  double density;          /* evaluated pairs over allowed pairs */
  double seconds;          /* of all threads, added up */
  double planning_seconds; /* `tree` */
  const char* precision;   /* of products, never "auto"; lives as long as the library */
  double expected_error;   /* relative error of out, of summaries and of narrow products */
  double expected_lse_error;
  double expected_work; /* `tree`: time over that of `dense` */
  int32_t dense;        /* 1: done as `dense` */
  int32_t non_finite;   /* 1: NaN or infinite rows, so the head's output is NaN */
} smyrf_head;

SMYRF_C_API smyrf_status smyrf_statistics_create(smyrf_statistics** statistics);
SMYRF_C_API smyrf_status smyrf_statistics_summary(const smyrf_statistics* statistics,
                                                  smyrf_summary* summary);
SMYRF_C_API smyrf_status smyrf_statistics_head(const smyrf_statistics* statistics,
                                               int64_t batch_index, int64_t query_head,
                                               smyrf_head* head);
SMYRF_C_API void smyrf_statistics_free(smyrf_statistics* statistics);

/* --- Working memory --------------------------------------------------------------------------- */

/* Grows to what the largest of its calls needed. It serves one call at a time: a second one gets
 * SMYRF_ERROR_VALUE. */
SMYRF_C_API smyrf_status smyrf_workspace_create(smyrf_workspace** workspace);
SMYRF_C_API smyrf_status smyrf_workspace_bytes(const smyrf_workspace* workspace, int64_t* bytes);
SMYRF_C_API smyrf_status smyrf_workspace_clear(smyrf_workspace* workspace); /* releases it all */
SMYRF_C_API void smyrf_workspace_free(smyrf_workspace* workspace); /* not while a call uses it */

/* --- Contiguous tensors ----------------------------------------------------------------------- */

/* A view of `rank` dimensions, at most 4. Sizes that are too large for memory wrap around here,
 * and the calls refuse them. */
static inline smyrf_tensor smyrf_contiguous(const void* data, int32_t dtype, int32_t rank,
                                            const int64_t* shape) {
  smyrf_tensor tensor = {sizeof(smyrf_tensor), 0, 0, 0, {0, 0, 0, 0}, {0, 0, 0, 0}};
  uint64_t stride = 1;
  int32_t i;
  tensor.data = (void*)(uintptr_t)data;
  tensor.dtype = dtype;
  tensor.rank = rank;
  if (rank > 4) return tensor; /* which every call refuses */
  for (i = rank - 1; i >= 0; --i) {
    tensor.shape[i] = shape[i];
    tensor.strides[i] = (int64_t)stride;
    stride *= (uint64_t)shape[i];
  }
  return tensor;
}

/* Rows of query, key, value, out or gradients: (batch, heads, n, depth). */
static inline smyrf_tensor smyrf_rows(const void* data, int32_t dtype, int64_t batch, int64_t heads,
                                      int64_t n, int64_t depth) {
  int64_t shape[4];
  shape[0] = batch;
  shape[1] = heads;
  shape[2] = n;
  shape[3] = depth;
  return smyrf_contiguous(data, dtype, 4, shape);
}

/* float32 (batch, heads, n): an lse. */
static inline smyrf_tensor smyrf_lse(const float* data, int64_t batch, int64_t heads, int64_t n) {
  int64_t shape[3];
  shape[0] = batch;
  shape[1] = heads;
  shape[2] = n;
  return smyrf_contiguous(data, SMYRF_FLOAT32, 3, shape);
}

/* bool (batch, n), not 0 is valid: a padding mask. */
static inline smyrf_tensor smyrf_padding(const unsigned char* data, int64_t batch, int64_t n) {
  int64_t shape[2];
  shape[0] = batch;
  shape[1] = n;
  return smyrf_contiguous(data, SMYRF_BOOL, 2, shape);
}

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif
/* NOLINTEND */
