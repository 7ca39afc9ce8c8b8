/** Configuration errors say where and what would be right; a good file becomes a frozen object. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { z } from 'zod';
import {
  keyServerConfigSchema,
  keyServerJsonSchema,
  loadKeyServerConfig,
} from '../../../../keyserver/config.js';
import { kmsConfigSchema, kmsJsonSchema } from '../../../../keyserver/kms/config.js';
import { ConfigError, loadYaml, parseYaml } from '../../../../src/settings/load-yaml.js';

const schema = z.strictObject({
  name: z.string(),
  log: z
    .strictObject({
      level: z.enum(['info', 'debug']).default('info'),
      size: z.int().max(9).default(1),
    })
    .prefault({}),
  list: z.array(z.strictObject({ port: z.int().min(1) })).default([]),
});

function issuesOf(text: string): readonly string[] {
  try {
    parseYaml(text, schema, 'f.yaml');
  } catch (thrown) {
    if (thrown instanceof ConfigError) {
      expect(thrown.code).toBe('CONFIG_INVALID');
      return thrown.message.split('\n');
    }
    throw thrown;
  }
  return [];
}

describe('parseYaml', () => {
  it('gives defaults and freezes all of it', () => {
    const value = parseYaml('name: x\nlist: [{port: 1}]\n', schema, 'f.yaml');
    expect(value).toEqual({ name: 'x', log: { level: 'info', size: 1 }, list: [{ port: 1 }] });
    expect(
      Object.isFrozen(value) && Object.isFrozen(value.log) && Object.isFrozen(value.list[0]),
    ).toBe(true);
  });

  it('names file, line, column, setting and what is allowed, for every mistake at once', () => {
    const text = 'name: 3\nlog:\n  level: loud\n  size: 10\n  colour: red\nlist:\n  - port: 0\n';
    expect(issuesOf(text)).toEqual([
      'f.yaml:1:7: name: expected string, received number',
      'f.yaml:3:10: log.level: must be one of: info, debug',
      'f.yaml:4:9: log.size: Too big: expected number to be <=9',
      'f.yaml:5:3: log.colour: is not a setting; allowed: level, size',
      'f.yaml:7:11: list.0.port: Too small: expected number to be >=1',
    ]);
  });

  it('places a missing setting at the thing it is missing from', () => {
    expect(issuesOf('log: {}\n')).toEqual(['f.yaml:1:1: name: is missing (string)']);
    expect(issuesOf('name: x\nlist:\n  - {}\n')).toEqual([
      'f.yaml:3:5: list.0.port: is missing (number)',
    ]);
    expect(issuesOf('')).toEqual(['f.yaml:1:1: name: is missing (string)']);
  });

  it('reports what is not YAML, doubled keys and alias bombs', () => {
    expect(issuesOf('name: [1\n')[0]).toMatch(/^f\.yaml:\d+:\d+: /);
    expect(issuesOf('name: a\nname: b\n')[0]).toMatch(/^f\.yaml:2:1: .*unique/);
    const bomb = ['a: &a [x,x,x,x,x,x,x,x,x]', ...'bcdefg'].map((line, at, all) =>
      at === 0
        ? line
        : `${line}: &${line} [${Array(9)
            .fill(`*${all[at - 1]?.[0]}`)
            .join(',')}]`,
    );
    expect(issuesOf(bomb.join('\n'))[0]).toMatch(/alias/i);
  });
});

describe('files', () => {
  it('a missing one is CONFIG_NOT_FOUND', () => {
    expect(() => loadYaml('/nonexistent.yaml', schema)).toThrow(
      expect.objectContaining({ code: 'CONFIG_NOT_FOUND', where: '/nonexistent.yaml' }) as Error,
    );
  });

  it('the key server example loads and shows every setting', () => {
    const root = new URL('../../../../', import.meta.url).pathname;
    const text = readFileSync(join(root, 'config/keyserver.example.yaml'), 'utf8');
    const config = parseYaml(text, keyServerConfigSchema, 'keyserver.example.yaml');
    const shape = Object.keys(keyServerConfigSchema.shape);
    expect(Object.keys(config).sort()).toEqual(shape.sort());
    for (const name of shape) expect(text).toMatch(new RegExp(`^${name}:`, 'm'));
    const schemaFile = readFileSync(join(root, 'config/schema/keyserver.json'), 'utf8');
    expect(JSON.parse(schemaFile)).toEqual(keyServerJsonSchema());
  });

  it('the KMS example loads and shows every setting', () => {
    const root = new URL('../../../../', import.meta.url).pathname;
    const text = readFileSync(join(root, 'config/kms.example.yaml'), 'utf8');
    const config = parseYaml(text, kmsConfigSchema, 'kms.example.yaml');
    expect(Object.keys(config).sort()).toEqual(Object.keys(kmsConfigSchema.shape).sort());
    const schemaFile = readFileSync(join(root, 'config/schema/kms.json'), 'utf8');
    expect(JSON.parse(schemaFile)).toEqual(kmsJsonSchema());
  });

  it('nesting that would use up the stack is refused where it begins to be too deep', () => {
    const deep = 5_000;
    for (const text of [
      '['.repeat(deep) + ']'.repeat(deep),
      '{a: '.repeat(deep),
      '- '.repeat(deep),
      '? '.repeat(deep),
    ]) {
      expect(issuesOf(`name: x\nlist: ${text}\n`)).toEqual(['f.yaml:2:1: is nested too deeply']);
    }
    expect(issuesOf(`name: x\n${' '.repeat(300)}a: 1\n`)).toEqual([
      'f.yaml:2:1: is nested too deeply',
    ]);
  });

  it('metrics on a foreign address are refused', () => {
    const dir = mkdtempSync(join(tmpdir(), 'pairwire-config-'));
    try {
      writeFileSync(join(dir, 'keyserver.yaml'), 'subnet: east\nmetrics: {listen: 0.0.0.0:9465}\n');
      expect(() => loadKeyServerConfig(dir)).toThrow(/loopback/);
      const relay = (addresses: number): string =>
        `subnet: east\nrelay: {listen: '192.0.2.1:7901', advertise: [${"'192.0.2.1:7901', ".repeat(addresses)}]}\n`;
      writeFileSync(join(dir, 'keyserver.yaml'), relay(4));
      expect(loadKeyServerConfig(dir).relay?.advertise).toHaveLength(4);
      writeFileSync(join(dir, 'keyserver.yaml'), relay(5));
      expect(() => loadKeyServerConfig(dir)).toThrow(/relay\.advertise/);
      writeFileSync(join(dir, 'keyserver.yaml'), 'subnet: East!\nlisten: here\n');
      expect(() => loadKeyServerConfig(dir)).toThrow(
        /keyserver\.yaml:1:9: subnet: an id has[\s\S]*:2:9: listen: must be HOST:PORT/,
      );
    } finally {
      rmSync(dir, { recursive: true, force: true });
    }
  });
});
