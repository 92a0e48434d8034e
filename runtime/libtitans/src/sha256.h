// SHA-256, by OpenSSL: it uses what the processor has for it.
#pragma once
#include <cstddef>
#include <string>

struct evp_md_ctx_st;

namespace titans {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void update(const void* data, std::size_t size);
  std::string hex();  // of all that came; once

 private:
  evp_md_ctx_st* context_;
};

std::string sha256_hex(const void* data, std::size_t size);

}  // namespace titans
