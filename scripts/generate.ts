/**
 * Makes the files that both languages share. Run by `npm run generate`; with `--check` it
 * changes nothing and fails if a file on disk differs (CI: the tree must not change).
 *
 * | from | to |
 * |---|---|
 * | gateway/dataplane/schema.json | gateway/dataplane/messages.gen.ts, gateway/native/control/messages.gen.hpp |
 * | gateway/native/core/drop-reasons.hpp | gateway/dataplane/drop-reasons.gen.ts |
 *
 * TypeScript is formatted by biome, whose version package.json pins. C++ carries
 * `clang-format off`: versions of clang-format differ, and this output must not.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const SCHEMA = 'gateway/dataplane/schema.json';
const MESSAGES_TS = 'gateway/dataplane/messages.gen.ts';
const MESSAGES_HPP = 'gateway/native/control/messages.gen.hpp';
const DROP_REASONS_HPP = 'gateway/native/core/drop-reasons.hpp';
const DROP_REASONS_TS = 'gateway/dataplane/drop-reasons.gen.ts';

// ---------------------------------------------------------------- the schema

const fieldsSchema = z.record(z.string().regex(/^[a-z][A-Za-z0-9]*$/), z.string());
const messageName = z.string().regex(/^[a-z]+(\.[a-z]+)?$/);
const schemaSchema = z.strictObject({
  about: z.string(),
  maxMessage: z.int().positive(),
  structs: z.record(z.string().regex(/^[a-z][A-Za-z0-9]*$/), fieldsSchema),
  commands: z.record(
    messageName,
    z.strictObject({ about: z.string(), fields: fieldsSchema, answer: messageName }),
  ),
  answers: z.record(messageName, fieldsSchema),
  events: z.record(messageName, z.strictObject({ about: z.string(), fields: fieldsSchema })),
});
type Schema = z.infer<typeof schemaSchema>;
type Fields = z.infer<typeof fieldsSchema>;

/** A field's type, parsed. */
type FieldType =
  | { kind: 'integer'; bits: 8 | 16 | 32 | 64; signed: boolean }
  | { kind: 'bool' }
  | { kind: 'text'; limit: number }
  | { kind: 'bytes'; size: number }
  | { kind: 'boundedBytes'; limit: number }
  | { kind: 'list'; limit: number; of: FieldType }
  | { kind: 'struct'; name: string };

function parseType(text: string, structs: ReadonlySet<string>): FieldType {
  const integer = /^(u8|u16|u32|u64|i64)$/.exec(text);
  if (integer) {
    const bits = Number(text.slice(1));
    if (bits === 8 || bits === 16 || bits === 32 || bits === 64) {
      return { kind: 'integer', bits, signed: text.startsWith('i') };
    }
  }
  if (text === 'bool') return { kind: 'bool' };
  const limit = (value: string | undefined): number => {
    const number = Number(value);
    if (!Number.isSafeInteger(number) || number < 1 || number > 65_536) {
      throw new Error(`${SCHEMA}: "${text}" has no usable limit`);
    }
    return number;
  };
  const str = /^str:(\d+)$/.exec(text);
  if (str) return { kind: 'text', limit: limit(str[1]) };
  const bytes = /^bytes:(\d+)$/.exec(text);
  if (bytes) return { kind: 'bytes', size: limit(bytes[1]) };
  const bounded = /^bytes<=(\d+)$/.exec(text);
  if (bounded) return { kind: 'boundedBytes', limit: limit(bounded[1]) };
  const list = /^list:(\d+) of (.+)$/.exec(text);
  if (list?.[2] !== undefined) {
    const of = parseType(list[2], structs);
    if (of.kind === 'list') throw new Error(`${SCHEMA}: a list of lists, "${text}"`);
    return { kind: 'list', limit: limit(list[1]), of };
  }
  if (structs.has(text)) return { kind: 'struct', name: text };
  throw new Error(`${SCHEMA}: unknown type "${text}"`);
}

interface Field {
  name: string;
  type: FieldType;
}
interface Message {
  name: string;
  about: string;
  fields: Field[];
}
interface Model {
  maxMessage: number;
  structs: Message[];
  commands: (Message & { answer: string })[];
  answers: Message[];
  events: Message[];
}

