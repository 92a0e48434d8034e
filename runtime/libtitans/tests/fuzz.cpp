// Damages manifests, graphs, weights, initial states and saved sessions, and loads and drives what is left.
//
//   fuzz BUNDLE LIBONNXRUNTIME FOLDER CASES [SEED]
//
// Most damage is signed anew, as somebody who means harm would do: hashes are made to fit. Every case has to be refused
// with a code, or has to work. Sanitizers, and the exit status, say whether anything else happened. FOLDER is filled
// with a copy of the bundle.
#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "../src/error.h"
#include "../src/json.h"
#include "../src/sha256.h"
#include "titans.h"

namespace fs = std::filesystem;
using titans::Json;
using Bytes = std::vector<std::uint8_t>;

namespace {

std::mt19937_64 random_bits;

std::size_t below(std::size_t count) { return count ? random_bits() % count : 0; }
bool one_in(std::size_t count) { return below(count) == 0; }

Bytes read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

void write(const fs::path& path, const Bytes& data) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(data.data()), static_cast<std::streamsize>(data.size()));
}

Bytes bytes_of(const std::string& text) { return Bytes(text.begin(), text.end()); }
std::string text_of(const Bytes& data) { return std::string(data.begin(), data.end()); }

// ---------------------------------------------------------------- damage

void damage(Bytes& data) {
  for (std::size_t turn = 0, turns = 1 + below(4); turn < turns && !data.empty(); ++turn) {
    const std::size_t at = below(data.size());
    switch (below(6)) {
      case 0: data[at] ^= static_cast<std::uint8_t>(1u << below(8)); break;
      case 1: data[at] = static_cast<std::uint8_t>(random_bits()); break;
      case 2: data.resize(at); break;
      case 3:
        data.insert(data.begin() + static_cast<std::ptrdiff_t>(at), 1 + below(9),
                    static_cast<std::uint8_t>(random_bits()));
        break;
      case 4:
        data.erase(data.begin() + static_cast<std::ptrdiff_t>(at),
                   data.begin() + static_cast<std::ptrdiff_t>(std::min(data.size(), at + 1 + below(9))));
        break;
      default: {
        const std::size_t from = below(data.size()), size = std::min(1 + below(40), data.size() - std::max(at, from));
        std::memmove(data.data() + at, data.data() + from, size);
      }
    }
  }
}

void collect(Json& value, std::vector<Json*>& to) {
  to.push_back(&value);
  for (Json& item : value.items) collect(item, to);
}

Json strange() {
  static const std::int64_t numbers[] = {
      0,         1,         -1,        2,         3,         7,        16, 255, 65536, 1 << 30, (1LL << 31) - 1,
      1LL << 31, 1LL << 36, 1LL << 61, 1LL << 62, INT64_MAX, INT64_MIN};
  static const char* texts[] = {
      "",     "batch",       "rows",   "carried",  "float32",  "float16",          "int8",    "F32",      "I64",
      "../x", "/etc/passwd", "logits", "surprise", "position", "\xf0\x9f\x98\x80", "learned", "constant", "zeros"};
  switch (below(6)) {
    case 0: return Json();
    case 1: return Json::boolean_of(one_in(2));
    case 2: return Json(std::string(texts[below(std::size(texts))]));
    case 3: return Json(one_in(2) ? 1e308 : 0.5);
    case 4: return one_in(2) ? Json::list_of({}) : Json::object_of();
    default: return Json(numbers[below(std::size(numbers))]);
  }
}

void damage(Json& document) {
  for (std::size_t turn = 0, turns = 1 + below(3); turn < turns; ++turn) {
    std::vector<Json*> all;
    collect(document, all);
    Json& victim = *all[below(all.size())];
    const std::size_t at = below(victim.items.size());
    switch (below(6)) {
      case 0:
      case 1: victim = strange(); break;
      case 2: {
        Json copy = *all[below(all.size())];
        victim = std::move(copy);
        break;
      }
      case 3:
        if (victim.items.empty()) break;
        victim.items.erase(victim.items.begin() + static_cast<std::ptrdiff_t>(at));
        if (!victim.names.empty()) victim.names.erase(victim.names.begin() + static_cast<std::ptrdiff_t>(at));
        break;
      case 4:
        if (victim.kind == Json::Kind::list)
          victim.items.push_back(victim.items.empty() ? strange() : Json(victim.items[at]));
        break;
      default:
        if (victim.kind == Json::Kind::integer) victim.integer += one_in(2) ? 1 : -1;
        if (victim.kind == Json::Kind::text && !victim.text.empty()) victim.text.erase(below(victim.text.size()), 1);
    }
  }
}

