/// What the generated messages (messages.gen.hpp) are read and written with: thin, checked
/// steps over msgpack-cxx.
///
/// Reading is strict: every field must be there once, none may be unknown, numbers are
/// integers in range (a float is refused even if whole), texts and byte strings keep to
/// their limits. Nothing thrown by msgpack-cxx leaves this file's callers.
///
/// Key bytes: msgpack-cxx is told to refer to texts and byte strings in the input instead of
/// copying them into its zone, so a key is only ever in the input buffer, which its owner wipes.
///
/// Threads: no shared state; every call works on its arguments alone.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <msgpack.hpp>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace pairwire::messages {

/// The largest integer that both languages hold exactly (JavaScript's Number.MAX_SAFE_INTEGER).
inline constexpr std::uint64_t kMaxSafeInteger = (std::uint64_t{1} << 53) - 1;

/// In front of every message: its length, big-endian.
inline constexpr std::size_t kLengthSize = 4;

/// At most N bytes, owned: small things such as an IP address (4 or 16 bytes).
template <std::size_t N>
class BoundedBytes {
 public:
  static constexpr std::size_t kCapacity = N;
  static_assert(N > 0 && N <= 255, "the size is kept in one byte");

  constexpr BoundedBytes() noexcept = default;

  /// False, and no change, for more than N bytes.
  constexpr bool assign(std::span<const std::uint8_t> bytes) noexcept {
    if (bytes.size() > N) return false;
    bytes_ = {};
    std::copy(bytes.begin(), bytes.end(), bytes_.begin());
    size_ = static_cast<std::uint8_t>(bytes.size());
    return true;
  }

  constexpr std::span<const std::uint8_t> bytes() const noexcept {
    return std::span<const std::uint8_t>(bytes_).first(size_);
  }
  constexpr std::size_t size() const noexcept { return size_; }

  friend constexpr bool operator==(const BoundedBytes&, const BoundedBytes&) noexcept = default;

 private:
  std::array<std::uint8_t, N> bytes_{};
  std::uint8_t size_ = 0;
};

enum class DecodeErrorCode : std::uint8_t {
  not_msgpack,    ///< no MessagePack, cut short, bytes behind the end, too deep or too large
  not_a_map,      ///< a map was expected
  unknown_type,   ///< `t` is missing or names no command
  bad_id,         ///< `id` is missing or no u32
  missing_field,  ///< `field` is not there
  unknown_field,  ///< a field too many, or one twice
  wrong_type,     ///< `field` has another type
  out_of_range,   ///< `field` is too large, too small or has the wrong length
  out_of_memory,  ///< no memory to decode into
};

constexpr std::string_view to_text(DecodeErrorCode code) noexcept {
  switch (code) {
    case DecodeErrorCode::not_msgpack:
      return "no valid MessagePack";
    case DecodeErrorCode::not_a_map:
      return "not a map";
    case DecodeErrorCode::unknown_type:
      return "unknown type";
    case DecodeErrorCode::bad_id:
      return "no valid id";
    case DecodeErrorCode::missing_field:
      return "missing field";
    case DecodeErrorCode::unknown_field:
      return "unknown or repeated field";
    case DecodeErrorCode::wrong_type:
      return "wrong type";
    case DecodeErrorCode::out_of_range:
      return "out of range";
    case DecodeErrorCode::out_of_memory:
      return "out of memory";
  }
  return "unknown error";
}

/// Why a message was refused. The views are of literals: nothing of the message is quoted, so
/// no key byte can get into a log or an answer.
struct DecodeError {
  DecodeErrorCode code{};
  std::string_view type;            ///< the command, if it was known
  std::string_view field;           ///< the field, if the error is about one
  std::optional<std::uint32_t> id;  ///< for the `failed` answer, if it could be read

  /// `port.set: macs: out of range`, short enough for `failed.why`.
  std::string text() const {
    std::string out;
    if (!type.empty()) out.append(type).append(": ");
    if (!field.empty()) out.append(field).append(": ");
    return out.append(to_text(code));
  }
};

