#include "files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>

#include "error.h"

namespace titans {
namespace {

constexpr auto kPatience = std::chrono::seconds(10);  // with a lock; a save takes far less
constexpr auto kLook = std::chrono::milliseconds(5);
constexpr std::size_t kBlock = 1 << 20;

std::string_view remedy_of(int number) {
  switch (number) {
    case ENOSPC: return "free some disk space or choose another place";
    case EDQUOT: return "free some of your quota or choose another place";
    case EROFS: return "the file system is read-only; choose another place";
    case EACCES:
    case EPERM: return "check the permissions or choose another place";
    case ENOENT: return "check the path";
    case ENOTDIR: return "check the path: a part of it is a file";
    case EISDIR: return "name a file, not a directory";
    case ELOOP: return "check the path: its links lead round in a circle";
    case ENAMETOOLONG: return "choose a shorter path";
    case EMFILE: return "close files that this process holds open, or raise its limit with `ulimit -n`";
    case ENOMEM: return "free some memory";
    case EIO: return "the disk or the network gave an error: check them, and copy the file again";
    default: return "check the path and try again";
  }
}

void check_regular(mode_t mode) {
  if (S_ISREG(mode)) return;
  const char* kind = S_ISDIR(mode) ? "directory" : S_ISFIFO(mode) ? "pipe" : S_ISSOCK(mode) ? "socket" : "device";
  throw FileProblem{text("it is a ", kind, ", not a file"), "name a regular file"};
}

std::string folder_of(const std::string& path) {
  const auto slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

FileProblem too_large(std::int64_t limit) {
  return {text("it is larger than ", limit, " bytes, which no such file is"), "check which file it is"};
}

}  // namespace

FileProblem problem(int number) {
  return {std::strerror(number), std::string(remedy_of(number)), number == ENOENT || number == ENOTDIR};
}

Handle& Handle::operator=(Handle&& other) noexcept {
  std::swap(number_, other.number_);
  return *this;
}

Handle::~Handle() {
  if (number_ >= 0) ::close(number_);
}

Handle open_regular(const std::string& path) {
  struct stat found{};
  if (path.find('\0') != std::string::npos) throw FileProblem{"its name has a zero byte", "check the path"};
  if (::stat(path.c_str(), &found) != 0) throw problem(errno);
  check_regular(found.st_mode);  // before it is opened: opening a device can do something
  Handle file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!file) throw problem(errno);
  check_regular(status(file).st_mode);  // and after, for what may have changed in between
  return file;
}

struct stat status(const Handle& file) {
  struct stat found{};
  if (::fstat(file.get(), &found) != 0) throw problem(errno);
  return found;
}

std::vector<std::uint8_t> read_all(const Handle& file, std::int64_t limit) {
  const std::int64_t size = status(file).st_size;
  if (size > limit) throw too_large(limit);
  std::vector<std::uint8_t> data;
  for (std::size_t held = 0;;) {
    const std::size_t room = std::min<std::size_t>(kBlock, static_cast<std::size_t>(limit) + 1 - held);
    data.resize(held + room);
    const ssize_t got = ::pread(file.get(), data.data() + held, room, static_cast<off_t>(held));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw problem(errno);
    held += static_cast<std::size_t>(got);
    if (held > static_cast<std::size_t>(limit)) throw too_large(limit);  // it grew, or has no size
    if (got == 0) {
      data.resize(held);
      return data;
    }
  }
}

Mapping::Mapping(const Handle& file) : identity_(status(file)) {
  size_ = static_cast<std::size_t>(identity_.st_size);
  if (!size_) return;  // an empty file cannot be mapped
  void* at = mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.get(), 0);
  if (at == MAP_FAILED) throw problem(errno);
  data_ = static_cast<std::uint8_t*>(at);
}

Mapping::Mapping(Mapping&& other) noexcept : data_(other.data_), size_(other.size_), identity_(other.identity_) {
  other.data_ = nullptr;
}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(identity_, other.identity_);
  return *this;
}

Mapping::~Mapping() {
  if (data_) munmap(data_, size_);
}

std::string regular_target(const std::string& path) {
  if (path.empty() || path.find('\0') != std::string::npos) throw FileProblem{"it has no name", "name a file"};
  char* real = realpath(path.c_str(), nullptr);
  std::string target = path;
  if (real) {
    target = real;
    std::free(real);
  } else if (errno != ENOENT) {
    throw problem(errno);
  } else {
    char link[4096];
    const ssize_t size = readlink(path.c_str(), link, sizeof link);
    if (size > 0) throw FileProblem{"it is a link to nothing", "make the file it leads to, or choose another place"};
    const std::string folder = folder_of(path);
    real = realpath(folder.c_str(), nullptr);
    if (!real) {
      FileProblem found = problem(errno);
      found.remedy = "make its directory or choose another place";
      throw found;
    }
    target = text(std::string_view(real) == "/" ? "" : real, "/", path.substr(path.rfind('/') + 1));
    std::free(real);
    if (target.back() == '/') throw problem(EISDIR);
  }
  struct stat found{};
  if (::stat(target.c_str(), &found) == 0) check_regular(found.st_mode);
  return target;
}

void replace_file(const std::string& target, const std::vector<std::uint8_t>& data) {
  const std::string folder = folder_of(target), name = target.substr(target.rfind('/') + 1);
  std::random_device random;
  char tail[16];
  std::snprintf(tail, sizeof tail, "%08x", random());
  const std::string temporary = text(folder, "/.", name.substr(0, 40), ".", tail, ".titans-tmp");
  Handle file(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!file) throw problem(errno);
  const auto give_up = [&temporary] {
    const int number = errno;
    ::unlink(temporary.c_str());
    throw problem(number);
  };
  struct stat before{};
  if (::stat(target.c_str(), &before) == 0 && ::fchmod(file.get(), before.st_mode & 0777) != 0) give_up();
  for (std::size_t at = 0; at < data.size();) {
    const ssize_t put = ::write(file.get(), data.data() + at, data.size() - at);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) give_up();
    at += static_cast<std::size_t>(put);
  }
  if (::fsync(file.get()) != 0 || ::rename(temporary.c_str(), target.c_str()) != 0) give_up();
  const Handle directory(::open(folder.c_str(), O_RDONLY | O_CLOEXEC));
  if (directory) (void)::fsync(directory.get());
}

Handle locked(const std::string& target) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  const auto place = [&target] {
    struct stat found{};
    return ::stat(target.c_str(), &found) == 0 && S_ISREG(found.st_mode) ? target : folder_of(target);
  };
  while (std::chrono::steady_clock::now() < deadline) {
    Handle file(::open(place().c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    if (!file) return file;
    if (flock(file.get(), LOCK_EX | LOCK_NB) == 0) {
      struct stat held{}, now{};
      if (::fstat(file.get(), &held) == 0 && ::stat(place().c_str(), &now) == 0 && held.st_ino == now.st_ino &&
          held.st_dev == now.st_dev)
        return file;
    } else if (errno != EWOULDBLOCK) {
      return Handle();
    } else {
      std::this_thread::sleep_for(kLook);
    }
  }
  return Handle();
}

}  // namespace titans
