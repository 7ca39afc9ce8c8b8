/** This package on the disk: its version, and which native programs are built. */
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';

/** The project's root, from the sources and from dist/ alike. */
export function projectRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'package.json')) && folder !== dirname(folder)) {
    folder = dirname(folder);
  }
  return folder;
}

let version: string | undefined;

/**
 * The version in package.json. Read once: a process that has given up root may not get into the
 * folder any more (a checkout in somebody's home).
 */
export function packageVersion(): string {
  if (version === undefined) {
    const text = readFileSync(join(projectRoot(), 'package.json'), 'utf8');
    version = z.object({ version: z.string() }).parse(JSON.parse(text)).version;
  }
  return version;
}

/** A build for benchmarks or tests, in place of the ordinary one. */
export interface OtherPrograms {
  readonly programs: { readonly devices?: string; readonly dataplane: string };
  /** For the log: nobody runs such a build unawares. */
  readonly warning: string;
}

/**
 * Another build of the native programs, where PAIRWIRE_NATIVE_PRESET in root's own environment says so:
 * `asan` and `tsan` for the laboratory tests, `null` (a data plane without encryption) for benchmarks.
 * No configuration and no installation has them.
 */
export function otherPrograms(): OtherPrograms | undefined {
  const preset = process.env.PAIRWIRE_NATIVE_PRESET;
  const built = (folder: string, name: string): string =>
    join(projectRoot(), 'gateway/native/build', folder, name);
  if (preset === 'null') {
    const candidates = ['null', 'release'].map((one) => built(one, 'pairwire-dataplane-null'));
    const dataplane = candidates.find((path) => existsSync(path)) ?? candidates[0];
    if (dataplane === undefined) return undefined;
    const warning = 'THE DATA PLANE IS A BENCHMARK BUILD AND MAY NOT ENCRYPT';
    return { programs: { dataplane }, warning };
  }
  if (preset !== 'asan' && preset !== 'tsan') return undefined;
  return {
    programs: {
      devices: built(preset, 'pairwire-devices'),
      dataplane: built(preset, 'pairwire-dataplane'),
    },
    warning: 'broker and data plane are a build for tests, and slow',
  };
}