enum class EncodeErrorCode : std::uint8_t {
  out_of_range,   ///< a text, list or integer is over its limit
  too_large,      ///< the message would be over kMaxMessage
  out_of_memory,  ///< no memory to encode into
};

struct EncodeError {
  EncodeErrorCode code{};
  std::string_view field;  ///< the field, if the error is about one
};

namespace detail {

template <std::size_t N>
inline constexpr std::array<std::uint8_t, N> kZeros{};

/// The first thing that was wrong; later ones are consequences and are not kept.
class Problem {
 public:
  void set(DecodeErrorCode code, std::string_view field) noexcept {
    if (!failed_) {
      code_ = code;
      field_ = field;
      failed_ = true;
    }
  }
  bool failed() const noexcept { return failed_; }
  DecodeErrorCode code() const noexcept { return code_; }
  std::string_view field() const noexcept { return field_; }

 private:
  DecodeErrorCode code_{};
  std::string_view field_;
  bool failed_ = false;
};

/// Texts and byte strings stay in the input buffer.
inline bool refer_to_input(msgpack::type::object_type, std::size_t, void*) {
  return true;
}

template <std::unsigned_integral T>
  requires(!std::same_as<T, bool>)
void read_value(const msgpack::object& value, T& out, std::string_view name, Problem& problem) {
  if (value.type != msgpack::type::POSITIVE_INTEGER) {
    problem.set(value.type == msgpack::type::NEGATIVE_INTEGER ? DecodeErrorCode::out_of_range
                                                              : DecodeErrorCode::wrong_type,
                name);
    return;
  }
  constexpr std::uint64_t largest =
      std::min<std::uint64_t>(std::numeric_limits<T>::max(), kMaxSafeInteger);
  if (value.via.u64 > largest) return problem.set(DecodeErrorCode::out_of_range, name);
  out = static_cast<T>(value.via.u64);
}

inline void read_value(const msgpack::object& value, std::int64_t& out, std::string_view name,
                       Problem& problem) {
  if (value.type == msgpack::type::POSITIVE_INTEGER) {
    if (value.via.u64 > kMaxSafeInteger) return problem.set(DecodeErrorCode::out_of_range, name);
    out = static_cast<std::int64_t>(value.via.u64);
  } else if (value.type == msgpack::type::NEGATIVE_INTEGER) {
    if (value.via.i64 < -static_cast<std::int64_t>(kMaxSafeInteger)) {
      return problem.set(DecodeErrorCode::out_of_range, name);
    }
    out = value.via.i64;
  } else {
    problem.set(DecodeErrorCode::wrong_type, name);
  }
}

inline void read_value(const msgpack::object& value, bool& out, std::string_view name,
                       Problem& problem) {
  if (value.type != msgpack::type::BOOLEAN) return problem.set(DecodeErrorCode::wrong_type, name);
  out = value.via.boolean;
}

/// The bytes of a `bin`, as they lie in the input.
inline std::optional<std::span<const std::uint8_t>> binary(const msgpack::object& value,
                                                           std::string_view name,
                                                           Problem& problem) {
  if (value.type != msgpack::type::BIN) {
    problem.set(DecodeErrorCode::wrong_type, name);
    return std::nullopt;
  }
  return std::span(reinterpret_cast<const std::uint8_t*>(value.via.bin.ptr), value.via.bin.size);
}

template <std::size_t N>
void read_value(const msgpack::object& value, std::array<std::uint8_t, N>& out,
                std::string_view name, Problem& problem) {
  const auto bytes = binary(value, name, problem);
  if (!bytes) return;
  if (bytes->size() != N) return problem.set(DecodeErrorCode::out_of_range, name);
  std::copy(bytes->begin(), bytes->end(), out.begin());
}

/// Refers to the input: for keys, which are not copied.
template <std::size_t N>
  requires(N != std::dynamic_extent)
void read_value(const msgpack::object& value, std::span<const std::uint8_t, N>& out,
                std::string_view name, Problem& problem) {
  const auto bytes = binary(value, name, problem);
  if (!bytes) return;
  if (bytes->size() != N) return problem.set(DecodeErrorCode::out_of_range, name);
  out = bytes->template first<N>();
}

template <std::size_t N>
void read_value(const msgpack::object& value, BoundedBytes<N>& out, std::string_view name,
                Problem& problem) {
  const auto bytes = binary(value, name, problem);
  if (bytes && !out.assign(*bytes)) problem.set(DecodeErrorCode::out_of_range, name);
}

inline void read_text(const msgpack::object& value, std::string_view& out, std::size_t limit,
                      std::string_view name, Problem& problem) {
  if (value.type != msgpack::type::STR) return problem.set(DecodeErrorCode::wrong_type, name);
  if (value.via.str.size > limit) return problem.set(DecodeErrorCode::out_of_range, name);
  out = std::string_view(value.via.str.ptr, value.via.str.size);
}

/// One map, read field by field. Exactly the fields asked for must be in it.
class MapReader {
 public:
  MapReader(const msgpack::object& value, std::string_view name, Problem& problem) noexcept
      : problem_(problem) {
    if (value.type == msgpack::type::MAP) {
      entries_ = std::span(value.via.map.ptr, value.via.map.size);
    } else {
      problem_.set(DecodeErrorCode::not_a_map, name);
    }
  }

