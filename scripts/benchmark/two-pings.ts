/** Two pings, one after the other: what the first one takes beyond the second. */

/** The command. The second is sent when the first has long been answered, and what that has begun is done. */
export function twoPings(address: string): readonly [string, ...string[]] {
  return ['ping', '-n', '-c2', '-i0.3', '-W2', address];
}

/** From what it printed, ms. @throws Error where one was not answered */
export function firstBeyondSecondMs(printed: string): number {
  const [first, second] = [...printed.matchAll(/time=([\d.]+) ms/g)].map(([, ms]) => Number(ms));
  if (first === undefined || second === undefined) throw new Error('a first ping was lost');
  return first - second;
}