// ---------------------------------------------------------------- signing anew

void rehash(Json& value, const std::string& name, const std::string& digest, std::size_t size) {
  if (value.kind == Json::Kind::object && value.find("file") && value.find("file")->text == name)
    for (std::size_t i = 0; i < value.names.size(); ++i) {
      if (value.names[i] == "sha256") value.items[i] = Json(digest);
      if (value.names[i] == "bytes") value.items[i] = Json(static_cast<std::int64_t>(size));
    }
  for (Json& item : value.items) rehash(item, name, digest, size);
}

std::string sealed(const Json& document) {
  Json content = Json::object_of();
  for (std::size_t i = 0; i < document.names.size(); ++i)
    if (document.names[i] != "sha256") content.with(document.names[i], document.items[i]);
  const std::string spelt = titans::dump_json(content, true, true);
  if (document.kind == Json::Kind::object) content.with("sha256", titans::sha256_hex(spelt.data(), spelt.size()));
  return titans::dump_json(document.kind == Json::Kind::object ? content : document, false, true);
}

// A safetensors file with another header.
Bytes with_header(const Bytes& file, const std::string& header) {
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  Bytes made(8);
  const std::uint64_t now = header.size();
  std::memcpy(made.data(), &now, 8);
  made.insert(made.end(), header.begin(), header.end());
  made.insert(made.end(), file.begin() + static_cast<std::ptrdiff_t>(8 + length), file.end());
  return made;
}

Json header_of(const Bytes& file) {
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  return titans::parse_json({reinterpret_cast<const char*>(file.data()) + 8, length});
}

Bytes damaged_tensors(const Bytes& file) {
  if (one_in(2)) {
    Json header = header_of(file);
    damage(header);
    return with_header(file, titans::dump_json(header, false, true));
  }
  Bytes made = file;
  damage(made);
  return made;
}

Bytes damaged_state(const Bytes& file) {
  if (one_in(4)) {
    Bytes made = file;
    damage(made);
    return made;
  }
  Json header = header_of(file);
  Json* entry = nullptr;
  for (std::size_t i = 0; i < header.names.size(); ++i)
    if (header.names[i] == "__metadata__") entry = &header.items[i].items[0];
  Json inner = titans::parse_json(entry->text);
  if (!one_in(3)) damage(inner);
  std::string digest(64, '0');
  for (std::size_t i = 0; i < inner.names.size(); ++i)
    if (inner.names[i] == "sha256") inner.items[i] = Json(digest);
  entry->text = titans::dump_json(inner, false, false);
  if (one_in(3)) damage(header);
  Bytes made = with_header(file, titans::dump_json(header, false, true));
  if (one_in(3) && made.size() > 8) {  // the numbers themselves
    const std::size_t at = made.size() - 1 - below(std::min<std::size_t>(made.size() - 8, 4000));
    made[at] = static_cast<std::uint8_t>(random_bits());
  }
  const std::string all = text_of(made);
  const auto place = all.find(digest);
  digest = titans::sha256_hex(made.data(), made.size());
  if (place != std::string::npos) std::memcpy(made.data() + place, digest.data(), digest.size());
  return made;
}

// ---------------------------------------------------------------- a case

struct Counts {
  long refused = 0, ran = 0;
};

