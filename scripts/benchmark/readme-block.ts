/** The part of the README that shows the newest run: written between two markers, never by hand. */
import { markdownReport } from './report.js';
import type { Result } from './result.js';

const BEGIN = '<!-- bench:begin (scripts/bench writes what follows) -->';
const END = '<!-- bench:end -->';

/** @throws Error if the text does not have each marker once, in order */
export function withBlock(text: string, result: Result | undefined): string {
  const begin = text.indexOf(BEGIN);
  const end = text.indexOf(END);
  const once = text.split(BEGIN).length === 2 && text.split(END).length === 2;
  if (!once || end < begin) throw new Error('README.md needs both bench markers once, in order');
  const body =
    result === undefined
      ? 'No run is recorded in `docs/bench` yet: `sudo scripts/bench` makes one.'
      : markdownReport(result);
  return `${text.slice(0, begin + BEGIN.length)}\n${body}\n${text.slice(end)}`;
}