function parseSchema(schema: Schema): Model {
  const structNames = new Set(Object.keys(schema.structs));
  const fieldsOf = (where: string, fields: Fields): Field[] =>
    Object.entries(fields).map(([name, text]) => {
      // These two belong to the envelope.
      if (name === 't' || name === 'id') throw new Error(`${SCHEMA}: ${where} has a field ${name}`);
      return { name, type: parseType(text, structNames) };
    });
  const structs = Object.entries(schema.structs).map(([name, fields]) => ({
    name,
    about: '',
    fields: fieldsOf(name, fields),
  }));
  // C++ wants a struct before its use; so does `const` in TypeScript.
  const seen = new Set<string>();
  for (const struct of structs) {
    for (const { type } of struct.fields) {
      const inner = type.kind === 'list' ? type.of : type;
      if (inner.kind === 'struct' && !seen.has(inner.name)) {
        throw new Error(`${SCHEMA}: struct ${struct.name} uses ${inner.name}, which comes later`);
      }
    }
    seen.add(struct.name);
  }
  const commands = Object.entries(schema.commands).map(([name, { about, fields, answer }]) => {
    if (schema.answers[answer] === undefined) {
      throw new Error(`${SCHEMA}: ${name} is answered by ${answer}, which is no answer`);
    }
    return { name, about, answer, fields: fieldsOf(name, fields) };
  });
  const answers = Object.entries(schema.answers).map(([name, fields]) => ({
    name,
    about: '',
    fields: fieldsOf(name, fields),
  }));
  const events = Object.entries(schema.events).map(([name, { about, fields }]) => {
    // Answers and events come down one stream and are told apart by `t`.
    if (schema.answers[name] !== undefined) throw new Error(`${SCHEMA}: ${name} is both`);
    return { name, about, fields: fieldsOf(name, fields) };
  });
  return { maxMessage: schema.maxMessage, structs, commands, answers, events };
}

const pascal = (name: string): string =>
  name.replace(/(^|\.)([a-z])/g, (_, __, letter: string) => letter.toUpperCase());
const snake = (name: string): string => name.replace(/[A-Z]/g, (l) => `_${l.toLowerCase()}`);

// ---------------------------------------------------------------- TypeScript

function tsType(type: FieldType): string {
  switch (type.kind) {
    case 'integer':
      if (type.bits === 64) return type.signed ? 'i64' : 'u64';
      return `u${type.bits}`;
    case 'bool':
      return 'z.boolean()';
    case 'text':
      return `text(${type.limit})`;
    case 'bytes':
      return `bytes(${type.size})`;
    case 'boundedBytes':
      return `bytesUpTo(${type.limit})`;
    case 'list':
      return `z.array(${tsType(type.of)}).max(${type.limit})`;
    case 'struct':
      return `${type.name}Schema`;
  }
}

const comment = (about: string, indent = ''): string =>
  about === '' ? '' : `${indent}/** ${about.replaceAll('*/', '* /')} */\n`;

function tsObject(fields: readonly Field[], envelope = ''): string {
  const body = fields.map(({ name, type }) => `${name}: ${tsType(type)},`).join('\n');
  return `z.strictObject({ ${envelope}\n${body}\n})`;
}

