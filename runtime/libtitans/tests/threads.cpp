// Threads that share a model, for the thread sanitizer: each with a session of its own, then all with one session.
//
//   threads BUNDLE LIBONNXRUNTIME
#include <titans.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

void check(titans_code code, const titans_error& error) {
  if (code == TITANS_OK) return;
  std::fprintf(stderr, "error: %s\n", error.message);
  std::_Exit(1);
}

std::vector<float> answer(titans_model* model, std::size_t outputs, int piece) {
  titans_error error;
  titans_session *session = nullptr, *fork = nullptr;
  check(titans_session_open(model, &session, &error), error);
  std::vector<std::int64_t> ids(60);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int64_t>(i * 7 % 13);
  for (std::size_t at = 0; at < ids.size(); at += static_cast<std::size_t>(piece))
    check(titans_session_feed(session, ids.data() + at, static_cast<std::size_t>(piece), nullptr, &error), error);
  check(titans_session_fork(session, &fork, &error), error);
  std::vector<float> last(outputs);
  check(titans_session_last(fork, last.data(), last.size(), &error), error);
  titans_session_close(session);
  titans_session_close(fork);
  return last;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  titans_error error;
  titans_options options;
  titans_options_init(&options);
  options.onnxruntime = argv[2];
  options.threads = 1;
  titans_model* model = nullptr;
  check(titans_model_load(argv[1], &options, &model, &error), error);
  titans_model_info info{};
  info.size = sizeof info;
  check(titans_model_describe(model, &info, &error), error);
  const auto outputs = static_cast<std::size_t>(info.outputs);

  std::vector<std::vector<float>> found(4);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < found.size(); ++i)
    threads.emplace_back([&, i] { found[i] = answer(model, outputs, 1); });  // meet every graph at the same time
  for (std::thread& thread : threads) thread.join();
  for (const auto& each : found)
    if (each != found[0]) return 3;

  titans_session* shared = nullptr;
  check(titans_session_open(model, &shared, &error), error);
  std::atomic<long> fed{0}, refused{0};
  threads.clear();
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      const std::int64_t id = 1;
      for (int turn = 0; turn < 300; ++turn) {
        titans_error mine;
        const titans_code code = titans_session_feed(shared, &id, 1, nullptr, &mine);
        if (code == TITANS_OK)
          ++fed;
        else if (code == TITANS_BUSY)
          ++refused;
        else
          check(code, mine);
        (void)titans_session_position(shared);
      }
    });
  for (std::thread& thread : threads) thread.join();
  const bool fine = titans_session_position(shared) == fed && fed + refused == 1200;
  std::printf("%ld fed, %ld refused\n", fed.load(), refused.load());
  titans_model_close(model);  // before its session
  titans_session_close(shared);
  return fine ? 0 : 4;
}