  template <typename T>
  void value(std::string_view name, T& out) {
    if (const msgpack::object* found = take(name)) read_value(*found, out, name, problem_);
  }

  void text(std::string_view name, std::string_view& out, std::size_t limit) {
    if (const msgpack::object* found = take(name)) read_text(*found, out, limit, name, problem_);
  }

  /// `read_item(object, element, name, problem)` reads one element.
  template <typename T, typename ReadItem>
  void list(std::string_view name, std::vector<T>& out, std::size_t limit, ReadItem read_item) {
    const msgpack::object* found = take(name);
    if (found == nullptr) return;
    if (found->type != msgpack::type::ARRAY) {
      return problem_.set(DecodeErrorCode::wrong_type, name);
    }
    const std::span items(found->via.array.ptr, found->via.array.size);
    if (items.size() > limit) return problem_.set(DecodeErrorCode::out_of_range, name);
    out.clear();
    out.reserve(items.size());
    for (const msgpack::object& item : items) {
      read_item(item, out.emplace_back(), name, problem_);
      if (problem_.failed()) return;
    }
  }

  /// Every field asked for was found; so if there are just as many entries, each of them was
  /// asked for, and none is there twice.
  void finish() noexcept {
    if (!problem_.failed() && entries_.size() != taken_) {
      problem_.set(DecodeErrorCode::unknown_field, {});
    }
  }

 private:
  const msgpack::object* take(std::string_view name) noexcept {
    if (problem_.failed()) return nullptr;
    for (const msgpack::object_kv& entry : entries_) {
      if (entry.key.type == msgpack::type::STR &&
          std::string_view(entry.key.via.str.ptr, entry.key.via.str.size) == name) {
        ++taken_;
        return &entry.val;
      }
    }
    problem_.set(DecodeErrorCode::missing_field, name);
    return nullptr;
  }

  std::span<const msgpack::object_kv> entries_;
  std::size_t taken_ = 0;
  Problem& problem_;
};

/// Appends one frame to a buffer and takes it back if anything is over its limit.
class FrameWriter {
 public:
  FrameWriter(std::vector<std::uint8_t>& out, std::size_t max_message)
      : out_(out), start_(out.size()), max_message_(max_message), packer_(*this) {
    out_.resize(start_ + kLengthSize);
  }

  /// For msgpack::packer.
  void write(const char* data, std::size_t size) {
    if (error_) return;
    if (out_.size() - start_ - kLengthSize + size > max_message_) {
      error_ = EncodeError{EncodeErrorCode::too_large, {}};
      return;
    }
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(data);
    out_.insert(out_.end(), bytes, bytes + size);
  }

  void map(std::size_t fields) { packer_.pack_map(static_cast<std::uint32_t>(fields)); }

  template <typename T>
  void value(std::string_view name, const T& value) {
    key(name);
    item(name, value);
  }

  void text(std::string_view name, std::string_view value, std::size_t limit) {
    key(name);
    text_item(name, value, limit);
  }