function messagesTs(model: Model): string {
  const structs = model.structs
    .map(
      ({ name, fields }) =>
        `export const ${name}Schema = ${tsObject(fields)};\nexport type ${pascal(name)} = z.infer<typeof ${name}Schema>;`,
    )
    .join('\n\n');
  const group = (list: readonly Message[], withId: boolean): string =>
    list
      .map(
        ({ name, about, fields }) =>
          `${comment(about)}'${name}': ${tsObject(fields, `t: z.literal('${name}'),${withId ? ' id: u32,' : ''}`)},`,
      )
      .join('\n');
  const union = (list: readonly Message[], table: string): string =>
    `z.discriminatedUnion('t', [${list
      .map(({ name }) => (name.includes('.') ? `${table}['${name}']` : `${table}.${name}`))
      .join(', ')}])`;
  return `/**
 * What the control plane and the data plane say to each other.
 *
 * Made by scripts/generate.ts from gateway/dataplane/schema.json: change that file.
 * The C++ side is gateway/native/control/messages.gen.hpp. Frame: 4-byte big-endian length,
 * then one MessagePack map {t, id?, ...fields}; commands and answers carry id, events none.
 */
import { z } from 'zod';

/** A longer message closes the connection. */
export const MAX_MESSAGE = ${model.maxMessage};

const u8 = z.int().min(0).max(0xff);
const u16 = z.int().min(0).max(0xffff);
const u32 = z.int().min(0).max(0xffff_ffff);
/** At most 2^53 - 1, so that both languages hold it exactly. */
const u64 = z.int().min(0).max(Number.MAX_SAFE_INTEGER);
const i64 = z.int().min(-Number.MAX_SAFE_INTEGER).max(Number.MAX_SAFE_INTEGER);

/** A text of at most so many bytes in UTF-8. */
const text = (limit: number) =>
  z.string().refine((value) => Buffer.byteLength(value, 'utf8') <= limit, \`at most \${limit} bytes\`);
const bytes = (size: number) =>
  z.custom<Uint8Array>((value) => value instanceof Uint8Array && value.length === size, \`\${size} bytes\`);
const bytesUpTo = (limit: number) =>
  z.custom<Uint8Array>(
    (value) => value instanceof Uint8Array && value.length <= limit,
    \`at most \${limit} bytes\`,
  );

${structs}

/** Downwards, by type. */
export const commandSchemas = {
${group(model.commands, true)}
} as const;

/** Upwards, in answer to a command, by type. */
export const answerSchemas = {
${group(model.answers, true)}
} as const;

/** Upwards, unasked, by type. */
export const eventSchemas = {
${group(model.events, false)}
} as const;

export const commandSchema = ${union(model.commands, 'commandSchemas')};
export const answerSchema = ${union(model.answers, 'answerSchemas')};
export const eventSchema = ${union(model.events, 'eventSchemas')};
/** Whatever the data plane sends: to be treated as hostile until it went through here. */
export const upwardSchema = z.discriminatedUnion('t', [answerSchema, eventSchema]);

export type CommandType = keyof typeof commandSchemas;
export type AnswerType = keyof typeof answerSchemas;
export type EventType = keyof typeof eventSchemas;
export type CommandOf<T extends CommandType> = z.infer<(typeof commandSchemas)[T]>;
export type AnswerOf<T extends AnswerType> = z.infer<(typeof answerSchemas)[T]>;
export type EventOf<T extends EventType> = z.infer<(typeof eventSchemas)[T]>;
export type Command = z.infer<typeof commandSchema>;
export type Answer = z.infer<typeof answerSchema>;
export type Event = z.infer<typeof eventSchema>;
export type Upward = z.infer<typeof upwardSchema>;
/** A command's own fields, without the envelope. */
export type CommandFields<T extends CommandType> = Omit<CommandOf<T>, 't' | 'id'>;

/** What a command is answered by when it succeeds; \`failed\` otherwise. */
export const ANSWER_TO = {
${model.commands.map(({ name, answer }) => `'${name}': '${answer}',`).join('\n')}
} as const satisfies Record<CommandType, AnswerType>;
export type AnswerTo<T extends CommandType> = AnswerOf<(typeof ANSWER_TO)[T]>;
`;
}

// ---------------------------------------------------------------- C++

const CPP_KEYWORDS = new Set([
  'public',
  'private',
  'default',
  'new',
  'delete',
  'class',
  'union',
  'register',
]);
const cppName = (name: string): string => {
  const out = snake(name);
  return CPP_KEYWORDS.has(out) ? `${out}_` : out;
};

/**
 * Byte strings of 32 bytes in commands are keys: spans of the input, so that no copy is left
 * that nobody wipes. Texts of commands refer to the input too; all else owns its bytes.
 */
const REFERRED_SIZE = 32;

function cppType(type: FieldType, inCommand: boolean): string {
  switch (type.kind) {
    case 'integer':
      return `std::${type.signed ? '' : 'u'}int${type.bits}_t`;
    case 'bool':
      return 'bool';
    case 'text':
      return inCommand ? 'std::string_view' : 'std::string';
    case 'bytes':
      return inCommand && type.size === REFERRED_SIZE
        ? `std::span<const std::uint8_t, ${type.size}>`
        : `std::array<std::uint8_t, ${type.size}>`;
    case 'boundedBytes':
      return `BoundedBytes<${type.limit}>`;
    case 'list':
      return `std::vector<${cppType(type.of, inCommand)}>`;
    case 'struct':
      return pascal(type.name);
  }
}

