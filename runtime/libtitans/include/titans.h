/* titans.h - run Titans bundles from C, or from anything that can call C.
 *
 * A model is what `titans export` wrote: graphs, weights and the table of states. A session is one stream: its memory
 * and its position. Nothing else holds state. The functions do what the Python runtime's methods of the same names do,
 * and saved sessions are the same files.
 *
 * Errors. A function that can fail returns a code, and writes the code and one line of text into `error`, which may be
 * NULL. The text says what was found and ends with what to do about it. No exception, signal or exit crosses this
 * border.
 *
 * Transactions. A call completes or changes nothing: after an error a session stands where it stood, and can be used.
 * A session that met numbers that are not finite is poisoned as well: it stands where it stood, and refuses to be fed
 * until it is reset or rewound.
 *
 * Threads. A model may be shared by threads. A session is used by one thread at a time; a call on a session that is in
 * use returns TITANS_BUSY and changes nothing. A session keeps its model alive, so the two may be closed in any order.
 *
 * Memory. A session allocates when it is opened, when it is saved, marked or forked, and while it meets a graph or a
 * combination of its blocks for the first time. After that, feeding single tokens allocates nothing and takes no lock
 * in this library. ONNX Runtime has its own memory.
 *
 * Text. This interface takes and gives token ids. A tokenizer belongs to the program: bundles name theirs.
 */
#ifndef TITANS_H
#define TITANS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define TITANS_API
#else
#define TITANS_API __attribute__((visibility("default")))
#endif

/* The version of this interface. Within one number it only grows: by functions, and at the end of structs with a size.
 */
#define TITANS_ABI 1

/* ------------------------------------------------------------------ errors */

typedef enum titans_code {
  TITANS_OK = 0,
  TITANS_INPUT = 1,      /* an argument that the model cannot take */
  TITANS_BUNDLE = 2,     /* a bundle that is missing, damaged or of a newer format */
  TITANS_PROVIDER = 3,   /* ONNX Runtime, or a provider of it, that cannot be used */
  TITANS_EXECUTION = 4,  /* a graph failed */
  TITANS_NON_FINITE = 5, /* a graph returned numbers that are not finite; the session is poisoned */
  TITANS_POISONED = 6,   /* the session met such numbers earlier */
  TITANS_BUSY = 7,       /* another thread uses the session */
  TITANS_STATE = 8,      /* a saved session that is missing, damaged, of a newer format or of another model */
  TITANS_MEMORY = 9,     /* there is not enough memory */
  TITANS_INTERNAL = 10   /* a fault of this library */
} titans_code;

typedef struct titans_error {
  titans_code code;
  char message[1020]; /* UTF-8, ends with NUL, cut where it is longer */
} titans_error;

/* TITANS_ABI of the library that is loaded, and the version of the package it belongs to. */
TITANS_API uint32_t titans_abi(void);
TITANS_API const char* titans_version(void);

/* ------------------------------------------------------------------ models */

typedef struct titans_model titans_model;
typedef struct titans_session titans_session;
typedef struct titans_mark titans_mark;
typedef struct titans_generator titans_generator;

/* How a model is loaded. Begin with titans_options_init. */
typedef struct titans_options {
  size_t size;             /* sizeof(titans_options) */
  const char* onnxruntime; /* ONNX Runtime's shared library, 1.24.1 or newer; NULL: libonnxruntime.so, by the loader */
  const char* kernels;     /* titans_kernels.so for the fused kernels; NULL: the portable graphs */
  const char* provider;    /* NULL or "cpu"; else as ONNX Runtime names it, such as "CUDA" or "WebGPU" */
  int32_t threads;         /* per graph; 0: one for each core that this process may use */
} titans_options;

TITANS_API void titans_options_init(titans_options* options);

/* Loads a bundle directory, checking every graph, and the hash of every file that is used. `options` may be NULL.
 *
 * The first load of a process opens ONNX Runtime; later ones must name the same library. It sets ORT_DISABLE_TELEMETRY
 * in the environment unless it is set. TITANS_BUNDLE, TITANS_PROVIDER, TITANS_INPUT, TITANS_MEMORY. */
TITANS_API titans_code titans_model_load(const char* bundle, const titans_options* options, titans_model** model,
                                         titans_error* error);

/* Closes a model; NULL does nothing. Its sessions stay usable. */
TITANS_API void titans_model_close(titans_model* model);

/* What a model is. Texts live as long as the model. */
typedef struct titans_model_info {
  size_t size; /* sizeof(titans_model_info), set by the caller */
  const char* name;
  const char* variant;
  const char* dtype;
  int64_t vocab_size;      /* ids are 0 .. vocab_size - 1; 0 for a model of vectors */
  int64_t features;        /* numbers of an input vector; 0 for a model of tokens */
  int64_t outputs;         /* numbers that come out for each token: logits or predictions */
  int64_t surprise_layers; /* memory layers that report surprise */
  int64_t chunk;           /* tokens of a chunk */
  int64_t state_bytes;     /* of one stream */
  int32_t fused;           /* whether the fused kernels run */
} titans_model_info;

TITANS_API titans_code titans_model_describe(const titans_model* model, titans_model_info* info, titans_error* error);

/* ------------------------------------------------------------------ sessions */

/* A stream at its beginning. TITANS_MEMORY, TITANS_BUNDLE. */
TITANS_API titans_code titans_session_open(titans_model* model, titans_session** session, titans_error* error);

/* Closes a session; NULL does nothing. It must not be in use. */
TITANS_API void titans_session_close(titans_session* session);

