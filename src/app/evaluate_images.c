#include "evaluate_images.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "stablemoe/evaluate.h"
#include "stablemoe/json.h"
#include "stablemoe/plain_file.h"
#include "text_stream.h"

enum { DIGITS = 9 };

/* What rank 0 makes of the images. */
typedef struct viewer {
  const smoe_model *model;
  const smoe_images *images;
  smoe_split split;
  smoe_plain_file file;     /* zeroed: no table */
  int64_t *count, *correct; /* [classes] */
  int64_t *placed;          /* [classes] images whose deciding patch is known */
  int64_t *found;           /* [M, E + 1, classes] of these: the expert has it; last, any expert has */
} viewer;

static void begin(viewer *v, const smoe_app_model *m, smoe_split split) {
  const size_t classes = (size_t)m->task.images.n_classes;
  *v = (viewer){.model = m->model, .images = &m->task.images, .split = split};
  v->count = smoe_alloc(classes * sizeof *v->count);
  v->correct = smoe_alloc(classes * sizeof *v->correct);
  v->placed = smoe_alloc(classes * sizeof *v->placed);
  v->found = smoe_alloc((size_t)(m->model->n_moe * (m->model->params.n_experts + 1) + 1) * classes *
                        sizeof *v->found);
}

static void end(viewer *v) {
  smoe_free(v->count);
  smoe_free(v->correct);
  smoe_free(v->placed);
  smoe_free(v->found);
  smoe_plain_release(&v->file);
}

static smoe_status open_table(viewer *v, const char *table) {
  if (!table) return SMOE_OK;
  SMOE_TRY(smoe_plain_create(&v->file, table, 0));
  fputs("image\tclass\tpredicted\tnats\tplace", v->file.stream);
  for (int m = 0; m < v->model->n_moe; m++) fprintf(v->file.stream, "\tpatches%d", m);
  fputc('\n', v->file.stream);
  return SMOE_OK;
}

static bool takes(const smoe_evaluated *t, int m, int64_t row, int expert) {
  const int32_t *slot = t->expert + (m * t->stride + row) * t->n_slots;
  for (int s = 0; s < t->n_slots; s++)
    if (slot[s] >= 0 && slot[s] == expert) return true;
  return false;
}

static int64_t *found_of(const viewer *v, int m, int expert) {
  return v->found + ((int64_t)m * (v->model->params.n_experts + 1) + expert) * v->images->n_classes;
}

static void count_place(viewer *v, const smoe_evaluated *t, int64_t first, int32_t class, int32_t place) {
  const int n_experts = v->model->params.n_experts;
  v->placed[class]++;
  for (int m = 0; m < t->n_moe; m++) {
    bool any = false;
    for (int e = 0; e < n_experts; e++) {
      const bool has = takes(t, m, first + place, e);
      found_of(v, m, e)[class] += has;
      any |= has;
    }
    found_of(v, m, n_experts)[class] += any;
  }
}

/* Patches that each expert takes: "0,3;1,2" for two experts. */
static void print_patches(const viewer *v, const smoe_evaluated *t, int m, int64_t first) {
  FILE *out = v->file.stream;
  for (int e = 0; e < v->model->params.n_experts; e++) {
    bool any = false;
    if (e > 0) fputc(';', out);
    for (int p = 0; p < v->images->n_patches; p++)
      if (takes(t, m, first + p, e)) {
        fprintf(out, "%s%d", any ? "," : "", p);
        any = true;
      }
  }
}

static smoe_status see(void *context, const smoe_evaluated *t) {
  viewer *v = context;
  const int64_t patches = v->images->n_patches;
  for (int64_t row = 0; row < t->n; row += patches) {
    const int32_t class = t->target[row];
    const int64_t image = (t->first + row) / patches;
    if (class < 0) continue;
    v->count[class]++;
    v->correct[class] += t->predicted[row] == class;
    const int32_t place = v->images->split[v->split].place[image];
    if (place >= 0) count_place(v, t, row, class, place);
    if (!v->file.stream) continue;
    fprintf(v->file.stream, "%lld\t%d\t%d\t%.9g\t%d", (long long)image, class, t->predicted[row],
            t->loss[row], place);
    for (int m = 0; m < t->n_moe; m++) {
      fputc('\t', v->file.stream);
      print_patches(v, t, m, row);
    }
    fputc('\n', v->file.stream);
  }
  SMOE_CHECK(!v->file.stream || !ferror(v->file.stream), SMOE_ERR_IO, "cannot write '%s': %s", v->file.path,
             strerror(errno));
  return SMOE_OK;
}