bool drive(titans_model* model, titans_session* session) {
  titans_error error;
  titans_model_info info{};
  info.size = sizeof info;
  if (titans_model_describe(model, &info, &error) != TITANS_OK || info.vocab_size < 3) return false;
  const std::int64_t ids[] = {1, 2, 0, 1, 2, 1, 0};
  std::vector<float> last(static_cast<std::size_t>(info.outputs));
  titans_outputs outputs{};
  outputs.last = last.data();
  outputs.last_count = last.size();
  bool fine = titans_session_feed(session, ids, 7, &outputs, &error) == TITANS_OK;
  fine = fine && titans_session_feed(session, ids, 1, &outputs, &error) == TITANS_OK;
  std::uint8_t* data = nullptr;
  std::size_t size = 0;
  titans_session* again = nullptr;
  if (fine && titans_session_to_bytes(session, &data, &size, &error) == TITANS_OK &&
      titans_session_restore_bytes(model, data, size, &again, &error) != TITANS_OK) {
    std::fprintf(stderr, "what was saved is not restored: %s\n", error.message);
    std::exit(1);
  }
  titans_bytes_free(data);
  titans_session_close(again);
  return fine;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) return 2;
  const fs::path bundle = argv[1], folder = argv[3];
  const long cases = std::atol(argv[4]);
  const std::uint64_t seed = argc > 5 ? std::strtoull(argv[5], nullptr, 10) : 0;
  std::map<std::string, Bytes> files;
  fs::create_directories(folder);
  for (const auto& entry : fs::directory_iterator(bundle)) {
    if (!entry.is_regular_file()) continue;
    files[entry.path().filename().string()] = read(entry.path());
    write(folder / entry.path().filename(), files[entry.path().filename().string()]);
  }
  std::vector<std::string> graphs, tensors;
  for (const auto& [name, content] : files) {
    if (name.ends_with(".onnx") && name.find(".fused.") == std::string::npos) graphs.push_back(name);
    if (name.ends_with(".safetensors")) tensors.push_back(name);
  }
  titans_error error;
  titans_options options;
  titans_options_init(&options);
  options.onnxruntime = argv[2];
  options.threads = 1;
  titans_model* sound = nullptr;
  titans_session* session = nullptr;
  if (titans_model_load(folder.c_str(), &options, &sound, &error) != TITANS_OK ||
      titans_session_open(sound, &session, &error) != TITANS_OK || !drive(sound, session)) {
    std::fprintf(stderr, "the bundle does not run: %s\n", error.message);
    return 1;
  }
  std::uint8_t* saved = nullptr;
  std::size_t size = 0;
  titans_session_to_bytes(session, &saved, &size, &error);
  const Bytes state(saved, saved + size);
  titans_bytes_free(saved);
  titans_session_close(session);

  Counts bundles, states;
  for (long number = 0; number < cases; ++number) {
    random_bits.seed(seed * 1'000'003 + static_cast<std::uint64_t>(number));
    if (std::getenv("TITANS_FUZZ_SHOW")) std::fprintf(stderr, "case %ld\n", number);
    if (one_in(2)) {
      const Bytes damaged = damaged_state(state);
      session = nullptr;
      if (titans_session_restore_bytes(sound, damaged.data(), damaged.size(), &session, &error) == TITANS_OK) {
        drive(sound, session);
        ++states.ran;
      } else {
        ++states.refused;
      }
      titans_session_close(session);
      continue;
    }
    std::string manifest = text_of(files["manifest.json"]), victim;
    if (const std::size_t kind = below(8); kind == 0) {
      Bytes raw = files["manifest.json"];
      damage(raw);
      manifest = text_of(raw);
    } else {
      Json document = titans::parse_json(manifest);
      if (kind <= 3) {
        damage(document);
      } else {
        victim = kind <= 6 ? graphs[below(graphs.size())] : tensors[below(tensors.size())];
        Bytes content = files[victim];
        if (kind <= 6)
          damage(content);
        else
          content = damaged_tensors(content);
        rehash(document, victim, titans::sha256_hex(content.data(), content.size()), content.size());
        write(folder / victim, content);
      }
      manifest = sealed(document);
    }
    write(folder / "manifest.json", bytes_of(manifest));
    titans_model* model = nullptr;
    session = nullptr;
    bool ran = false;
    if (titans_model_load(folder.c_str(), &options, &model, &error) == TITANS_OK &&
        titans_session_open(model, &session, &error) == TITANS_OK)
      ran = drive(model, session);
    ++(ran ? bundles.ran : bundles.refused);
    titans_session_close(session);
    titans_model_close(model);
    if (!victim.empty()) write(folder / victim, files[victim]);
  }
  titans_model_close(sound);
  std::printf(
      "{\"cases\": %ld, \"bundles_refused\": %ld, \"bundles_ran\": %ld, \"states_refused\": %ld, \"states_ran\": "
      "%ld}\n",
      cases, bundles.refused, bundles.ran, states.refused, states.ran);
}
