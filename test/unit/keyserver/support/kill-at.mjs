/**
 * Loaded into a command before its program (node --import): kills that process with -9 before the n-th thing that it does to files or
 * commits, n from PAIRWIRE_TEST_KILL_AT.
 */
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import net from 'node:net';
import Database from 'libsql';

const FILE_STEPS = ['mkdirSync', 'copyFileSync', 'linkSync', 'renameSync', 'rmSync', 'rmdirSync'];
const at = Number(process.env.PAIRWIRE_TEST_KILL_AT);
let done = 0;

function step() {
  done += 1;
  if (done !== at) return;
  process.kill(process.pid, 'SIGKILL');
  for (;;);
}

for (const name of FILE_STEPS) {
  const original = fs[name];
  fs[name] = (...args) => {
    step();
    return original(...args);
  };
}
syncBuiltinESMExports();

const { exec } = Database.prototype;
Database.prototype.exec = function (sql) {
  if (sql === 'COMMIT') step();
  return exec.call(this, sql);
};

// What goes to PostgreSQL.
const { write } = net.Socket.prototype;
net.Socket.prototype.write = function (chunk, ...more) {
  if (Buffer.isBuffer(chunk) && chunk.includes('COMMIT')) step();
  return write.call(this, chunk, ...more);
};
