/**
 * A laboratory for the tests of one file: made before the first, taken down after the last. Where a
 * test fails, the last lines of every program's log are printed.
 */
import { readlinkSync } from 'node:fs';
import { afterAll, afterEach, beforeAll, expect } from 'vitest';
import { Lab, type LabOptions } from '../../../scripts/laboratory/lab.js';
import { pidsIn } from '../../../scripts/laboratory/network.js';
import type { TopologyInput } from '../../../scripts/laboratory/topology.js';

/** The laboratory, once it is there. */
export interface LabHandle {
  readonly lab: Lab;
}

export interface UseLabOptions extends LabOptions {
  /** Data planes are meant to end in these tests; else one that did is a failure. */
  readonly restarts?: boolean;
  /** How long a large laboratory may take to come up, ms; else as long as any hook. */
  readonly upMs?: number;
}

export function useLab(topology: TopologyInput, options: UseLabOptions = {}): LabHandle {
  let made: Lab | undefined;
  beforeAll(async () => {
    made = await Lab.create(topology, { env: nativePreset(), ...options });
  }, options.upMs);
  afterEach(({ task }) => {
    if (task.result?.state === 'fail' && made !== undefined) {
      console.error(`logs after "${task.name}":\n${made.logTails()}`);
    }
  });
  afterAll(async () => {
    try {
      if (made !== undefined) await expectWellBehaved(made, options.restarts ?? false);
    } finally {
      await made?.destroy();
      made = undefined;
    }
  });
  return {
    get lab(): Lab {
      if (made === undefined) throw new Error('the laboratory is not up');
      return made;
    },
  };
}

/** No sanitizer has found anything, no data plane has died unasked, and all were of the build that is to be tested. */
async function expectWellBehaved(lab: Lab, restarts: boolean): Promise<void> {
  const preset = process.env.PAIRWIRE_NATIVE_PRESET ?? 'release';
  expect(lab.logTails(Number.POSITIVE_INFINITY)).not.toMatch(
    /(Address|Thread|Leak|UndefinedBehavior)Sanitizer|runtime error:/,
  );
  for (const name of lab.gatewayNames()) {
    const { host } = lab.gateway(name);
    const gateways = lab.topology.gateways.filter((one) => one.host === host);
    const programs = (await pidsIn(lab.namespace(host))).map((pid) => exeOf(pid));
    const dataPlanes = programs.filter((path) => path.includes('pairwire-dataplane'));
    expect(dataPlanes, `data planes on ${host}`).toEqual(
      gateways.map(() => expect.stringContaining(`/build/${preset}/`)),
    );
    if (restarts) continue;
    const { dataPlane } = await lab.status(name);
    expect(dataPlane.restarts, `restarts of ${name}`).toBe(0);
  }
}

function exeOf(pid: number): string {
  try {
    return readlinkSync(`/proc/${pid}/exe`);
  } catch {
    return ''; // it has ended meanwhile
  }
}

/** With PAIRWIRE_NATIVE_PRESET=asan or tsan the gateways run that build of the data plane. */
export function nativePreset(): Record<string, string> {
  const preset = process.env.PAIRWIRE_NATIVE_PRESET;
  if (preset === undefined) return {};
  return {
    PAIRWIRE_NATIVE_PRESET: preset,
    // The sandbox denies what the leak check needs; each finding ends the process.
    ASAN_OPTIONS: 'detect_leaks=0:abort_on_error=0:exitcode=99',
    UBSAN_OPTIONS: 'print_stacktrace=1:halt_on_error=1',
    TSAN_OPTIONS: 'halt_on_error=1',
  };
}

/** Small files where time is short: scripts/test --quick, and the sanitizer runs. */
export const SMALL = process.env.PAIRWIRE_LAB_SIZE === 'small';