  /// `write_item(writer, name, element)` writes one element.
  template <typename T, typename WriteItem>
  void list(std::string_view name, const std::vector<T>& items, std::size_t limit,
            WriteItem write_item) {
    key(name);
    if (items.size() > limit) return fail(name);
    packer_.pack_array(static_cast<std::uint32_t>(items.size()));
    for (const T& element : items) {
      if (error_) return;
      write_item(*this, name, element);
    }
  }

  void text_item(std::string_view name, std::string_view value, std::size_t limit) {
    if (value.size() > limit) return fail(name);
    string(value);
  }

  template <std::unsigned_integral T>
    requires(!std::same_as<T, bool>)
  void item(std::string_view name, T value) {
    if (std::uint64_t{value} > kMaxSafeInteger) return fail(name);
    packer_.pack_uint64(value);
  }
  void item(std::string_view name, std::int64_t value) {
    constexpr auto largest = static_cast<std::int64_t>(kMaxSafeInteger);
    if (value > largest || value < -largest) return fail(name);
    packer_.pack_int64(value);
  }
  void item(std::string_view, bool value) { value ? packer_.pack_true() : packer_.pack_false(); }
  template <std::size_t N>
  void item(std::string_view, const std::array<std::uint8_t, N>& value) {
    binary(value);
  }
  template <std::size_t N>
    requires(N != std::dynamic_extent)
  void item(std::string_view, std::span<const std::uint8_t, N> value) {
    binary(value);
  }
  template <std::size_t N>
  void item(std::string_view, const BoundedBytes<N>& value) {
    binary(value.bytes());
  }

  void key(std::string_view name) { string(name); }

  /// Writes the length, or takes back what was written.
  std::optional<EncodeError> finish() noexcept {
    if (error_) {
      out_.resize(start_);
      return error_;
    }
    const std::size_t length = out_.size() - start_ - kLengthSize;
    for (std::size_t i = 0; i < kLengthSize; ++i) {
      out_[start_ + i] = static_cast<std::uint8_t>(length >> (8 * (kLengthSize - 1 - i)));
    }
    return std::nullopt;
  }

 private:
  void fail(std::string_view name) noexcept {
    if (!error_) error_ = EncodeError{EncodeErrorCode::out_of_range, name};
  }
  void string(std::string_view value) {
    packer_.pack_str(static_cast<std::uint32_t>(value.size()));
    packer_.pack_str_body(value.data(), static_cast<std::uint32_t>(value.size()));
  }
  void binary(std::span<const std::uint8_t> value) {
    packer_.pack_bin(static_cast<std::uint32_t>(value.size()));
    packer_.pack_bin_body(reinterpret_cast<const char*>(value.data()),
                          static_cast<std::uint32_t>(value.size()));
  }

  std::vector<std::uint8_t>& out_;
  std::size_t start_;
  std::size_t max_message_;
  std::optional<EncodeError> error_;
  msgpack::packer<FrameWriter> packer_;
};

/// Runs `body(writer)` and sees to it that `out` is unchanged if that failed.
template <typename Body>
std::optional<EncodeError> encode_frame(std::vector<std::uint8_t>& out, std::size_t max_message,
                                        Body body) noexcept {
  const std::size_t before = out.size();
  try {
    FrameWriter writer(out, max_message);
    body(writer);
    return writer.finish();
  } catch (...) {
    // std::bad_alloc or std::length_error: FrameWriter throws nothing itself.
    if (out.size() > before) out.resize(before);
    return EncodeError{EncodeErrorCode::out_of_memory, {}};
  }
}

}  // namespace detail

/// The length of the message behind `header`; nothing for zero or more than `max_message`, after
/// which the connection can only be closed. Called before memory is taken.
inline std::optional<std::size_t> message_length(std::span<const std::uint8_t, kLengthSize> header,
                                                 std::size_t max_message) noexcept {
  std::size_t length = 0;
  for (const std::uint8_t byte : header) length = (length << 8) | byte;
  if (length == 0 || length > max_message) return std::nullopt;
  return length;
}

}  // namespace pairwire::messages
