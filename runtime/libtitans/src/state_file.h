// A session as a file: one safetensors file that is whole or refused, and belongs to one model. Python's runtime writes
// and reads the same. Does not know how a file is replaced.
#pragma once
#include "session.h"

namespace titans {

std::vector<std::uint8_t> pack(const Session& session);
// Brings a session where the bytes say. Throws `Error` of TITANS_STATE; the session is where it was.
void unpack(Session& session, std::span<const std::uint8_t> data, const std::string& source);
// What a state file's header gives as its digest; empty for anything else.
std::string digest_of(std::span<const std::uint8_t> data);
// More bytes than a state of this model can have.
std::int64_t most_bytes(const Manifest& manifest);

}  // namespace titans
