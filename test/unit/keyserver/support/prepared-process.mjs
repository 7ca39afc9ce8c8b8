/**
 * A key server or a KMS that has loaded its program and waits for its folder: whoever kills many of them need not wait for
 * each to load.
 *
 *   node prepared-process.mjs MODULE EXPORT      says `loaded`, reads the folder from standard input, runs it
 */
const [module = '', name = ''] = process.argv.slice(2);
const { [name]: run } = await import(module);
process.stdout.write('loaded\n');
process.stdin.setEncoding('utf8').on('data', (text) => {
  if (!text.endsWith('\n')) return;
  process.stdin.destroy();
  run(text.trim()).then(
    () => process.exit(0),
    (err) => {
      process.stderr.write(`${String(err?.stack ?? err)}\n`);
      process.exit(1);
    },
  );
});
// Whoever made it is gone.
process.stdin.on('end', () => process.exit(0));
