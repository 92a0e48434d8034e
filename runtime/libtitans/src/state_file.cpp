#include "state_file.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "error.h"
#include "numbers.h"
#include "sha256.h"
#include "tensor_file.h"

namespace titans {
namespace {

constexpr std::string_view kLast = "last_output";

struct Part {
  std::string name;
  const ElementType* type;
  Sizes shape;  // as far as it counts
  std::span<const std::uint8_t> data;
};

Sizes counted_shape(const StateSpec& state, std::int64_t position) {
  Sizes shape = concrete(state.shape);
  if (state.rows) shape[0] = position % shape[0];
  return shape;
}

Json list_of(const Sizes& sizes) {
  std::vector<Json> items;
  for (const std::int64_t size : sizes) items.emplace_back(size);
  return Json::list_of(std::move(items));
}

std::string titans_entry(const Session& session, const std::vector<Part>& parts) {
  const Manifest& manifest = session.model().manifest();
  const Standing& now = session.standing();
  Json surprise = Json::object_of(), tensors = Json::object_of(), entry = Json::object_of();
  surprise.with("tokens", now.totals.tokens).with("total", now.totals.total);
  surprise.with("squares", now.totals.squares).with("highest", now.totals.highest);
  for (const Part& part : parts)
    tensors.with(part.name, Json::list_of({Json(std::string(part.type->name)), list_of(part.shape)}));
  entry.with("format", std::string("titans-state")).with("format_version", std::int64_t{1});
  entry.with("sha256", std::string(64, '0')).with("identity", manifest.state_identity).with("model", manifest.name);
  entry.with("position", now.position).with("commits", now.commits).with("compressed", Json::boolean_of(false));
  entry.with("recent", list_of(Sizes(now.recent, now.recent + now.recent_count)));
  entry.with("surprise", std::move(surprise)).with("tensors", std::move(tensors));
  if (now.has_turn) entry.with("turn", now.turn);
  return dump_json(entry, false, false);
}

[[noreturn]] void not_ours(const std::string& source, const std::string& why) {
  state_error(text(source, " is not a saved session, or is damaged (", why, ")"));
}

const Json& field(const Json& entry, const char* name, Json::Kind kind, const std::string& source) {
  const Json* found = entry.find(name);
  if (!found || found->kind != kind) not_ours(source, text("it has no sound field \"", name, "\""));
  return *found;
}

std::int64_t count(const Json& entry, const char* name, const std::string& source) {
  const std::int64_t found = field(entry, name, Json::Kind::integer, source).integer;
  if (found < 0 || found > kMostInteger) not_ours(source, text("\"", name, "\" is out of its range"));
  return found;
}

double number(const Json& entry, const char* name, const std::string& source) {
  const Json* found = entry.find(name);
  if (found && found->kind == Json::Kind::integer) return static_cast<double>(found->integer);
  return field(entry, name, Json::Kind::real, source).real;
}

struct Read {
  Standing standing;
  bool compressed = false;
  const Json* tensors = nullptr;
};

void check_digest(std::span<const std::uint8_t> data, const std::string& head, const Json& entry,
                  const std::string& source) {
  const std::string& digest = field(entry, "sha256", Json::Kind::text, source).text;
  const auto at = head.find(digest);
  if (digest.size() != 64 || at == std::string::npos) state_error(text(source, " has no checksum where it should be"));
  Sha256 hash;
  const std::string zeros(64, '0');
  hash.update(data.data(), 8 + at);
  hash.update(zeros.data(), zeros.size());
  hash.update(data.data() + 8 + at + 64, data.size() - 8 - at - 64);
  if (hash.hex() != digest) state_error(text(source, " is damaged: its checksum does not match"));
}

Read read_entry(const Json& entry, const std::string& source) {
  Read read;
  Standing& to = read.standing;
  to.position = count(entry, "position", source);
  to.commits = count(entry, "commits", source);
  read.compressed = field(entry, "compressed", Json::Kind::boolean, source).boolean;
  const Json& surprise = field(entry, "surprise", Json::Kind::object, source);
  to.totals = {count(surprise, "tokens", source), number(surprise, "total", source),
               number(surprise, "squares", source), number(surprise, "highest", source)};
  if (entry.find("recent"))
    for (const Json& id : field(entry, "recent", Json::Kind::list, source).items) {
      if (id.kind != Json::Kind::integer || id.integer < 0) not_ours(source, "\"recent\" has something else than ids");
      to.consumed(id.integer);
    }
  if (const Json* turn = entry.find("turn"); turn && turn->kind != Json::Kind::null) {
    to.has_turn = true;
    to.turn = field(entry, "turn", Json::Kind::integer, source).integer;
    if (to.turn < -1 || to.turn > kMostInteger) not_ours(source, "\"turn\" is out of its range");
  }
  read.tensors = &field(entry, "tensors", Json::Kind::object, source);
  return read;
}

// Bytes of equal significance stand together, deflated; never more than is expected comes out.
std::vector<std::uint8_t> inflated(const Tensor& stored, std::size_t size, std::size_t item,
                                   const std::string& source) {
  std::vector<std::uint8_t> planes(size + 1), made(size);
  z_stream stream{};
  if (stored.bytes > std::numeric_limits<uInt>::max() || size >= std::numeric_limits<uInt>::max() ||
      inflateInit(&stream) != Z_OK)
    state_error(text(source, " cannot be decompressed"));
  stream.next_in = const_cast<Bytef*>(stored.data);
  stream.avail_in = static_cast<uInt>(stored.bytes);
  stream.next_out = planes.data();
  stream.avail_out = static_cast<uInt>(planes.size());
  const int ended = inflate(&stream, Z_FINISH);
  const bool whole = ended == Z_STREAM_END && stream.total_out == size && stream.avail_in == 0;
  inflateEnd(&stream);
  if (!whole) state_error(text(source, " does not decompress to the model's state"));
  const std::size_t elements = item ? size / item : 0;
  for (std::size_t i = 0; i < elements; ++i)
    for (std::size_t plane = 0; plane < item; ++plane) made[i * item + plane] = planes[plane * elements + i];
  return made;
}

bool says(const Json* entry, const ElementType& type, const Sizes& shape) {
  if (!entry || entry->kind != Json::Kind::list || entry->items.size() != 2) return false;
  const Json &dtype = entry->items[0], &sizes = entry->items[1];
  if (dtype.kind != Json::Kind::text || dtype.text != type.name || sizes.kind != Json::Kind::list ||
      sizes.items.size() != shape.size())
    return false;
  for (std::size_t i = 0; i < shape.size(); ++i)
    if (sizes.items[i].kind != Json::Kind::integer || sizes.items[i].integer != shape[i]) return false;
  return true;
}

const Json& metadata_of(const TensorFile& file, const std::string& source) {
  const Json* metadata = file.header.find("__metadata__");
  if (!metadata || metadata->kind != Json::Kind::object) not_ours(source, "it has no metadata");
  return field(*metadata, "titans", Json::Kind::text, source);
}

}  // namespace

std::int64_t most_bytes(const Manifest& manifest) {
  return 2 * manifest.stream_bytes + 4 * manifest.outputs + static_cast<std::int64_t>(kMostHeaderBytes);
}

std::vector<std::uint8_t> pack(const Session& session) {
  const Manifest& manifest = session.model().manifest();
  std::vector<Part> parts;
  for (std::size_t i = 0; i < manifest.states.size(); ++i) {
    const StateSpec& state = manifest.states[i];
    parts.push_back({state.name, state.type, counted_shape(state, session.position()), session.tensor(i)});
  }
  if (session.standing().has_last) {
    const std::vector<float>& last = session.last();
    parts.push_back({std::string(kLast),
                     by_onnx(kFloat32),
                     {manifest.outputs},
                     {reinterpret_cast<const std::uint8_t*>(last.data()), last.size() * sizeof(float)}});
  }
  Json header = Json::object_of(), metadata = Json::object_of();
  metadata.with("titans", titans_entry(session, parts));
  header.with("__metadata__", std::move(metadata));
  // The widest types first, so that every tensor is aligned.
  std::stable_sort(parts.begin(), parts.end(),
                   [](const Part& a, const Part& b) { return a.type->bytes > b.type->bytes; });
  std::int64_t end = 0;
  for (const Part& part : parts) {
    const std::int64_t begin = end;
    end += static_cast<std::int64_t>(part.data.size());
    Json entry = Json::object_of();
    entry.with("dtype", std::string(part.type->safetensors)).with("shape", list_of(part.shape));
    header.with(part.name, std::move(entry.with("data_offsets", list_of({begin, end}))));
  }
  std::string head = dump_json(header, false, true);
  head.append((8 - head.size() % 8) % 8, ' ');
  std::vector<std::uint8_t> data(8 + head.size() + static_cast<std::size_t>(end));
  for (int i = 0; i < 8; ++i) data[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(head.size() >> (8 * i));
  std::memcpy(data.data() + 8, head.data(), head.size());
  std::size_t at = 8 + head.size();
  for (const Part& part : parts) {
    if (!part.data.empty()) std::memcpy(data.data() + at, part.data.data(), part.data.size());
    at += part.data.size();
  }
  const std::string digest = sha256_hex(data.data(), data.size());
  std::memcpy(data.data() + 8 + head.find(std::string(64, '0')), digest.data(),
              digest.size());  // the first: it is the entry's
  return data;
}

std::string digest_of(std::span<const std::uint8_t> data) {
  try {
    const TensorFile file = read_tensors(data);
    return field(parse_json(metadata_of(file, "").text), "sha256", Json::Kind::text, "").text;
  } catch (const std::exception&) {
    return "";
  }
}

void unpack(Session& session, std::span<const std::uint8_t> data, const std::string& source) {
  const Manifest& manifest = session.model().manifest();
  TensorFile file;
  Json entry;
  try {
    file = read_tensors(data);
    entry = parse_json(metadata_of(file, source).text);
  } catch (const std::invalid_argument& error) {
    not_ours(source, error.what());
  }
  if (entry.kind != Json::Kind::object || field(entry, "format", Json::Kind::text, source).text != "titans-state")
    state_error(text(source, " is not a saved session"),
                "give a file that titans_session_save or session.save() wrote");
  if (const std::int64_t version = count(entry, "format_version", source); version > 1)
    state_error(text(source, " has format version ", version, ", newer than 1"), "install a newer libtitans");
  check_digest(data, file.head, entry, source);
  const std::string& identity = field(entry, "identity", Json::Kind::text, source).text;
  if (identity != manifest.state_identity)
    state_error(
        text(source, " is a state of another model (identity ", identity.substr(0, 12), ")"),
        text("this bundle has identity ", manifest.state_identity.substr(0, 12), ": load the one it was saved with"));
  Read read = read_entry(entry, source);
  std::vector<std::vector<std::uint8_t>> held;  // what was compressed
  held.reserve(manifest.states.size() + 1);
  std::size_t found = 0;
  const auto take = [&](const std::string& name, const ElementType& type, const Sizes& shape) {
    const auto stored = file.tensors.find(name);
    if (stored == file.tensors.end() || !says(read.tensors->find(name), type, shape))
      state_error(text(source, ": '", name, "' is not the ", type.name, " that this model has"));
    ++found;
    const auto bytes = static_cast<std::size_t>(times(elements(shape), type.bytes));
    std::span<const std::uint8_t> content(stored->second.data, static_cast<std::size_t>(stored->second.bytes));
    if (read.compressed) {
      held.push_back(inflated(stored->second, bytes, static_cast<std::size_t>(type.bytes), source));
      content = held.back();
    } else if (stored->second.type != &type || stored->second.shape != shape) {
      state_error(text(source, ": '", name, "' is stored in another type or shape than its header says"));
    }
    if (!all_finite(type, content.data(), content.size()))
      state_error(text(source, ": '", name, "' has numbers that are not finite"));
    return content;
  };
  std::vector<std::span<const std::uint8_t>> tensors;
  for (const StateSpec& state : manifest.states)
    tensors.push_back(take(state.name, *state.type, counted_shape(state, read.standing.position)));
  std::vector<float> last;
  if (file.tensors.count(kLast)) {
    const auto content = take(std::string(kLast), *by_onnx(kFloat32), {manifest.outputs});
    last.resize(content.size() / sizeof(float));
    std::memcpy(last.data(), content.data(), content.size());
    read.standing.has_last = true;
  }
  if (found != file.tensors.size() || found != read.tensors->items.size())
    state_error(text(source, " holds tensors that this model does not have"));
  session.place(read.standing, tensors, last);
}

}  // namespace titans
