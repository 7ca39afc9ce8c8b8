/**
 * The relay beside this key server: started as a child with a key that both derive from nothing
 * but the server's own, so there is no file to keep; started again when it ends. Members get
 * tickets for it, and what it says of their addresses comes back through them, proven by that key.
 *
 *   starting -> running -> (ended) -> wait 0.5 to 30 s -> starting
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { z } from 'zod';
import { relaySecret } from '../src/protocol/channel/admission.js';
import type { KeyPair } from '../src/protocol/channel/keys.js';
import { ipToBytes } from '../src/protocol/ip.js';
import type { Endpoint, RelayOffer } from '../src/protocol/messages.js';
import { openReceipt, relayTicketKey } from '../src/protocol/relay.js';
import { PairwireError } from '../src/runtime/errors.js';
import { eachLine } from '../src/runtime/lines.js';
import type { Logger } from '../src/runtime/log.js';
import type { Metrics } from '../src/runtime/metrics.js';
import { findProgram } from '../src/runtime/native-program.js';
import { isWildcard, requireHostPort } from './config.js';
import { Refusal } from './refusal.js';

/** A ticket is fetched anew with every session and every change of address; half of this at the latest. */
const TICKET_LIFETIME_MS = 3_600_000;
const FIRST_RESTART_MS = 500;
const LAST_RESTART_MS = 30_000;
/** A relay that has run so long is healthy: the next restart is quick again. */
const HEALTHY_MS = 60_000;
/** Longer lines of the relay are thrown away: it talks to strangers, so it is not trusted with our memory. */
export const MAX_LINE = 4_096;

/** Tickets and receipts: what the key server needs to know of its relay. */
export class RelayTickets {
  readonly #key: Buffer;
  readonly #addresses: readonly Endpoint[];
  readonly #now: () => number;

  constructor(key: Buffer, addresses: readonly Endpoint[], now: () => number) {
    this.#key = key;
    this.#addresses = addresses;
    this.#now = now;
  }

  /** A ticket for a member's sender index. */
  offer(index: number): RelayOffer {
    const notAfter = Math.floor(this.#now()) + TICKET_LIFETIME_MS;
    return {
      addresses: [...this.#addresses],
      index,
      notAfter,
      ticket: relayTicketKey(this.#key, index, notAfter),
    };
  }

  /** The address that the relay saw. @throws Refusal for a receipt that is forged, late or another member's */
  seen(index: number, receipt: Uint8Array): Endpoint {
    const found = openReceipt(this.#key, receipt, { index, nowMs: this.#now() });
    if (typeof found !== 'string') return found;
    throw new Refusal(
      'refused',
      `receipt_${found}` as const,
      `the receipt of the relay is ${found}`,
    );
  }
}

/** Key and addresses of the relay, from the configuration. @throws PairwireError CONFIG_INVALID */
export function relayTickets(
  config: { readonly listen: string; readonly advertise: readonly string[] },
  staticKeys: KeyPair,
  now: () => number,
): RelayTickets {
  const named = config.advertise.length === 0 ? [config.listen] : config.advertise;
  return new RelayTickets(relaySecret(staticKeys), named.map(toEndpoint), now);
}

function toEndpoint(text: string): Endpoint {
  const { host, port } = requireHostPort(text, 'relay.advertise');
  const ip = ipToBytes(host);
  if (ip === undefined || isWildcard(host)) {
    throw new PairwireError('CONFIG_INVALID', `relay: ${text} is not an address members can use`, {
      hint: 'name the IP addresses and ports under which members reach it in relay.advertise',
    });
  }
  return { ip, port };
}

const reportSchema = z.record(z.string().max(40), z.int().nonnegative());

/** The child process. */
export class RelayProcess {
  readonly #program: () => string;
  readonly #listen: string;
  readonly #key: Buffer;
  readonly #log: Logger;
  #child: ChildProcess | undefined;
  #timer: NodeJS.Timeout | undefined;
  #restartMs = FIRST_RESTART_MS;
  #stopped = false;
  #report: Readonly<Record<string, number>> = {};
  #restarts = 0;
  #badLines = 0;

  /** @param program the relay's path; the default is that of this installation */
  constructor(
    listen: string,
    staticKeys: KeyPair,
    log: Logger,
    metrics: Metrics,
    program: () => string = () => findProgram('pairwire-relay'),
  ) {
    this.#program = program;
    this.#listen = listen;
    this.#key = relaySecret(staticKeys);
    this.#log = log;
    metrics.gauge('relay_counts', 'What the relay did, by name', ['what'], (gauge) => {
      for (const [what, value] of Object.entries(this.#report)) gauge.labels(what).set(value);
    });
    metrics.gauge('relay_restarts', 'Restarts of the relay', [], (gauge) =>
      gauge.set(this.#restarts),
    );
    metrics.gauge('relay_bad_lines', 'Lines of the relay that were thrown away', [], (gauge) =>
      gauge.set(this.#badLines),
    );
  }

  /** @throws PairwireError PLATFORM if there is no such program */
  start(): void {
    const since = Date.now();
    const child = spawn(this.#program(), ['--listen', this.#listen], {
      stdio: ['pipe', 'pipe', 'pipe'],
      env: {},
    });
    this.#child = child;
    child.stdin.on('error', () => {}); // it ended before it took the key, which `exit` tells
    child.stdin.write(this.#key);
    const tooLong = (): void => {
      this.#badLines += 1;
    };
    eachLine(child.stdout, MAX_LINE, (line) => this.#reported(line), tooLong);
    eachLine(child.stderr, MAX_LINE, (line) => this.#log.warn({ from: 'relay' }, line), tooLong);
    child.on('error', (err) => this.#log.error({ err }, 'the relay could not be started'));
    child.on('close', (code, signal) => {
      this.#child = undefined;
      if (this.#stopped) return;
      if (Date.now() - since > HEALTHY_MS) this.#restartMs = FIRST_RESTART_MS;
      const retryInMs = this.#restartMs;
      this.#restartMs = Math.min(LAST_RESTART_MS, 2 * retryInMs);
      this.#restarts += 1;
      this.#log.error({ code, signal, retryInMs }, 'the relay ended; starting it again');
      this.#timer = setTimeout(() => this.start(), retryInMs);
    });
  }

  /** Ends the relay. */
  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#timer);
    this.#key.fill(0);
    const child = this.#child;
    if (child === undefined) return;
    const closed = new Promise((resolve) => child.once('close', resolve));
    child.stdin?.end();
    await closed;
  }

  #reported(line: string): void {
    try {
      this.#report = reportSchema.parse(JSON.parse(line));
    } catch {
      this.#badLines += 1;
      this.#log.warn({ from: 'relay' }, 'a report could not be read');
    }
  }
}
