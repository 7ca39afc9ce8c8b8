/**
 * A share of this machine's processors for a host of the laboratory, as if it were a small machine of its own: a control
 * group (version 1 or 2) with a quota. So the host that has most to do is what bounds a way, not the sum of all hosts.
 */
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const V2 = '/sys/fs/cgroup';
const V1 = '/sys/fs/cgroup/cpu';
/** Short, so that a host that has used its share up is back before queues are full. */
const PERIOD_US = 5_000;

/** Ends with `end`; the group must be empty then. */
export class ProcessorShare {
  readonly #folder: string;

  /**
   * @param name of the group, not used by any other
   * @param cores how many, also less than one
   * @throws Error without the right to make groups, or where no group can have a quota
   */
  constructor(name: string, cores: number) {
    const quota = Math.round(cores * PERIOD_US);
    if (existsSync(join(V1, 'cpu.cfs_quota_us'))) {
      this.#folder = join(V1, name);
      mkdirSync(this.#folder);
      writeFileSync(join(this.#folder, 'cpu.cfs_period_us'), `${PERIOD_US}`);
      writeFileSync(join(this.#folder, 'cpu.cfs_quota_us'), `${quota}`);
      return;
    }
    const control = join(V2, 'cgroup.subtree_control');
    if (!existsSync(control) || !readFileSync(control, 'utf8').includes('cpu')) {
      throw new Error('no control groups with a processor quota at /sys/fs/cgroup');
    }
    this.#folder = join(V2, name);
    mkdirSync(this.#folder);
    writeFileSync(join(this.#folder, 'cpu.max'), `${quota} ${PERIOD_US}`);
  }

  /** Processes that run already. One that has ended meanwhile is left out. */
  take(pids: readonly number[]): void {
    for (const pid of pids) {
      try {
        writeFileSync(this.#procs, `${pid}`);
      } catch {
        if (existsSync(`/proc/${pid}`))
          throw new Error(`process ${pid} can not be put into a group`);
      }
    }
  }

  /** The command that starts `argv` in this share. */
  command(argv: readonly string[]): string[] {
    return ['sh', '-c', 'echo $$ > "$0" && exec "$@"', this.#procs, ...argv];
  }

  end(): void {
    rmdirSync(this.#folder);
  }

  get #procs(): string {
    return join(this.#folder, 'cgroup.procs');
  }
}
