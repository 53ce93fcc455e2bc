/* Denoises a picture by non-local means, as examples/cpp does and says: each pixel becomes the mean
 * of all pixels, weighed by how alike the patches around them are. This program does it from C: by
 * `dense`, by `tree`, and again by the plan that `tree` made, out of a file. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "smyrf/c/smyrf.h"

enum { SIDE = 96, ROWS = SIDE * SIDE, PATCH = 7, DEPTH = PATCH * PATCH + 1 };

static const double noise_size = 0.1;

static void need(smyrf_status status, const char* what) {
  if (status == SMYRF_OK) return;
  fprintf(stderr, "%s: %s\n", what, smyrf_last_error());
  exit(1);
}

/* The sum of twelve uniform numbers is close to a normal one, whose deviation is 1. */
static double normal(void) {
  static uint32_t state = 1;
  double sum = -6.0;
  int i;
  for (i = 0; i < 12; ++i) {
    state = state * 1664525U + 1013904223U;
    sum += (double)(state >> 8) / 16777216.0;
  }
  return sum;
}

static int clamp(int i) { return i < 0 ? 0 : i >= SIDE ? SIDE - 1 : i; }

/* The patch p around each pixel, as a query (p, 1) or as a key (p, -|p|^2 / 2): the inner product
 * is a distance, up to what softmax drops. */
static void patches(const float* pixels, int keys, float* rows) {
  int x, y, i;
  for (y = 0; y < SIDE; ++y) {
    for (x = 0; x < SIDE; ++x) {
      float squares = 0.0F;
      for (i = 0; i < PATCH * PATCH; ++i) {
        const int row = clamp(y + i / PATCH - PATCH / 2);
        const int column = clamp(x + i % PATCH - PATCH / 2);
        *rows = pixels[row * SIDE + column];
        squares += *rows * *rows;
        ++rows;
      }
      *rows++ = keys ? -squares / 2 : 1.0F;
    }
  }
}

/* |a - b| / |b| */
static double relative_error(const float* a, const float* b) {
  double difference = 0.0, norm = 0.0;
  int i;
  for (i = 0; i < ROWS; ++i) {
    difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    norm += (double)b[i] * b[i];
  }
  return sqrt(difference / norm);
}

static float clean[ROWS], noisy[ROWS], exact[ROWS], approximate[ROWS], again[ROWS];
static float queries[ROWS * DEPTH], keys[ROWS * DEPTH];

int main(void) {
  int i;
  for (i = 0; i < ROWS; ++i) {
    const int x = i % SIDE, y = i / SIDE;
    const double rings = cos(0.003 * (double)(x * x + y * y));
    clean[i] = (float)((x / 16 + y / 16) % 2 == 0 ? 0.5 + 0.3 * rings : 0.5 - 0.2 * rings);
    noisy[i] = clean[i] + (float)(noise_size * normal());
  }
  patches(noisy, 0, queries);
  patches(noisy, 1, keys);

  /* One batch, one head; the values are the pixels themselves, of depth 1. */
  const smyrf_tensor query = smyrf_rows(queries, SMYRF_FLOAT32, 1, 1, ROWS, DEPTH);
  const smyrf_tensor key = smyrf_rows(keys, SMYRF_FLOAT32, 1, 1, ROWS, DEPTH);
  const smyrf_tensor value = smyrf_rows(noisy, SMYRF_FLOAT32, 1, 1, ROWS, 1);
  const double scale = 5.0 / (PATCH * PATCH * noise_size * noise_size);
  const double tolerance = 0.05;
  smyrf_call call = {.struct_size = sizeof call,
                     .query = &query,
                     .key = &key,
                     .value = &value,
                     .method = "dense",
                     .scale = &scale};
  smyrf_tensor out = smyrf_rows(exact, SMYRF_FLOAT32, 1, 1, ROWS, 1);
  smyrf_outputs outputs = {.struct_size = sizeof outputs, .out = &out};
  need(smyrf_attention(&call, &outputs), "dense");
  printf("smyrf %s: %d pixels, off the clean picture by %.1f %%, then by %.1f %%\n",
         smyrf_version(), ROWS, 100 * relative_error(noisy, clean),
         100 * relative_error(exact, clean));

  smyrf_plan* plan = NULL;
  smyrf_statistics* statistics = NULL;
  smyrf_head head = {.struct_size = sizeof head};
  need(smyrf_statistics_create(&statistics), "statistics");
  call.method = "tree";
  call.tolerance = &tolerance;
  out.data = approximate;
  outputs.statistics = statistics;
  outputs.plan = &plan;
  need(smyrf_attention(&call, &outputs), "tree");
  need(smyrf_statistics_head(statistics, 0, 0, &head), "head");
  printf("tree: off dense's by %.1f %%, evaluated %.0f %% of the pairs\n",
         100 * relative_error(approximate, exact), 100 * head.density);
  smyrf_statistics_free(statistics);

  need(smyrf_plan_save(plan, "picture.plan"), "save");
  smyrf_plan_free(plan);
  need(smyrf_plan_load("picture.plan", &plan), "load");
  remove("picture.plan");
  call.method = NULL; /* the plan's */
  call.tolerance = NULL;
  call.plan = plan;
  out.data = again;
  outputs.statistics = NULL;
  outputs.plan = NULL;
  need(smyrf_attention(&call, &outputs), "plan");
  smyrf_plan_free(plan);
  const int same = memcmp(approximate, again, sizeof approximate) == 0;
  printf("by the saved plan: %s\n", same ? "the same bits" : "other bits");
  return same && relative_error(approximate, exact) < 2 * tolerance ? 0 : 1;
}
