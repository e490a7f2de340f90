/** Processes under another clock: libfaketime (Debian package `faketime`) stands between them and the kernel. */
import { existsSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'

const LIBRARIES = ['x86_64', 'aarch64'].map(
  (machine) => `/usr/lib/${machine}-linux-gnu/faketime/libfaketimeMT.so.1`,
)
const SHARED_MEMORY = '/dev/shm'

/** A distance (`+10d`), a moment from which it goes on (`@1970-01-02 00:00:00`), or a file that holds one of them. */
export type FakeTime = string | { readonly file: string; readonly timers?: 'kernel' }

/**
 * The environment of such a process, without what the test runner adds to every Node. It is loaded by hand: the
 * program `faketime` ends when its pid was that of a process which was killed. Timers of Node follow the clock, because
 * libfaketime moves CLOCK_MONOTONIC with it, unless they are the kernel's.
 * @throws Error when libfaketime is not installed
 */
export function underClock(time: FakeTime): NodeJS.ProcessEnv {
  const library = LIBRARIES.find(existsSync)
  if (library === undefined) throw new Error('libfaketime is missing: apt-get install faketime')
  removeLeftovers()
  const { NODE_OPTIONS: _, ...environment } = process.env
  return { ...environment, LD_PRELOAD: library, ...settings(time) }
}

function settings(time: FakeTime): NodeJS.ProcessEnv {
  if (typeof time === 'string') return { FAKETIME: time }
  const read = { FAKETIME_TIMESTAMP_FILE: time.file, FAKETIME_NO_CACHE: '1' }
  return time.timers === 'kernel' ? { ...read, FAKETIME_DONT_FAKE_MONOTONIC: '1' } : read
}

/** A process that is killed leaves a semaphore and memory with its pid in their names; the next one with that pid may end for it. */
function removeLeftovers(): void {
  for (const name of readdirSync(SHARED_MEMORY)) {
    const pid = /^(?:sem\.faketime_sem|faketime_shm)_(\d+)$/.exec(name)?.[1]
    if (pid !== undefined && !existsSync(`/proc/${pid}`)) rmSync(join(SHARED_MEMORY, name), { force: true })
  }
}
