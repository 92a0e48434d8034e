/* Continues a text with a byte-level model: continue BUNDLE LIBONNXRUNTIME TEXT [STATE].
 *
 * With STATE, the session goes on where the file says, and is saved there afterwards. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <titans.h>

static void check(titans_code code, const titans_error* error) {
  if (code == TITANS_OK) return;
  fprintf(stderr, "error: %s\n", error->message);
  exit(1);
}

int main(int count, char** words) {
  titans_error error;
  titans_options options;
  titans_model* model = NULL;
  titans_session* session = NULL;
  titans_generator* generator = NULL;
  titans_sampling sampling;
  const char* state = count > 4 ? words[4] : NULL;
  FILE* saved = NULL;
  if (count < 4) {
    fprintf(stderr, "usage: %s BUNDLE LIBONNXRUNTIME TEXT [STATE]\n", words[0]);
    return 2;
  }
  titans_options_init(&options);
  options.onnxruntime = words[2];
  check(titans_model_load(words[1], &options, &model, &error), &error);

  if (state) saved = fopen(state, "rb");
  if (saved) {
    fclose(saved);
    check(titans_session_restore(model, state, &session, &error), &error);
  } else {
    check(titans_session_open(model, &session, &error), &error);
  }

  size_t length = strlen(words[3]);
  int64_t* ids = malloc((length ? length : 1) * sizeof *ids);
  if (!ids) return 1;
  for (size_t i = 0; i < length; ++i) ids[i] = (unsigned char)words[3][i];
  check(titans_sampling_init(model, &sampling, &error), &error);
  sampling.temperature = 0;
  sampling.max_new_tokens = 32;
  check(titans_generator_open(session, ids, length, &sampling, &generator, &error), &error);
  for (;;) {
    int64_t token = -1;
    titans_ended ended = TITANS_GOING_ON;
    check(titans_generator_next(generator, &token, &ended, &error), &error);
    if (token >= 0) putchar((int)token);
    if (ended != TITANS_GOING_ON) break;
  }
  putchar('\n');
  titans_generator_close(generator);
  free(ids);

  if (state) check(titans_session_save(session, state, 0, &error), &error);
  titans_session_close(session);
  titans_model_close(model);
  return 0;
}