function cppStruct(
  name: string,
  about: string,
  wire: string | undefined,
  fields: readonly Field[],
  inCommand: boolean,
): string {
  const limit = (type: FieldType): string => {
    if (type.kind === 'text') return `at most ${type.limit} bytes`;
    if (type.kind === 'list') {
      const inner = limit(type.of);
      return `at most ${type.limit}${inner === '' ? '' : `, each ${inner}`}`;
    }
    return '';
  };
  const lines = fields.map(({ name: field, type }) => {
    const cpp = cppType(type, inCommand);
    const initial =
      inCommand && type.kind === 'bytes' && type.size === REFERRED_SIZE
        ? `{detail::kZeros<${type.size}>}`
        : type.kind === 'integer' || type.kind === 'bool' || type.kind === 'bytes'
          ? '{}'
          : '';
    const note = limit(type);
    return `  ${cpp} ${cppName(field)}${initial};${note === '' ? '' : `  ///< ${note}`}`;
  });
  const head = about === '' ? '' : `/// ${about}\n`;
  const type = wire === undefined ? '' : `  static constexpr std::string_view kType = "${wire}";\n`;
  return `${head}struct ${name} {\n${type}${lines.join('\n')}${lines.length > 0 ? '\n' : ''}};`;
}

function cppReads(fields: readonly Field[]): string {
  return fields
    .map(({ name, type }) => {
      const out = `out.${cppName(name)}`;
      if (type.kind === 'text') return `  map.text("${name}", ${out}, ${type.limit});`;
      if (type.kind === 'list') {
        const item = cppType(type.of, true);
        const body =
          type.of.kind === 'text'
            ? `read_text(value, item, ${type.of.limit}, name, problem);`
            : 'read_value(value, item, name, problem);';
        return `  map.list("${name}", ${out}, ${type.limit}, [](const msgpack::object& value, ${item}& item, std::string_view name, Problem& problem) { ${body} });`;
      }
      return `  map.value("${name}", ${out});`;
    })
    .join('\n');
}

function cppWrites(fields: readonly Field[]): string {
  return fields
    .map(({ name, type }) => {
      const value = `value.${cppName(name)}`;
      if (type.kind === 'text') return `  writer.text("${name}", ${value}, ${type.limit});`;
      if (type.kind === 'struct')
        return `  writer.key("${name}");\n  write_item(writer, ${value});`;
      if (type.kind === 'list') {
        const body =
          type.of.kind === 'text'
            ? `out.text_item(name, item, ${type.of.limit});`
            : type.of.kind === 'struct'
              ? 'static_cast<void>(name); write_item(out, item);'
              : 'out.item(name, item);';
        return `  writer.list("${name}", ${value}, ${type.limit}, [](FrameWriter& out, std::string_view name, const auto& item) { ${body} });`;
      }
      return `  writer.value("${name}", ${value});`;
    })
    .join('\n');
}

