/** Waits until something holds. */
export async function until(
  what: string,
  condition: () => boolean | Promise<boolean>,
  ms = 8_000,
): Promise<void> {
  const end = Date.now() + ms;
  while (!(await condition())) {
    if (Date.now() > end) throw new Error(`it did not happen: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
