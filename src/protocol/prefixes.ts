/** Sets of IP prefixes: which addresses lie behind a net id, and what of that somebody else may say. */
import { inPrefix, ipToBytes, ipToText } from './ip.js';

/**
 * The one spelling of a prefix: its first address and its length, which an address by itself gets too.
 * @throws RangeError for text that is no prefix
 */
export function networkOf(text: string): string {
  const [address = '', lengthText] = text.split('/');
  const ip = ipToBytes(address);
  if (ip === undefined) throw new RangeError(`${text} is no IP prefix`);
  const length = lengthText === undefined ? 8 * ip.length : Number(lengthText);
  if (!(Number.isInteger(length) && length >= 0 && length <= 8 * ip.length)) {
    throw new RangeError(`${text} is no IP prefix`);
  }
  for (let at = 0; at < ip.length; at += 1) {
    const left = Math.min(8, Math.max(0, length - 8 * at));
    ip[at] = (ip[at] ?? 0) & (0xff << (8 - left)) & 0xff;
  }
  return `${ipToText(ip)}/${length}`;
}

/** True if every address of `inner` is in `outer`. Both in the spelling of `networkOf`. */
export function covers(outer: string, inner: string): boolean {
  const [address = '', length] = inner.split('/');
  const ip = ipToBytes(address);
  if (ip === undefined) return false;
  return Number(outer.split('/')[1]) <= Number(length) && inPrefix(outer, ip);
}

/** True if some address is in both. */
export function overlap(one: string, other: string): boolean {
  return covers(one, other) || covers(other, one);
}

/**
 * What is left of `own` prefixes when somebody else says that `told` is all there is: the addresses
 * that are in both, so a word from outside narrows and never widens. Sorted, none inside another.
 */
export function narrowed(own: readonly string[], told: readonly string[]): string[] {
  const both = own.flatMap((mine) =>
    told.flatMap((theirs) =>
      covers(mine, theirs) ? [theirs] : covers(theirs, mine) ? [mine] : [],
    ),
  );
  const all = [...new Set(both)];
  return all.filter((one) => !all.some((other) => other !== one && covers(other, one))).sort();
}
