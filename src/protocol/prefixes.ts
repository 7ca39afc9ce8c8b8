/** Sets of IP prefixes: which addresses lie behind a net id, and what of that somebody else may say. */
import { ipToBytes, ipToText } from './ip.js';

interface Prefix {
  readonly ip: Buffer;
  readonly length: number;
}

/**
 * The one spelling of a prefix: its first address and its length, which an address by itself gets too.
 * @throws RangeError for text that is no prefix
 */
export function networkOf(text: string): string {
  const { ip, length } = parse(text);
  return `${ipToText(ip)}/${length}`;
}

/** True if every address of `inner` is in `outer`. @throws RangeError */
export function covers(outer: string, inner: string): boolean {
  return holds(parse(outer), parse(inner));
}

/** True if some address is in both. @throws RangeError */
export function overlap(one: string, other: string): boolean {
  return covers(one, other) || covers(other, one);
}

/**
 * What is left of `own` prefixes when somebody else says that `told` is all there is: the addresses
 * that are in both, so a word from outside narrows and never widens. Sorted, none inside another; not
 * more than there are in both lists together. @throws RangeError
 */
export function narrowed(own: readonly string[], told: readonly string[]): string[] {
  // None of either list holds another of it, so no two of the results overlap.
  const [ours, theirs] = [outermost(own), outermost(told)];
  const both = ours.flatMap((one) =>
    theirs.flatMap((other) => (holds(one, other) ? [other] : holds(other, one) ? [one] : [])),
  );
  return both.map(({ ip, length }) => `${ipToText(ip)}/${length}`).sort();
}

function outermost(texts: readonly string[]): Prefix[] {
  const all = [...new Set(texts.map(networkOf))].map(parse);
  return all.filter((one) => !all.some((other) => other !== one && holds(other, one)));
}

function holds(outer: Prefix, inner: Prefix): boolean {
  if (outer.ip.length !== inner.ip.length || outer.length > inner.length) return false;
  return masked(inner.ip, outer.length).equals(outer.ip);
}

/** The address with all bits behind the first `length` cleared. */
function masked(ip: Buffer, length: number): Buffer {
  const bytes = Buffer.from(ip);
  for (let at = 0; at < bytes.length; at += 1) {
    const left = Math.min(8, Math.max(0, length - 8 * at));
    bytes[at] = (bytes[at] ?? 0) & (0xff << (8 - left)) & 0xff;
  }
  return bytes;
}

function parse(text: string): Prefix {
  const [address = '', lengthText, more] = text.split('/');
  const ip = more === undefined ? ipToBytes(address) : undefined;
  if (ip === undefined) throw new RangeError(`${text} is no IP prefix`);
  const length = lengthText === undefined ? 8 * ip.length : Number(lengthText);
  if (!/^\d{1,3}$/.test(lengthText ?? '0') || length > 8 * ip.length) {
    throw new RangeError(`${text} is no IP prefix`);
  }
  return { ip: masked(ip, length), length };
}

/** True for text that `networkOf` takes. */
export function isPrefix(text: string): boolean {
  try {
    parse(text);
    return true;
  } catch {
    return false;
  }
}