static double share(int64_t part, int64_t all) {
  return all > 0 ? 100.0 * (double)part / (double)all : NAN;
}

static void print_text(const viewer *v, const smoe_evaluation *e, const char *name) {
  const char *line = v->images->class_names;
  int64_t placed = 0;
  printf("%s: accuracy %.2f %%, loss %.4f nats, over %.0f images\n", name, 100 * e->accuracy, e->loss,
         e->n_targets);
  for (int c = 0; c < v->images->n_classes; c++) {
    const int length = (int)strcspn(line, "\n");
    printf("  class %-12.*s %6lld images, accuracy %6.2f %%\n", length, line, (long long)v->count[c],
           share(v->correct[c], v->count[c]));
    line += length + 1;
    placed += v->placed[c];
  }
  if (placed == 0 || v->model->n_moe == 0) return;
  printf("  images whose deciding patch an expert takes, by class:\n");
  for (int m = 0; m < v->model->n_moe; m++)
    for (int x = 0; x <= v->model->params.n_experts; x++) {
      if (x < v->model->params.n_experts)
        printf("  moe%d expert %-3d", m, x);
      else
        printf("  moe%d any       ", m);
      for (int c = 0; c < v->images->n_classes; c++)
        printf(" %7.2f %%", share(found_of(v, m, x)[c], v->placed[c]));
      putchar('\n');
    }
}

static void print_json(const viewer *v, const smoe_evaluation *e, const char *name) {
  const int classes = v->images->n_classes;
  smoe_json json;
  smoe_json_begin(&json, stdout, 0);
  smoe_json_object(&json, NULL);
  smoe_json_text(&json, "split", name);
  smoe_json_real(&json, "accuracy", e->accuracy, DIGITS);
  smoe_json_real(&json, "loss", e->loss, DIGITS);
  smoe_json_fixed(&json, "images", e->n_targets, 0);
  smoe_json_array(&json, "classes");
  for (int c = 0; c < classes; c++) {
    smoe_json_object(&json, NULL);
    smoe_json_int(&json, "images", v->count[c]);
    smoe_json_int(&json, "correct", v->correct[c]);
    smoe_json_end(&json);
  }
  smoe_json_end(&json);
  smoe_json_array(&json, "found");
  for (int m = 0; m < v->model->n_moe; m++) {
    smoe_json_array(&json, NULL);
    for (int x = 0; x <= v->model->params.n_experts; x++) {
      smoe_json_array(&json, NULL);
      for (int c = 0; c < classes; c++)
        smoe_json_real(&json, NULL, share(found_of(v, m, x)[c], v->placed[c]) / 100, DIGITS);
      smoe_json_end(&json);
    }
    smoe_json_end(&json);
  }
  smoe_json_end(&json);
  smoe_json_end(&json);
  smoe_json_finish(&json);
}

static smoe_status finish(viewer *v, const smoe_evaluation *e, const char *name, bool json) {
  if (v->file.stream) {
    SMOE_TRY(smoe_plain_finish(&v->file));
    SMOE_TRY(smoe_plain_publish(&v->file));
  }
  (json ? print_json : print_text)(v, e, name);
  return smoe_output_flush(stdout);
}

static smoe_status evaluate(smoe_app_model *m, viewer *v, const char *name, int64_t limit, bool json,
                            const char *table) {
  smoe_evaluation e;
  SMOE_TRY_ALL(m->group, m->group->rank == 0 ? open_table(v, table) : SMOE_OK);
  SMOE_TRY(
      smoe_evaluate_each(m->model, &m->task, v->split, limit, m->meta.update, m->meta.stage, &e, see, v));
  return smoe_group_agree(m->group, m->group->rank == 0 ? finish(v, &e, name, json) : SMOE_OK);
}

smoe_status smoe_evaluate_images(smoe_app_model *m, smoe_split split, const char *name, int64_t limit,
                                 bool json, const char *table) {
  smoe_model_shape shape = {0};
  viewer v;
  SMOE_TRY_ALL(m->group, m->task.ops->shape(&m->task, &shape, false));
  SMOE_TRY(smoe_app_model_build(m, &shape));
  begin(&v, m, split);
  const smoe_status status = evaluate(m, &v, name, limit, json, table);
  end(&v);
  return status;
}
