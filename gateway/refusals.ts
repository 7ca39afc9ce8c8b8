/**
 * What a gateway does not believe its key server, or its policy keeps from it: counted each time, and few lines of the log, for the server
 * decides how often it is said.
 */
import type { PairwireError } from '../src/runtime/errors.js';
import type { Logger } from '../src/runtime/log.js';
import { RepeatedLines } from '../src/runtime/repeated-lines.js';

/** Members that the policy keeps away and that have a line of their own in a minute; more count together. */
export const MAX_DENIED_LINES = 16;
/** Members and nets that are not believed and have one. */
export const MAX_REFUSED_LINES = 64;

/** Counts and tells. */
export class Refusals {
  readonly #counts: Record<string, number> = {};
  readonly #denied: RepeatedLines;
  readonly #refused: RepeatedLines;

  /** @param now a clock that never goes back, ms */
  constructor(log: Logger, now: () => number) {
    this.#denied = new RepeatedLines(log, now, MAX_DENIED_LINES);
    this.#refused = new RepeatedLines(log, now, MAX_REFUSED_LINES);
  }

  /** How often, by why. */
  get counts(): Readonly<Record<string, number>> {
    return this.#counts;
  }

  /** The policy keeps a member from us of which the key server has told. */
  denied(peer: string): void {
    this.count('POLICY_DENIED');
    const text = 'the policy keeps a member from us that the key server has told of';
    this.#denied.write('info', peer, { peer }, text);
  }

  /** A member's record does not hold. */
  member(peer: string, error: PairwireError): void {
    this.count(error.code);
    const text = 'a member is not believed; it alone is stopped';
    this.#refused.write('error', `${peer} ${error.code}`, { peer, err: error }, text);
  }

  /** What is said of another subnet does not hold. */
  net(what: string, error: PairwireError): void {
    this.count(error.code);
    const text = 'a net is not believed; it alone is stopped';
    this.#refused.write('error', `${what} ${error.code}`, { what, err: error }, text);
  }

  /** Something else that the key server says does not hold. @param what one of few texts of ours */
  server(what: string, error: PairwireError): void {
    this.count(error.code);
    const text = `not believed of the key server: ${what}`;
    this.#refused.write('error', `${what} ${error.code}`, { err: error }, text);
  }

  /** Something else was refused. */
  count(code: string): void {
    this.#counts[code] = (this.#counts[code] ?? 0) + 1;
  }

  /** Writes what was only counted so far. */
  close(): void {
    this.#denied.close();
    this.#refused.close();
  }
}
