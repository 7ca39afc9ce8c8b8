/** What one run of the benchmark leaves: docs/bench/latest.json. */
import { z } from 'zod';
import { figureSchema } from './statistics.js';

/** Names of the figures, in the order of measuring; docs/bench/README.md says what each is. */
export const FIGURES = [
  'tcp1Gbit',
  'tcp4Gbit',
  'tcpReverseGbit',
  'cpuMachineSecondsPerGB',
  'cpuAboveVethSecondsPerGB',
  'cpuProcessesSecondsPerGB',
  'pps64',
  'pps512',
  'pps1400',
  'idleP50Us',
  'idleP99Us',
  'pingPongP50Us',
  'pingPongP99Us',
  'loadedP50Us',
  'loadedP99Us',
  'packetMemoryMB',
  'controlMemoryMB',
  'firstPingExtraMs',
] as const;
export type FigureName = (typeof FIGURES)[number];

export const rowSchema = z.object({
  name: z.string(),
  /** ceiling: no encryption; own: Pairwire; peer: somebody else's. */
  kind: z.enum(['ceiling', 'own', 'peer']),
  layer: z.union([z.literal(2), z.literal(3)]),
  version: z.string().optional(),
  figures: z.partialRecord(z.enum(FIGURES), figureSchema),
  /** Packet rates at which the load generator, not the tunnel, was at its end. */
  generatorLimits: z.array(z.enum(FIGURES)),
  /** Why figures are missing. */
  failed: z.string().optional(),
});
export type Row = z.infer<typeof rowSchema>;

/** What one row has of another's figure: both measured right after each other, several times. */
const comparisonSchema = z.object({
  row: z.string(),
  base: z.string(),
  figure: z.enum(['tcp1Gbit', 'idleP50Us']),
  ratio: figureSchema,
});
export type Comparison = z.infer<typeof comparisonSchema>;

export const resultSchema = z.object({
  schema: z.literal(2),
  when: z.iso.datetime(),
  version: z.string(),
  mode: z.enum(['quick', 'full']),
  rounds: z.number().int(),
  /** Congestion control of the streams, in all rows. Runs from before it was chosen had what their machine had. */
  congestionControl: z.string().optional(),
  minutes: z.number(),
  machine: z.object({
    cpu: z.string(),
    cores: z.number().int(),
    memoryGB: z.number(),
    kernel: z.string(),
    system: z.string(),
    node: z.string(),
  }),
  rows: z.array(rowSchema),
  /** Runs from before there were any have none. */
  comparisons: z.array(comparisonSchema).optional(),
});
export type Result = z.infer<typeof resultSchema>;

/** Names of rows that targets and chart speak of. */
export const ROW = {
  veth: 'raw veth',
  own: 'pairwire',
  ethernet: 'pairwire (ethernet)',
  off: 'pairwire (encryption off)',
  chacha: 'pairwire (ChaCha20-Poly1305)',
  crowd: 'pairwire (10,000 members)',
  wireguard: 'wireguard-go',
} as const;

/** Where it was measured, in words. */
export function placeOf({ machine, congestionControl }: Result): string {
  const place = `${machine.cores} cores of ${machine.cpu}, Linux ${machine.kernel}`;
  return congestionControl === undefined ? place : `${place}, TCP by ${congestionControl}`;
}

/** The median of a row's figure, if it was measured. */
export function value(row: Row | undefined, name: FigureName): number | undefined {
  return row?.figures[name]?.median;
}
