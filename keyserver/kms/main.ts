/**
 * The KMS that a key server starts as its child: an entry of its own, so that it loads nothing of the key server.
 *
 *   node main.js DIR
 */
import { describe, messageOf, PairwireError } from '../../src/runtime/errors.js';
import { runKms } from './run.js';

try {
  await runKms(process.argv[2] ?? '.', { child: true });
} catch (thrown) {
  const why = thrown instanceof PairwireError ? describe(thrown) : { message: messageOf(thrown) };
  process.stderr.write(
    `${JSON.stringify({ level: 'error', name: 'kms', msg: why.message, ...why })}\n`,
  );
  process.exit(1);
}
