/**
 * What a run of vitest came to, for scripts/test, which may run it with any version of Node.js:
 *
 *   count-tests.mjs counts REPORT.json EXIT_CODE     prints: PASSED FAILED SKIPPED
 *   count-tests.mjs files REPORT.json                prints each file with a failure, one a line
 *   count-tests.mjs reasons REPORT.json              prints each failure with its reason, one a line
 *   count-tests.mjs without REPORT.json              prints the tests that passed in files without a failure
 *
 * REPORT.json is what vitest's reporter `json` wrote. A file that could not even be loaded has no
 * tests in it and counts as one failure, and so does an exit code that no failed test explains.
 * The report does not say why a hook of a group of tests failed; what vitest printed, REPORT.log, does.
 */
import { existsSync, readFileSync } from 'node:fs';
import { relative } from 'node:path';
import { stripVTControlCharacters } from 'node:util';

/** Characters of a reason that are printed. */
const REASON_LENGTH = 400;
/** Lines of what vitest printed that are looked at for one. */
const PRINTED_LINES = 6;

const [what, path = '', exitCode = '0'] = process.argv.slice(2);
const files = JSON.parse(readFileSync(path, 'utf8')).testResults;
const withStatus = (file, ...statuses) =>
  file.assertionResults.filter((test) => statuses.includes(test.status)).length;
const failures = (file) =>
  withStatus(file, 'failed') || (file.status === 'failed' || file.message ? 1 : 0);
const sum = (list, count) => list.reduce((total, one) => total + count(one), 0);
const oneLine = (text) =>
  (text ?? '')
    .replaceAll(/\s*\n\s*at [^\n]*(node_modules|<anonymous>|node:)[^\n]*/g, '')
    .replaceAll(/\s*\n\s*/g, ' | ')
    .trim()
    .slice(0, REASON_LENGTH);
/** What vitest printed of a failure that belongs to no test: where it is, and its message. */
function printedReason(name) {
  const log = path.replace(/\.json$/, '.log');
  if (!existsSync(log)) return '';
  const lines = stripVTControlCharacters(readFileSync(log, 'utf8')).split('\n');
  const at = lines.findIndex((line) => /^ *FAIL /.test(line) && line.includes(name));
  return at === -1 ? '' : oneLine(lines.slice(at, at + PRINTED_LINES).join('\n'));
}

const answers = {
  counts() {
    const failed = sum(files, failures);
    const unexplained = Number(exitCode) !== 0 && failed === 0 ? 1 : 0;
    const passed = sum(files, (file) => withStatus(file, 'passed'));
    const skipped = sum(files, (file) => withStatus(file, 'pending', 'skipped', 'todo'));
    return [`${passed} ${failed + unexplained} ${skipped}`];
  },
  files: () => files.filter(failures).map((file) => relative(process.cwd(), file.name)),
  reasons: () =>
    files.filter(failures).flatMap((file) => {
      const name = relative(process.cwd(), file.name);
      const tests = file.assertionResults.filter((test) => test.status === 'failed');
      if (tests.length === 0) return [`${name}: ${oneLine(file.message) || printedReason(name)}`];
      return tests.map(
        (test) => `${name} > ${test.fullName}: ${oneLine(test.failureMessages.join('\n'))}`,
      );
    }),
  without: () => [
    String(
      sum(
        files.filter((file) => failures(file) === 0),
        (file) => withStatus(file, 'passed'),
      ),
    ),
  ],
};

const answer = answers[what];
if (answer === undefined) throw new Error(`count-tests.mjs: unknown request ${what}`);
for (const line of answer()) console.log(line);
