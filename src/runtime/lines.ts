/** Lines of a stream, of bounded length: what another process writes must not fill our memory. */
import type { Readable } from 'node:stream';

/**
 * Calls `line` for each line of at most `max` characters, without its end; a last one without an end counts too.
 * @param tooLong is called once for each longer line, which is thrown away as it comes
 */
export function eachLine(
  stream: Readable,
  max: number,
  line: (text: string) => void,
  tooLong: () => void,
): void {
  let held = '';
  let over = false;
  const grow = (part: string): void => {
    if (over) return;
    if (held.length + part.length <= max) {
      held += part;
      return;
    }
    over = true;
    held = '';
    tooLong();
  };
  const finish = (): void => {
    const text = held;
    const whole = !over;
    held = '';
    over = false;
    if (whole) line(text);
  };
  stream.setEncoding('utf8');
  stream.on('data', (chunk: string) => {
    const parts = chunk.split('\n');
    for (const [at, part] of parts.entries()) {
      if (at > 0) finish();
      grow(part);
    }
  });
  stream.on('end', () => {
    if (held !== '') finish();
  });
}