/* Where a feed puts what comes out. Zero it; any pointer may be NULL. */
typedef struct titans_outputs {
  float* last;           /* after the last token: `outputs` numbers */
  float* all;            /* after every token: count x `outputs` numbers */
  float* surprise;       /* of every token: count x `surprise_layers` numbers */
  size_t last_count;     /* floats that there is room for at `last`, */
  size_t all_count;      /* at `all` */
  size_t surprise_count; /* and at `surprise` */
} titans_outputs;

/* Consumes `count` >= 1 tokens. `outputs` may be NULL. After an error, what `outputs` points to is undefined.
 * TITANS_INPUT, TITANS_EXECUTION, TITANS_NON_FINITE, TITANS_POISONED, TITANS_BUSY. */
TITANS_API titans_code titans_session_feed(titans_session* session, const int64_t* ids, size_t count,
                                           const titans_outputs* outputs, titans_error* error);

/* The same for a model of vectors: `count` x `features` numbers. */
TITANS_API titans_code titans_session_feed_vectors(titans_session* session, const float* vectors, size_t count,
                                                   const titans_outputs* outputs, titans_error* error);

/* Tokens consumed since the beginning. Any thread may ask. */
TITANS_API int64_t titans_session_position(const titans_session* session);

/* Copies the outputs after the last token. TITANS_INPUT before the first one, or where there is too little room. */
TITANS_API titans_code titans_session_last(titans_session* session, float* to, size_t room, titans_error* error);

/* Starts afresh. Also a way out of a poisoned session. */
TITANS_API titans_code titans_session_reset(titans_session* session, titans_error* error);

/* Another session that stands where this one stands. It has a copy of the memory of its own. */
TITANS_API titans_code titans_session_fork(titans_session* session, titans_session** fork, titans_error* error);

/* A place to come back to. It holds a copy of the memory; free it. */
TITANS_API titans_code titans_session_mark(titans_session* session, titans_mark** mark, titans_error* error);

/* Goes back to a mark of any session of this model, exactly. The mark stays. A poisoned session is sound again. */
TITANS_API titans_code titans_session_rewind(titans_session* session, const titans_mark* mark, titans_error* error);
TITANS_API void titans_mark_free(titans_mark* mark);

/* ------------------------------------------------------------------ files */

/* Writes a file that titans_session_restore, and Python's Model.restore, read: all of the old file or all of the new
 * one. A file whose content this session, or one it was forked from, has neither read nor written is kept, unless
 * `force` is not 0. TITANS_STATE. */
TITANS_API titans_code titans_session_save(titans_session* session, const char* path, int32_t force,
                                           titans_error* error);

/* The same as bytes. `*data` is to be freed with titans_bytes_free. */
TITANS_API titans_code titans_session_to_bytes(titans_session* session, uint8_t** data, size_t* size,
                                               titans_error* error);
TITANS_API void titans_bytes_free(uint8_t* data);

/* A session that goes on where a saved one stood. TITANS_STATE, TITANS_MEMORY. */
TITANS_API titans_code titans_session_restore(titans_model* model, const char* path, titans_session** session,
                                              titans_error* error);
TITANS_API titans_code titans_session_restore_bytes(titans_model* model, const uint8_t* data, size_t size,
                                                    titans_session** session, titans_error* error);

/* ------------------------------------------------------------------ generation */

typedef enum titans_ended {
  TITANS_GOING_ON = 0,
  TITANS_EOS = 1,   /* at an id that ends a text of this model */
  TITANS_STOP = 2,  /* at a stop id */
  TITANS_LENGTH = 3 /* after max_new_tokens */
} titans_ended;

/* How tokens are chosen, in this order: repetition penalty, temperature, top-k, top-p, min-p, draw. Begin with
 * titans_sampling_init, which sets what the model wants where the caller does not say. */
typedef struct titans_sampling {
  size_t size;               /* sizeof(titans_sampling) */
  double temperature;        /* divides the logits; 0: the most likely token, ties to the lowest id */
  double top_p;              /* the likeliest tokens that make up this probability; 1: all */
  double min_p;              /* at least this fraction of the likeliest token's probability; 0: all */
  double repetition_penalty; /* of tokens already seen; 1: none */
  int64_t top_k;             /* the k likeliest; 0: all */
  int64_t seed;              /* of the draws, as in Python; -1: other draws every time */
  int64_t max_new_tokens;
  const int64_t* stop_ids; /* ids that end a text besides the model's own */
  size_t stop_count;
  int32_t ignore_eos; /* not 0: the model's own ids do not end it */
} titans_sampling;

TITANS_API titans_code titans_sampling_init(const titans_model* model, titans_sampling* sampling, titans_error* error);

/* Begins to continue a prompt of `count` ids; NULL and 0 go on from where the session is. `sampling` may be NULL. The
 * prompt is fed when the first token is asked for. The session must stay open until the generator is closed. */
TITANS_API titans_code titans_generator_open(titans_session* session, const int64_t* prompt, size_t count,
                                             const titans_sampling* sampling, titans_generator** generator,
                                             titans_error* error);

/* The next token, which the session has then consumed. `*ended` says whether it was the last one, and why. Where no
 * token is left `*token` is -1. After an error the session stands after the last call that completed. */
TITANS_API titans_code titans_generator_next(titans_generator* generator, int64_t* token, titans_ended* ended,
                                             titans_error* error);
TITANS_API void titans_generator_close(titans_generator* generator);

/* All of it in one call: up to `room` tokens into `tokens`, their number into `*made`, also after an error. */
TITANS_API titans_code titans_session_generate(titans_session* session, const int64_t* prompt, size_t count,
                                               const titans_sampling* sampling, int64_t* tokens, size_t room,
                                               size_t* made, titans_ended* ended, titans_error* error);

#ifdef __cplusplus
}
#endif
#endif
