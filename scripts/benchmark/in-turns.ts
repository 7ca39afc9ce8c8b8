/** Two figures compared right after each other: what slows the machine for some seconds hits both, where it would move one of the medians of a whole run. */

/**
 * Measures both figures in each turn, who is first by turns.
 * @returns `figure` as a multiple of `base`, of each turn
 */
export async function ratiosInTurns(
  turns: number,
  figure: () => Promise<number>,
  base: () => Promise<number>,
): Promise<number[]> {
  const ratios: number[] = [];
  for (let turn = 0; turn < turns; turn++) {
    const first = turn % 2 === 0 ? await figure() : undefined;
    const below = await base();
    ratios.push((first ?? (await figure())) / below);
  }
  return ratios;
}