function messagesHpp(model: Model): string {
  const structOf = new Map(model.structs.map((struct) => [struct.name, struct]));
  // Only the structs that occur in commands are ever read here.
  const readStructs = new Set<string>();
  const need = (fields: readonly Field[]): void => {
    for (const { type } of fields) {
      const inner = type.kind === 'list' ? type.of : type;
      if (inner.kind === 'struct') {
        readStructs.add(inner.name);
        need(structOf.get(inner.name)?.fields ?? []);
      }
    }
  };
  for (const { fields } of model.commands) need(fields);
  for (const name of readStructs) {
    for (const { name: field, type } of structOf.get(name)?.fields ?? []) {
      const inner = type.kind === 'list' ? type.of : type;
      if (inner.kind === 'text') {
        throw new Error(
          `${SCHEMA}: ${name}.${field}: texts in structs of commands are not supported`,
        );
      }
    }
  }
  // What msgpack-cxx may build before the fields are looked at.
  let longestList = 0;
  let longestText = 0;
  let longestBytes = 0;
  let widestMap = 0;
  const measure = (fields: readonly Field[], envelope: number): void => {
    widestMap = Math.max(widestMap, fields.length + envelope);
    for (const { name, type } of fields) {
      longestText = Math.max(longestText, name.length);
      for (const t of type.kind === 'list' ? [type, type.of] : [type]) {
        if (t.kind === 'list') longestList = Math.max(longestList, t.limit);
        if (t.kind === 'text') longestText = Math.max(longestText, t.limit);
        if (t.kind === 'bytes') longestBytes = Math.max(longestBytes, t.size);
        if (t.kind === 'boundedBytes') longestBytes = Math.max(longestBytes, t.limit);
      }
    }
  };
  for (const { fields, name } of model.commands) {
    measure(fields, 2);
    longestText = Math.max(longestText, name.length);
  }
  for (const name of readStructs) measure(structOf.get(name)?.fields ?? [], 0);

  const messageGroup = (namespace: string, list: readonly Message[], inCommand: boolean): string =>
    `namespace ${namespace} {

${list.map(({ name, about, fields }) => cppStruct(pascal(name), about, name, fields, inCommand)).join('\n\n')}

}  // namespace ${namespace}`;
  const variant = (namespace: string, list: readonly Message[]): string =>
    `std::variant<${list.map(({ name }) => `${namespace}::${pascal(name)}`).join(', ')}>`;
  const write = (
    type: string,
    name: string | undefined,
    fields: readonly Field[],
    withId: boolean,
  ): string => {
    if (name === undefined) {
      return `inline void write_item(FrameWriter& writer, const ${type}& value) {
  writer.map(${fields.length});
${cppWrites(fields)}
}`;
    }
    const count = fields.length + (withId ? 2 : 1);
    const unused = fields.length === 0 ? '[[maybe_unused]] ' : '';
    return `inline void write_message(FrameWriter& writer, ${withId ? 'std::uint32_t id, ' : ''}${unused}const ${type}& value) {
  writer.map(${count});
  writer.text("t", ${type}::kType, ${type}::kType.size());
${withId ? '  writer.value("id", id);\n' : ''}${cppWrites(fields)}${fields.length > 0 ? '\n' : ''}}`;
  };

  return `/// What the control plane and the data plane say to each other.
///
/// Made by scripts/generate.ts from gateway/dataplane/schema.json: change that file. The
/// TypeScript side is gateway/dataplane/messages.gen.ts. Frame: 4-byte big-endian length,
/// then one MessagePack map {t, id?, ...fields}; commands and answers carry id, events none.
///
/// Threads: functions of their arguments alone.
// clang-format off
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "codec.hpp"

namespace pairwire::messages {

/// A longer message closes the connection.
inline constexpr std::size_t kMaxMessage = ${model.maxMessage};

${model.structs.map(({ name, fields }) => cppStruct(pascal(name), '', undefined, fields, false)).join('\n\n')}

/// Downwards. Texts and byte strings of ${REFERRED_SIZE} bytes (keys) refer to the buffer that was decoded: they
/// are valid while it lives, and its owner wipes it.
${messageGroup('command', model.commands, true)}

/// Upwards, in answer to a command.
${messageGroup('answer', model.answers, false)}

/// Upwards, unasked.
${messageGroup('event', model.events, false)}

using Command = ${variant('command', model.commands)};
using Answer = ${variant('answer', model.answers)};
using Event = ${variant('event', model.events)};

/// A command as it came in.
struct Request {
  std::uint32_t id = 0;
  Command command;
};

using DecodeResult = std::variant<Request, DecodeError>;

namespace detail {

${model.structs
  .filter(({ name }) => readStructs.has(name))
  .map(
    ({
      name,
      fields,
    }) => `inline void read_value(const msgpack::object& value, ${pascal(name)}& out, std::string_view name, Problem& problem) {
  MapReader map(value, name, problem);
${cppReads(fields)}
  map.finish();
}`,
  )
  .join('\n\n')}

${model.commands
  .map(
    ({
      name,
      fields,
    }) => `inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::${pascal(name)}& out) {
${cppReads(fields)}${fields.length > 0 ? '\n' : ''}}`,
  )
  .join('\n\n')}

template <typename Message>
DecodeResult read_command(const msgpack::object& root, std::uint32_t id) {
  Problem problem;
  Message message;
  std::string_view type;
  std::uint32_t same_id = 0;
  MapReader map(root, {}, problem);
  map.text("t", type, Message::kType.size());
  map.value("id", same_id);
  read_fields(map, message);
  map.finish();
  if (problem.failed()) return DecodeError{problem.code(), Message::kType, problem.field(), id};
  return Request{id, Command(std::move(message))};
}

${model.structs.map(({ name, fields }) => write(pascal(name), undefined, fields, false)).join('\n\n')}

${model.commands.map(({ name, fields }) => write(`command::${pascal(name)}`, name, fields, true)).join('\n\n')}

${model.answers.map(({ name, fields }) => write(`answer::${pascal(name)}`, name, fields, true)).join('\n\n')}

${model.events.map(({ name, fields }) => write(`event::${pascal(name)}`, name, fields, false)).join('\n\n')}

inline DecodeResult decode_command(std::span<const std::uint8_t> message) {
  // No list, text or map of a command is longer; depth: map, list, struct.
  const msgpack::unpack_limit limit(${longestList}, ${widestMap}, ${longestText}, ${longestBytes}, 0, 4);
  std::size_t offset = 0;
  bool referenced = false;
  const auto* data = reinterpret_cast<const char*>(message.data());
  const msgpack::object_handle handle = msgpack::unpack(data, message.size(), offset, referenced, refer_to_input, nullptr, limit);
  if (offset != message.size()) return DecodeError{DecodeErrorCode::not_msgpack, {}, {}, {}};
  const msgpack::object& root = handle.get();
  if (root.type != msgpack::type::MAP) return DecodeError{DecodeErrorCode::not_a_map, {}, {}, {}};

  // The envelope first, so that a refusal can be answered under its id.
  Problem problem;
  std::uint32_t id = 0;
  MapReader envelope(root, {}, problem);
  envelope.value("id", id);
  if (problem.failed()) return DecodeError{DecodeErrorCode::bad_id, {}, {}, {}};
  std::string_view type;
  envelope.text("t", type, ${longestText});
  if (problem.failed()) return DecodeError{DecodeErrorCode::unknown_type, {}, {}, id};
${model.commands.map(({ name }) => `  if (type == command::${pascal(name)}::kType) return read_command<command::${pascal(name)}>(root, id);`).join('\n')}
  return DecodeError{DecodeErrorCode::unknown_type, {}, {}, id};
}

}  // namespace detail

/// Decodes one message (without its length). The result refers to \`message\`.
inline DecodeResult decode_command(std::span<const std::uint8_t> message) noexcept {
  if (message.empty() || message.size() > kMaxMessage) {
    return DecodeError{DecodeErrorCode::not_msgpack, {}, {}, {}};
  }
  try {
    return detail::decode_command(message);
  } catch (const std::bad_alloc&) {
    return DecodeError{DecodeErrorCode::out_of_memory, {}, {}, {}};
  } catch (...) {
    // msgpack-cxx throws for what is cut short, malformed or over a limit.
    return DecodeError{DecodeErrorCode::not_msgpack, {}, {}, {}};
  }
}

/// Appends one frame (length and message) to \`out\`; on an error \`out\` is as it was.
inline std::optional<EncodeError> encode_answer(std::uint32_t id, const Answer& answer, std::vector<std::uint8_t>& out) noexcept {
  return detail::encode_frame(out, kMaxMessage, [&](detail::FrameWriter& writer) {
    std::visit([&](const auto& value) { detail::write_message(writer, id, value); }, answer);
  });
}

/// Appends one frame (length and message) to \`out\`; on an error \`out\` is as it was.
inline std::optional<EncodeError> encode_event(const Event& event, std::vector<std::uint8_t>& out) noexcept {
  return detail::encode_frame(out, kMaxMessage, [&](detail::FrameWriter& writer) {
    std::visit([&](const auto& value) { detail::write_message(writer, value); }, event);
  });
}

/// The other direction, for tests and benchmarks. \`out\` then holds keys: its owner wipes it.
inline std::optional<EncodeError> encode_command(std::uint32_t id, const Command& command, std::vector<std::uint8_t>& out) noexcept {
  return detail::encode_frame(out, kMaxMessage, [&](detail::FrameWriter& writer) {
    std::visit([&](const auto& value) { detail::write_message(writer, id, value); }, command);
  });
}

}  // namespace pairwire::messages
`;
}

