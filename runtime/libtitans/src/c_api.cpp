// The border: handles, checks of pointers, and exceptions that become codes. Nothing is thrown beyond this file.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

#include "error.h"
#include "files.h"
#include "generator.h"
#include "numbers.h"
#include "state_file.h"
#include "titans.h"

#ifndef TITANS_VERSION
#define TITANS_VERSION "0.0.0"
#endif

struct titans_model {
  std::shared_ptr<titans::Model> it;
};
struct titans_session {
  titans::Session it;
};
struct titans_mark {
  titans::Mark it;
};
struct titans_generator {
  titans_session* session;
  titans::Generator it;
};

namespace {

using titans::Error;
using titans::text;

titans_code say(titans_error* error, titans_code code, const char* message) noexcept {
  if (!error) return code;
  error->code = code;
  std::snprintf(error->message, sizeof error->message, "%s", message);
  return code;
}

// Runs a call, and makes a code of whatever it throws.
template <class Run>
titans_code guarded(titans_error* error, const Run& run) noexcept {
  try {
    run();
    return say(error, TITANS_OK, "");
  } catch (const Error& thrown) {
    return say(error, thrown.code, thrown.what());
  } catch (const std::bad_alloc&) {
    return say(error, TITANS_MEMORY, "there is not enough memory; free some, or use fewer sessions");
  } catch (const std::length_error&) {
    return say(error, TITANS_MEMORY, "more memory is asked for than there can be; use smaller numbers");
  } catch (const std::exception& thrown) {
    return say(error, TITANS_INTERNAL, text("a fault of libtitans (", thrown.what(), "); please report it").c_str());
  } catch (...) {
    return say(error, TITANS_INTERNAL, "a fault of libtitans; please report it");
  }
}

template <class T>
T* needed(T* pointer, const char* name) {
  if (!pointer) titans::input_error(text(name, " is null"), "pass a pointer to one");
  return pointer;
}

// One thread at a time: who comes second is told so, and changes nothing.
class Use {
 public:
  explicit Use(titans_session* session) : session_(needed(session, "session")->it) {
    if (session_.busy.exchange(true, std::memory_order_acquire))
      throw Error(TITANS_BUSY, "another thread is using this session", "wait for it, or fork the session");
  }
  ~Use() { session_.busy.store(false, std::memory_order_release); }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;
  titans::Session* operator->() const { return &session_; }
  titans::Session& operator*() const { return session_; }

 private:
  titans::Session& session_;
};

void check_size(std::size_t found, std::size_t wanted, const char* name) {
  if (found != wanted)
    titans::input_error(text(name, ".size is ", found, ", not ", wanted),
                        "initialise it, and compile with the header of the library that is loaded");
}

void check_room(const void* pointer, std::size_t room, std::int64_t count, std::int64_t width, const char* name) {
  const std::int64_t wanted = titans::times(count, width);
  if (pointer && static_cast<std::uint64_t>(wanted) > room)
    titans::input_error(text("outputs.", name, " has room for ", room, " numbers, and ", wanted, " come out"),
                        "make it larger, or set it to null");
}

titans_code feed(titans_session* session, const std::int64_t* ids, const float* vectors, std::size_t count,
                 const titans_outputs* wanted, bool of_vectors, titans_error* error) {
  return guarded(error, [&] {
    const Use use(session);
    const titans::Manifest& manifest = use->model().manifest();
    if (of_vectors != manifest.vectors)
      titans::input_error(text("this is a model of ", manifest.vectors ? "vectors" : "tokens"),
                          manifest.vectors ? "call titans_session_feed_vectors" : "call titans_session_feed");
    if (count == 0 || count > static_cast<std::size_t>(INT32_MAX))
      titans::input_error(text("there are ", count, " tokens to feed"), "pass at least one, and at most 2147483647");
    if (ids) titans::check_ids(manifest, {ids, count});
    if (vectors && !titans::all_finite(vectors, count * static_cast<std::size_t>(manifest.features)))
      titans::input_error("a vector has numbers that are not finite", "clean or scale the series first");
    const auto tokens = static_cast<std::int64_t>(count);
    const titans_outputs outputs = wanted ? *wanted : titans_outputs{};
    check_room(outputs.last, outputs.last_count, 1, manifest.outputs, "last");
    check_room(outputs.all, outputs.all_count, tokens, manifest.outputs, "all");
    check_room(outputs.surprise, outputs.surprise_count, tokens, manifest.surprise_layers, "surprise");
    use->feed(ids, vectors, tokens, outputs);
  });
}

[[noreturn]] void state_problem(const std::string& path, const titans::FileProblem& found, const char* what) {
  titans::state_error(text(path, " cannot be ", what, " (", found.reason, ")"), found.remedy);
}

void check_lineage(const titans::Session& session, const std::string& target, const std::string& own) {
  std::vector<std::uint8_t> there;
  try {
    there = titans::read_all(titans::open_regular(target), std::int64_t{1} << 36);
  } catch (const titans::FileProblem& found) {
    if (found.missing) return;
    state_problem(target, found, "read");
  }
  const std::string digest = titans::digest_of(there);
  if (there.empty() || (!digest.empty() && digest == own)) return;
  for (const auto& [place, known] : session.digests)
    if (!digest.empty() && known == digest) return;
  titans::state_error(text(target, " holds what this session has not read, and saving would replace it"),
                      "restore it first, save to another file, or replace it all the same with force");
}

std::unique_ptr<titans_session> restored(titans_model* model, std::span<const std::uint8_t> data,
                                         const std::string& source, const std::string& place) {
  auto made = std::unique_ptr<titans_session>(new titans_session{titans::Session(model->it)});
  titans::unpack(made->it, data, source);
  made->it.digests[place] = titans::digest_of(data);
  return made;
}

}  // namespace

