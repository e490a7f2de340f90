/** Faults of the disk under a process that is running: strace makes its system calls on some files fail. */
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, fstatSync, mkdirSync, openSync, statSync, truncateSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'
import { scratch } from './muster.ts'

export interface DiskFault {
  /** System calls that fail, such as `pwrite64,fsync`. */
  readonly calls: string
  readonly error: 'EIO' | 'ENOSPC' | 'EROFS'
  /** Absolute paths of files; other files are as ever. */
  readonly paths: readonly string[]
}

/** Makes them fail from now on. @returns how to end it */
export async function breakDisk(t: Test, pid: number, fault: DiskFault): Promise<() => Promise<void>> {
  const { calls, error, paths } = fault
  const at = paths.flatMap((path) => ['-P', path])
  const inject = ['-e', `trace=${calls}`, '-e', `inject=${calls}:error=${error}`]
  const strace = spawn('strace', ['-f', '-o', '/dev/null', ...inject, ...at, '-p', String(pid)], {
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  const ended = once(strace, 'exit')
  t.teardown(() => strace.kill('SIGINT'))
  await attached(strace.stderr.setEncoding('utf8'), ended)
  return async () => {
    strace.kill('SIGINT')
    await ended
  }
}

/** A machine on which nothing can be traced shows nothing: that fails. */
async function attached(stderr: NodeJS.ReadableStream, ended: Promise<unknown>): Promise<void> {
  let said = ''
  const late = AbortSignal.timeout(30_000)
  const gone = ended.then(() => {
    throw new Error(`strace cannot attach: install it, and allow ptrace (CAP_SYS_PTRACE): ${said}`)
  })
  gone.catch(() => {}) // after it has attached, its end is no news
  while (!/attached/.test(said)) {
    const [more] = await Promise.race([once(stderr, 'data', { signal: late }), gone])
    said += String(more)
  }
}

/** A disk of that size for one test; it needs root, as the packages of the suite do. */
export function smallDisk(t: Test, megaoctets: number): string {
  const disk = join(scratch(t), 'disk')
  mkdirSync(disk)
  asRoot('mount', '-t', 'tmpfs', '-o', `size=${megaoctets}m,mode=0777`, 'muster-test', disk)
  t.teardown(() => asRoot('umount', '--lazy', disk))
  return disk
}

export function asRoot(...command: string[]): void {
  const before = process.getuid?.() === 0 ? [] : ['sudo', '--non-interactive']
  const [program = '', ...args] = [...before, ...command]
  execFileSync(program, args, { stdio: 'pipe' })
}

/** Takes what is left, to the last octet. */
export function fillDisk(path: string): void {
  const file = openSync(path, 'a')
  for (let octets = 1 << 20; octets > 0; ) {
    const before = fstatSync(file).size
    try {
      writeSync(file, Buffer.alloc(octets))
    } catch {
      octets >>= 1
      continue
    }
    if (fstatSync(file).size === before) octets >>= 1
  }
  closeSync(file)
}

/** Leaves so many octets of the disk. */
export function leaveOnDisk(path: string, octets: number): void {
  fillDisk(path)
  truncateSync(path, statSync(path).size - octets)
}