// ---------------------------------------------------------------- drop reasons

/**
 * Reads the X-macro list: \`#define ..._DROP_REASONS(X) X(name, "sentence") ...\`, with any
 * line breaks and adjacent string literals; where an entry has more texts, the last one is
 * the sentence.
 */
function parseDropReasons(source: string): { name: string; sentence: string }[] {
  const joined = source.replace(/\\\r?\n/g, ' ');
  const define = /^#define\s+\w*DROP_REASON\w*\((\w+)\)[ \t]*(.*)$/m.exec(joined);
  if (define?.[1] === undefined || define[2] === undefined) {
    throw new Error(`${DROP_REASONS_HPP}: no list of drop reasons (#define ..._DROP_REASONS(X))`);
  }
  const body = define[2].replace(/\/\*.*?\*\//g, ' ');
  const literal = '"(?:[^"\\\\]|\\\\.)*"';
  const entry = new RegExp(
    `\\b${define[1]}\\(\\s*([A-Za-z_]\\w*)\\s*((?:,\\s*(?:${literal}\\s*)+|,\\s*[\\w:]+\\s*)+)\\)`,
    'g',
  );
  const reasons: { name: string; sentence: string }[] = [];
  for (const match of body.matchAll(entry)) {
    const name = match[1] ?? '';
    const last = [...(match[2] ?? '').matchAll(new RegExp(`,\\s*((?:${literal}\\s*)+)`, 'g'))].at(
      -1,
    )?.[1];
    if (last === undefined) throw new Error(`${DROP_REASONS_HPP}: ${name} has no sentence`);
    const sentence = [...last.matchAll(new RegExp(literal, 'g'))]
      .map(([text]) => z.string().parse(JSON.parse(text)))
      .join('');
    reasons.push({ name, sentence });
  }
  const calls = [...body.matchAll(new RegExp(`\\b${define[1]}\\(`, 'g'))].length;
  if (reasons.length === 0 || reasons.length !== calls) {
    throw new Error(`${DROP_REASONS_HPP}: ${reasons.length} of ${calls} entries understood`);
  }
  return reasons;
}

function dropReasonsTs(source: string): string {
  const reasons = parseDropReasons(source);
  return `/**
 * Why a frame was dropped: names as in the counters of the data plane, each with a sentence.
 *
 * Made by scripts/generate.ts from gateway/native/core/drop-reasons.hpp: change that file.
 */
export const DROP_REASONS = {
${reasons.map(({ name, sentence }) => `'${name}': ${JSON.stringify(sentence)},`).join('\n')}
} as const;

export type DropReason = keyof typeof DROP_REASONS;

/** The names, in the order of the data plane's list. */
export const DROP_REASON_NAMES = Object.keys(DROP_REASONS) as readonly DropReason[];
`;
}

// ---------------------------------------------------------------- main

function biome(path: string, source: string): string {
  return execFileSync(
    join(root, 'node_modules/.bin/biome'),
    ['format', `--stdin-file-path=${path}`],
    { cwd: root, input: source, encoding: 'utf8', maxBuffer: 16 << 20 },
  );
}

function main(): void {
  const arguments_ = process.argv.slice(2);
  const check = arguments_.includes('--check');
  const unknown = arguments_.filter((argument) => argument !== '--check');
  if (unknown.length > 0)
    throw new Error(`unknown argument ${unknown.join(' ')}; there is --check`);

  const read = (path: string): string => readFileSync(join(root, path), 'utf8');
  const model = parseSchema(schemaSchema.parse(JSON.parse(read(SCHEMA))));
  const outputs = new Map([
    [MESSAGES_TS, biome(MESSAGES_TS, messagesTs(model))],
    [MESSAGES_HPP, messagesHpp(model)],
  ]);
  if (existsSync(join(root, DROP_REASONS_HPP))) {
    outputs.set(DROP_REASONS_TS, biome(DROP_REASONS_TS, dropReasonsTs(read(DROP_REASONS_HPP))));
  }

  let different = 0;
  for (const [path, content] of outputs) {
    const old = existsSync(join(root, path)) ? read(path) : undefined;
    if (old === content) continue;
    different += 1;
    if (check) {
      console.error(`${path} is not what its source says: run npm run generate`);
    } else {
      writeFileSync(join(root, path), content);
      console.log(`wrote ${path}`);
    }
  }
  if (check && different > 0) process.exitCode = 1;
}

try {
  main();
} catch (thrown) {
  console.error(`generate: ${thrown instanceof Error ? thrown.message : String(thrown)}`);
  process.exitCode = 1;
}
