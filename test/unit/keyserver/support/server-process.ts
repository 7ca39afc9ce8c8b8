/** A key server as a process of its own, so that it can be killed with -9 and started again on its folder. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { initSubnet, type SettingsChoice } from '../../../../keyserver/init.js';
import type { Id } from '../../../../src/protocol/ids.js';
import { keyServerProgram } from '../../../programs/key-server.js';
import { pairwire } from './commands.js';
import { removeDatabase, storeChoice } from './store.js';
import { SUBNET, SubnetFolder } from './subnet-folder.js';

export class ServerProcess extends SubnetFolder {
  #child: ChildProcess | undefined;
  /** What the process has written since its start. */
  log = '';

  private constructor(
    dir: string,
    readonly port: number,
    subnet: Id = SUBNET,
    server?: Id,
    operatorKey?: string,
  ) {
    super(dir, subnet, server, operatorKey);
  }

  /** Makes another key server of a subnet by the command. @param token from its first one */
  static async join(first: ServerProcess, server: Id, token: string): Promise<ServerProcess> {
    const dir = mkdtempSync(join(tmpdir(), 'pairwire-cascade-'));
    const port = await freePort();
    const listen = `127.0.0.1:${port}`;
    const made = await pairwire(
      ['init', '--cascade', '-', '--dir', dir, '--listen', listen, '--json'],
      token,
    );
    if (made.code !== 0) throw new Error(made.err);
    return new ServerProcess(dir, port, first.subnet, server, first.paths.operatorKey);
  }

  /** Makes the folder; nothing runs yet. */
  static async make(
    settings: SettingsChoice = {},
    other: { readonly subnet?: Id; readonly prefixes?: readonly string[] } = {},
  ): Promise<ServerProcess> {
    const { subnet = SUBNET, prefixes = [] } = other;
    const dir = mkdtempSync(join(tmpdir(), 'pairwire-kill-'));
    const port = await freePort();
    await initSubnet({
      subnet,
      prefixes,
      dir,
      listen: `127.0.0.1:${port}`,
      advertise: [],
      settings,
      ...(await storeChoice()),
    });
    return new ServerProcess(dir, port, subnet);
  }

  /** The folder of one that was made elsewhere and put there. */
  static at(dir: string, port: number, subnet: Id = SUBNET): ServerProcess {
    return new ServerProcess(dir, port, subnet);
  }

  /** Starts it; settles when it listens. */
  async start(): Promise<void> {
    const argv = keyServerProgram('keyserver', '--dir', this.dir);
    const child = spawn(process.execPath, argv, { stdio: ['ignore', 'ignore', 'pipe'] });
    this.#child = child;
    this.log = '';
    await new Promise<void>((resolve, reject) => {
      child.stderr.on('data', (chunk: Buffer) => {
        this.log += chunk.toString();
        if (this.log.includes('key server listens')) resolve();
        // On PostgreSQL another machine may serve, and it goes on trying: here there is none.
        else if (this.log.includes('not serving; trying again')) {
          void this.kill().then(() => reject(new Error(`the server does not serve: ${this.log}`)));
        }
      });
      // What its KMS writes comes the same way: all of it is there when both have ended.
      child.once('close', () => reject(new Error(`the server ended: ${this.log}`)));
    });
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** kill -9. */
  async kill(): Promise<void> {
    const child = this.#child;
    if (child === undefined) return;
    this.#child = undefined;
    // One that could not start has ended already.
    if (child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
  }

  /** Ends all clients, the process and its folder. */
  async remove(): Promise<void> {
    this.stopClients();
    await this.kill();
    await removeDatabase(this.paths.database);
    rmSync(this.dir, { recursive: true, force: true });
  }
}

/** A port of loopback that nobody has. */
export function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const address = server.address();
      const found = typeof address === 'object' && address !== null ? address.port : 0;
      server.close(() => resolve(found));
    });
  });
}