extern "C" {

uint32_t titans_abi(void) { return TITANS_ABI; }
const char* titans_version(void) { return TITANS_VERSION; }

void titans_options_init(titans_options* options) {
  if (!options) return;
  *options = titans_options{};
  options->size = sizeof *options;
}

titans_code titans_model_load(const char* bundle, const titans_options* options, titans_model** model,
                              titans_error* error) {
  return guarded(error, [&] {
    *needed(model, "model") = nullptr;
    titans_options given{};
    titans_options_init(&given);
    if (options) {
      check_size(options->size, sizeof given, "options");
      given = *options;
    }
    if (given.threads < 0 || given.threads > 1024)
      titans::input_error(text("options.threads is ", given.threads), "use 0, or as many as there are cores");
    const std::string provider = given.provider ? given.provider : "cpu";
    auto made = std::make_unique<titans_model>();
    made->it = std::make_shared<titans::Model>(needed(bundle, "bundle"), given.onnxruntime, given.kernels, provider,
                                               given.threads);
    *model = made.release();
  });
}

void titans_model_close(titans_model* model) { delete model; }

titans_code titans_model_describe(const titans_model* model, titans_model_info* info, titans_error* error) {
  return guarded(error, [&] {
    const titans::Model& it = *needed(model, "model")->it;
    check_size(needed(info, "info")->size, sizeof *info, "info");
    const titans::Manifest& manifest = it.manifest();
    info->name = manifest.name.c_str();
    info->variant = manifest.variant.c_str();
    info->dtype = manifest.dtype.c_str();
    info->vocab_size = manifest.vectors ? 0 : manifest.outputs;
    info->features = manifest.features;
    info->outputs = manifest.outputs;
    info->surprise_layers = manifest.surprise_layers;
    info->chunk = manifest.chunk;
    info->state_bytes = manifest.stream_bytes;
    info->fused = it.fused();
  });
}

titans_code titans_session_open(titans_model* model, titans_session** session, titans_error* error) {
  return guarded(error, [&] {
    *needed(session, "session") = nullptr;
    *session = new titans_session{titans::Session(needed(model, "model")->it)};
  });
}

void titans_session_close(titans_session* session) { delete session; }

titans_code titans_session_feed(titans_session* session, const int64_t* ids, size_t count,
                                const titans_outputs* outputs, titans_error* error) {
  if (!ids) return say(error, TITANS_INPUT, "ids is null; pass a pointer to them");
  return feed(session, ids, nullptr, count, outputs, false, error);
}

titans_code titans_session_feed_vectors(titans_session* session, const float* vectors, size_t count,
                                        const titans_outputs* outputs, titans_error* error) {
  if (!vectors) return say(error, TITANS_INPUT, "vectors is null; pass a pointer to them");
  return feed(session, nullptr, vectors, count, outputs, true, error);
}

int64_t titans_session_position(const titans_session* session) { return session ? session->it.position() : -1; }

titans_code titans_session_last(titans_session* session, float* to, size_t room, titans_error* error) {
  return guarded(error, [&] {
    const Use use(session);
    if (!use->standing().has_last) titans::input_error("nothing was fed yet", "feed the session first");
    check_room(needed(to, "to"), room, 1, use->model().manifest().outputs, "last");
    std::memcpy(to, use->last().data(), use->last().size() * sizeof(float));
  });
}

titans_code titans_session_reset(titans_session* session, titans_error* error) {
  return guarded(error, [&] { Use(session)->reset(); });
}

titans_code titans_session_fork(titans_session* session, titans_session** fork, titans_error* error) {
  return guarded(error, [&] {
    *needed(fork, "fork") = nullptr;
    const Use use(session);
    auto made = std::unique_ptr<titans_session>(new titans_session{titans::Session(use->shared_model())});
    std::vector<std::span<const std::uint8_t>> tensors;
    for (std::size_t i = 0; i < use->model().manifest().states.size(); ++i) tensors.push_back(use->tensor(i));
    made->it.place(use->standing(), tensors, use->last());
    made->it.digests = use->digests;
    *fork = made.release();
  });
}

titans_code titans_session_mark(titans_session* session, titans_mark** mark, titans_error* error) {
  return guarded(error, [&] {
    *needed(mark, "mark") = nullptr;
    const Use use(session);
    *mark = new titans_mark{use->mark()};
  });
}

titans_code titans_session_rewind(titans_session* session, const titans_mark* mark, titans_error* error) {
  return guarded(error, [&] { Use(session)->rewind(needed(mark, "mark")->it); });
}

void titans_mark_free(titans_mark* mark) { delete mark; }

titans_code titans_session_save(titans_session* session, const char* path, int32_t force, titans_error* error) {
  return guarded(error, [&] {
    const Use use(session);
    const std::string given = needed(path, "path");
    try {
      const std::string target = titans::regular_target(given);
      const std::vector<std::uint8_t> data = titans::pack(*use);
      const std::string digest = titans::digest_of(data);
      const titans::Handle lock = titans::locked(target);
      if (!force) check_lineage(*use, target, digest);
      titans::replace_file(target, data);
      use->digests[target] = digest;
    } catch (const titans::FileProblem& found) {
      state_problem(given, found, "written");
    }
  });
}

titans_code titans_session_to_bytes(titans_session* session, uint8_t** data, size_t* size, titans_error* error) {
  return guarded(error, [&] {
    *needed(data, "data") = nullptr;
    *needed(size, "size") = 0;
    const Use use(session);
    const std::vector<std::uint8_t> packed = titans::pack(*use);
    auto* made = static_cast<uint8_t*>(std::malloc(packed.size()));
    if (!made) throw std::bad_alloc();
    std::memcpy(made, packed.data(), packed.size());
    *data = made;
    *size = packed.size();
    use->digests["given"] = titans::digest_of(packed);
  });
}

void titans_bytes_free(uint8_t* data) { std::free(data); }

titans_code titans_session_restore(titans_model* model, const char* path, titans_session** session,
                                   titans_error* error) {
  return guarded(error, [&] {
    *needed(session, "session") = nullptr;
    const std::string given = needed(path, "path");
    try {
      const std::int64_t limit = titans::most_bytes(needed(model, "model")->it->manifest());
      const std::vector<std::uint8_t> data = titans::read_all(titans::open_regular(given), limit);
      *session = restored(model, data, given, titans::regular_target(given)).release();
    } catch (const titans::FileProblem& found) {
      if (found.missing) titans::state_error(text(given, " is missing"), "check the path, or start a new session");
      state_problem(given, found, "read");
    }
  });
}

titans_code titans_session_restore_bytes(titans_model* model, const uint8_t* data, size_t size,
                                         titans_session** session, titans_error* error) {
  return guarded(error, [&] {
    *needed(session, "session") = nullptr;
    needed(model, "model");
    *session = restored(model, {needed(data, "data"), size}, "the data", "restored").release();
  });
}

titans_code titans_sampling_init(const titans_model* model, titans_sampling* sampling, titans_error* error) {
  return guarded(error, [&] {
    *needed(sampling, "sampling") = titans::sampling_defaults(needed(model, "model")->it->manifest());
  });
}

titans_code titans_generator_open(titans_session* session, const int64_t* prompt, size_t count,
                                  const titans_sampling* sampling, titans_generator** generator, titans_error* error) {
  return guarded(error, [&] {
    *needed(generator, "generator") = nullptr;
    const Use use(session);
    titans_sampling chosen = titans::sampling_defaults(use->model().manifest());
    if (sampling) {
      check_size(sampling->size, sizeof chosen, "sampling");
      chosen = *sampling;
    }
    if (count && !prompt) titans::input_error("prompt is null", "pass a pointer to its ids");
    *generator = new titans_generator{session, titans::Generator(*use, {prompt, count}, prompt != nullptr, chosen)};
  });
}

titans_code titans_generator_next(titans_generator* generator, int64_t* token, titans_ended* ended,
                                  titans_error* error) {
  return guarded(error, [&] {
    titans::Generator& it = needed(generator, "generator")->it;
    *needed(token, "token") = -1;
    if (ended) *ended = it.ended();
    const Use use(generator->session);
    *token = it.next();
    if (ended) *ended = it.ended();
  });
}

void titans_generator_close(titans_generator* generator) { delete generator; }

titans_code titans_session_generate(titans_session* session, const int64_t* prompt, size_t count,
                                    const titans_sampling* sampling, int64_t* tokens, size_t room, size_t* made,
                                    titans_ended* ended, titans_error* error) {
  titans_generator* generator = nullptr;
  if (made) *made = 0;
  if (ended) *ended = TITANS_GOING_ON;
  if (!made || (room && !tokens)) return say(error, TITANS_INPUT, "tokens or made is null; pass pointers to both");
  titans_code code = titans_generator_open(session, prompt, count, sampling, &generator, error);
  while (code == TITANS_OK && *made < room) {
    int64_t token = -1;
    titans_ended why = TITANS_GOING_ON;
    code = titans_generator_next(generator, &token, &why, error);
    if (ended) *ended = why;
    if (code != TITANS_OK || token < 0) break;
    tokens[(*made)++] = token;
    if (why != TITANS_GOING_ON) break;
  }
  titans_generator_close(generator);
  return code;
}

}  // extern "C"
