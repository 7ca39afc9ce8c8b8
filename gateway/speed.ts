/**
 * How fast this machine encrypts: asks the data plane's program, which measures each backend that it
 * has for each suite and several sizes of frame. Needs no rights and no running gateway.
 */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { z } from 'zod';
import { PairwireError } from '../src/runtime/errors.js';
import { findProgram } from '../src/runtime/native-program.js';
import { otherPrograms } from './native-programs.js';

const TIMEOUT_MS = 60_000;

const speedSchema = z.object({
  results: z.array(
    z.object({
      backend: z.string().max(20),
      suite: z.string().max(20),
      /** Bytes of the inner frame. */
      size: z.int().positive(),
      seal_ns: z.number().positive(),
      open_ns: z.number().positive(),
    }),
  ),
});

/** One measurement. `gbitPerSecond` is what one core seals. */
export interface Speed {
  readonly backend: string;
  readonly suite: string;
  readonly size: number;
  readonly sealNs: number;
  readonly openNs: number;
  readonly gbitPerSecond: number;
}

/** Measures for about two seconds. @throws PairwireError PLATFORM if the program is missing or fails */
export async function measureSpeed(): Promise<Speed[]> {
  const program = otherPrograms()?.programs.dataplane ?? findProgram('pairwire-dataplane');
  const { stdout } = await promisify(execFile)(program, ['--speed'], {
    timeout: TIMEOUT_MS,
    env: {},
  }).catch((thrown: Error) => {
    throw new PairwireError('PLATFORM', `the data plane could not measure: ${thrown.message}`, {
      where: program,
    });
  });
  return speedSchema.parse(JSON.parse(stdout)).results.map((one) => ({
    backend: one.backend,
    suite: one.suite,
    size: one.size,
    sealNs: one.seal_ns,
    openNs: one.open_ns,
    gbitPerSecond: Math.round((one.size * 800) / one.seal_ns) / 100,
  }));
}
